"""Stores on the loopback interface, each behind a proxy that injects faults, and each read by its real client."""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest

from pipeline.sources import store as store_module
from tests.faults.fault_proxy import FaultProxy, fault_proxy
from tests.hub_server import Repo, hub_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

NAMES = ("s3", "gs", "az", "hf", "http")
_BUCKET = "images"
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's, which its manual prints."""


@dataclass
class Faulty:
    """A store, and the proxy before it.

    Attributes
    ----------
    url : str
        Of its root, which holds what `put` was given.
    put : callable
        Writes files, by path below the root, past the proxy.
    proxy : FaultProxy
    """

    url: str
    put: Callable[[Mapping[str, bytes]], None]
    proxy: FaultProxy


@contextlib.contextmanager
def faulty_store(name: str, folder: Path, seed: int) -> Iterator[Faulty]:
    """Run a store; skips the test where its server is not installed."""
    with pytest.MonkeyPatch.context() as patch, _OPENERS[name](patch, folder, seed) as store:
        forget_clients()
        try:
            yield store
        finally:
            forget_clients()


def forget_clients() -> None:
    """Have the next reads open clients of their own."""
    import fsspec

    for protocol in NAMES:
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(protocol).clear_instance_cache()
    store_module._filesystem.cache_clear()


@contextlib.contextmanager
def _s3(_: pytest.MonkeyPatch, folder: Path, seed: int) -> Iterator[Faulty]:
    pytest.importorskip("s3fs")
    import boto3

    from scripts.source_variants import s3_server

    keys = folder / "credentials"
    lock, issued = threading.Lock(), [0]

    def issue() -> None:
        with lock:
            issued[0] += 1
            new = keys.with_suffix(".new")
            new.write_text(f"[default]\naws_access_key_id = KEY{issued[0]}X\naws_secret_access_key = nothing\n")
            new.replace(keys)

    def refused(headers: Any) -> bool:
        return f"KEY{issued[0]}X" not in headers.get("Authorization", "")

    body = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    with s3_server() as bucket:
        client = boto3.client("s3")
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with (
            pytest.MonkeyPatch.context() as patch,  # undone before the server's own settings are
            fault_proxy(port, seed, lambda: (400, {"Content-Type": "application/xml"}, body)) as proxy,
        ):
            issue()
            proxy.expire, proxy.is_refused = issue, refused
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
            patch.delenv("AWS_ACCESS_KEY_ID")
            patch.delenv("AWS_SECRET_ACCESS_KEY")

            def put(files: Mapping[str, bytes]) -> None:
                for path, data in files.items():
                    client.put_object(Bucket=bucket.removeprefix("s3://"), Key=path, Body=data)

            yield Faulty(bucket, put, proxy)


@contextlib.contextmanager
def _google(patch: pytest.MonkeyPatch, folder: Path, seed: int) -> Iterator[Faulty]:
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    port = _free_port()
    code = (
        "from gcp_storage_emulator.server import create_server;"
        f"create_server('127.0.0.1', {port}, in_memory=True, default_bucket='{_BUCKET}').run()"
    )
    body = b'{"error": {"code": 401, "message": "Invalid Credentials"}}'
    with (
        _running([sys.executable, "-c", code], port),
        fault_proxy(port, seed, lambda: (401, {"Content-Type": "application/json"}, body)) as proxy,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{proxy.port}")

        def put(files: Mapping[str, bytes]) -> None:
            for path, data in files.items():
                to = f"http://127.0.0.1:{port}/upload/storage/v1/b/{_BUCKET}/o?uploadType=media&name={quote(path, '')}"
                kind = {"Content-Type": "application/octet-stream"}
                with urllib.request.urlopen(urllib.request.Request(to, data, kind, method="POST")) as answer:
                    answer.read()

        yield Faulty(f"gs://{_BUCKET}", put, proxy)


@contextlib.contextmanager
def _azure(patch: pytest.MonkeyPatch, folder: Path, seed: int) -> Iterator[Faulty]:
    pytest.importorskip("adlfs")
    program = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob: npm install azurite, and name it in AZURITE_BLOB")
    from azure.storage.blob import BlobServiceClient

    port = _free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "azurite")]
    options = ["--skipApiVersionCheck", "--silent", "--disableTelemetry", "--disableProductStyleUrl"]
    headers = {"Content-Type": "application/xml", "x-ms-error-code": "AuthenticationFailed"}
    body = b"<Error><Code>AuthenticationFailed</Code><Message>Signature not valid in the time frame</Message></Error>"

    def connection(to: int) -> str:
        endpoint = f"BlobEndpoint=http://127.0.0.1:{to}/{_ACCOUNT};"
        return f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_ACCOUNT_KEY};{endpoint}"

    with (
        _running([*command, *options], port),
        fault_proxy(port, seed, lambda: (403, headers, body)) as proxy,
        BlobServiceClient.from_connection_string(connection(port)) as client,
    ):
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection(proxy.port))
        container = client.create_container(_BUCKET)

        def put(files: Mapping[str, bytes]) -> None:
            for path, data in files.items():
                container.upload_blob(path, data, overwrite=True)

        yield Faulty(f"az://{_BUCKET}", put, proxy)


@contextlib.contextmanager
def _hugging_face(patch: pytest.MonkeyPatch, folder: Path, seed: int) -> Iterator[Faulty]:
    import huggingface_hub.hf_api
    from huggingface_hub import constants

    headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
    with hub_server(patch, folder) as hub, fault_proxy(hub.port, seed, lambda: (401, headers, b"")) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        for name, value in {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}.items():
            patch.setenv(name, value)  # for the decode workers
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
        repo = hub.repos["org/images"] = Repo()
        lock, files = threading.Lock(), dict[str, bytes]()

        def put(new: Mapping[str, bytes]) -> None:
            with lock:
                files.update(new)
                repo.commit(files)

        yield Faulty("hf://org/images", put, proxy)


class _Files(BaseHTTPRequestHandler):
    """A web server of files with tags and ranges, and a page of links for each folder."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        path = unquote(self.path).lstrip("/")
        if path.endswith("/"):
            below = {name[len(path) :].partition("/") for name in list(self.files) if name.startswith(path)}
            links = sorted({f"{name}{slash}" for name, slash, _ in below})
            page = "".join(f'<a href="{html.escape(quote(link))}">{html.escape(link)}</a>\n' for link in links)
            self._send(200, page.encode(), {"Content-Type": "text/html"})
        elif (data := self.files.get(path)) is None:
            is_folder = any(name.startswith(f"{path}/") for name in list(self.files))
            self._send(301 if is_folder else 404, b"", {"Location": f"{self.path}/"} if is_folder else {})
        else:
            head = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if not first:
                self._send(200, data, head)
                return
            part = data[int(first) : int(last) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._send(206, part, {**head, "Content-Range": span})

    do_GET = do_HEAD

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextlib.contextmanager
def _http(patch: pytest.MonkeyPatch, folder: Path, seed: int) -> Iterator[Faulty]:
    pytest.importorskip("aiohttp")
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Files", (_Files,), {"files": files}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        with fault_proxy(int(server.server_address[1]), seed, lambda: (401, {}, b"")) as proxy:
            yield Faulty(f"http://127.0.0.1:{proxy.port}", files.update, proxy)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_OPENERS = dict(zip(NAMES, (_s3, _google, _azure, _hugging_face, _http), strict=True))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """Run a server until the end; it is ready once it accepts connections."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()
