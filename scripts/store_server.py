"""One small server on the loopback interface that answers as S3, Google Cloud Storage, Azure and plain HTTP do.

It serves the files of a folder, each folder in it a bucket, and knows only what clients ask for to list and to read.
"""

from __future__ import annotations

import base64
import contextlib
import json
import multiprocessing
import os
from functools import partial
from typing import TYPE_CHECKING
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import RequestServer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess
    from pathlib import Path

WHEN, WHEN_HTTP = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"
ACCOUNT, KEY = "account", base64.b64encode(b"key").decode()
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
GOOGLE = "/storage/v1/b/"


@contextlib.contextmanager
def store_server(folder: Path) -> Iterator[tuple[int, BaseProcess]]:
    """Serve a folder from a process of its own; yields its port and the process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(partial(StoreServer, folder), sender), daemon=True
    )
    server.start()
    try:
        yield receiver.recv(), server
    finally:
        server.terminate()


@contextlib.contextmanager
def clients_at(port: int) -> Iterator[None]:
    """Point the clients of all stores at a port of this machine."""
    import fsspec

    from pipeline.sources import store

    address = f"http://127.0.0.1:{port}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={address}/{ACCOUNT};"
    )
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": address,
        "AZURE_STORAGE_CONNECTION_STRING": connection,
        "FSSPEC_GS_TOKEN": "anon",
    }
    for protocol in ("s3", "gs", "az", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    store._filesystem.cache_clear()
    with mock.patch.dict(os.environ, variables):
        yield


class FileServer(RequestServer):
    """Answers with the files of a folder, or ranges of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def answer(self, request: str) -> bytes:
        """Return a file or a part of it."""
        lines = request.split("\r\n")
        method, name, _ = lines[0].split(" ")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
        try:
            data = os.open(self._folder / name.lstrip("/"), os.O_RDONLY)
        except OSError:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        try:
            size = os.fstat(data).st_size
            start, stop = 0, size
            if "range" in fields:
                first, _, last = fields["range"].removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or size) + 1, size)
            status = (
                f"206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{size}"
                if stop - start < size
                else "200 OK"
            )
            answer = f'HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\nAccept-Ranges: bytes\r\nETag: "1"\r\n\r\n'
            return answer.encode() + (b"" if method == "HEAD" else os.pread(data, stop - start, start))
        finally:
            os.close(data)


class StoreServer(FileServer):
    """The files of a folder, as objects of a bucket that is a folder in it; only what clients ask for here."""

    def answer(self, request: str) -> bytes:
        line, _, rest = request.partition("\r\n")
        method, target, version = line.split(" ")
        url = urlsplit(target)
        path, query = unquote(url.path.removeprefix(f"/{ACCOUNT}")), parse_qs(url.query)
        if path.startswith(("/download" + GOOGLE, GOOGLE)):
            bucket, _, name = path.removeprefix("/download").removeprefix(GOOGLE).partition("/o")
            return self._google(bucket, name.lstrip("/"), query, f"{method} /{bucket}{name} {version}\r\n{rest}")
        if "list-type" in query or query.get("comp") == ["list"]:
            return self._list(path.strip("/"), query)
        if not (self._folder / path.lstrip("/")).is_file():
            return MISSING
        answer = super().answer(f"{method} {path} {version}\r\n{rest.replace('x-ms-range', 'Range')}")
        more = f"Last-Modified: {WHEN_HTTP}\r\nx-ms-blob-type: BlockBlob\r\nx-goog-generation: 1\r\n"
        return answer.replace(b"Accept-Ranges", more.encode() + b"Accept-Ranges", 1)

    def _files(self, bucket: str, query: dict[str, list[str]]) -> list[tuple[str, int]]:
        prefix = query.get("prefix", [""])[0]
        root = self._folder / bucket
        names = ((path, str(path.relative_to(root))) for path in sorted(root.rglob("*")) if path.is_file())
        return [(name, path.stat().st_size) for path, name in names if name.startswith(prefix)]

    def _google(self, bucket: str, name: str, query: dict[str, list[str]], request: str) -> bytes:
        def about(name: str, size: int) -> dict[str, str]:
            return {"name": name, "bucket": bucket, "size": str(size), "generation": "1", "updated": WHEN, "etag": "1"}

        if not name:
            items = [about(*one) for one in self._files(bucket, query)]
            return _whole(json.dumps({"kind": "storage#objects", "items": items}), "application/json")
        path = self._folder / bucket / name
        if query.get("alt") != ["media"]:
            if not path.is_file():
                return MISSING
            return _whole(json.dumps(about(name, path.stat().st_size)), "application/json")
        return self.answer(request)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        files = self._files(bucket, query)
        if "list-type" in query:
            parts = "".join(
                f"<Contents><Key>{name}</Key><LastModified>{WHEN}</LastModified><ETag>&quot;1&quot;</ETag>"
                f"<Size>{size}</Size></Contents>"
                for name, size in files
            )
            count = f"<KeyCount>{len(files)}</KeyCount><IsTruncated>false</IsTruncated>"
            return _whole(f"<ListBucketResult><Name>{bucket}</Name>{count}{parts}</ListBucketResult>")
        parts = "".join(
            f"<Blob><Name>{name}</Name><Properties><Last-Modified>{WHEN_HTTP}</Last-Modified><Etag>1</Etag>"
            f"<Content-Length>{size}</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, size in files
        )
        return _whole(
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{bucket}"><Blobs>{parts}</Blobs>'
            "<NextMarker /></EnumerationResults>"
        )


def _whole(text: str, kind: str = "application/xml") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
