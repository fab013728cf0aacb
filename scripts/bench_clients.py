"""Compare clients of stores: many small reads, by fsspec's implementation and by obstore.

    python scripts/bench_clients.py [--reads 400] [--latency 0 0.05 0.3] [--together 64]

A small server on the loopback interface answers every request for an object of S3, Google Cloud Storage, Azure or HTTP
with its bytes and the headers of a version, so that what is measured is the client. Reads are those of
`pipeline.sources.clients` from so many threads, and obstore's own with the same range and condition.
obstore belongs to the extras s3 and azure.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from loopback import RequestServer, serve
from slow_line import slow_line

from pipeline.sources.clients import Wanted, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

TAG = "0123456789abcdef"
SIZE = 100_000
GCS_EMPTY = ("client_email", "private_key", "private_key_id")
KEY = base64.b64encode(b"key").decode()


class ObjectServer(RequestServer):
    """Answers every GET and HEAD with a piece of the same object; nothing is checked."""

    def __init__(self) -> None:
        super().__init__()
        self._data = os.urandom(SIZE)

    def answer(self, request: str) -> bytes:
        """Return the piece, with the headers of all stores."""
        lines = request.lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        asked = fields.get("range") or fields.get("x-ms-range") or f"bytes=0-{SIZE - 1}"
        start, stop = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        part = self._data[start : stop + 1]
        head = (
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(part)}\r\n"
            f'Content-Range: bytes {start}-{stop}/{SIZE}\r\nETag: "{TAG}"\r\nx-goog-generation: 1\r\n'
            "Content-Type: application/octet-stream\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
            "x-ms-blob-type: BlockBlob\r\nAccept-Ranges: bytes\r\n\r\n"
        )
        return head.encode() + (b"" if lines[0].startswith("head") else part)


def _fsspec(protocol: str, address: str) -> Callable[[int], int]:
    import fsspec

    account = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={KEY};BlobEndpoint={address}/a;"
    settings: dict[str, dict[str, Any]] = {
        "s3": {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": address, "region_name": "us-east-1"}},
        "gs": {"token": "anon", "endpoint_url": address},
        "az": {"connection_string": account},
        "http": {},
    }
    fs = fsspec.filesystem(protocol, **settings[protocol])
    path = f"{address}/b/x" if protocol == "http" else "b/x"
    version = "1" if protocol == "gs" else TAG
    return lambda size: len(fetch(fs, protocol, Wanted(path, version, 0, size), 60.0).data)


def _obstore(protocol: str, address: str) -> Callable[[int], int]:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    plain: Any = {"allow_http": True}
    if protocol == "s3":
        store: Any = S3Store(
            "b", endpoint=address, access_key_id="k", secret_access_key="s", region="us-east-1", client_options=plain
        )
    elif protocol == "gs":
        key = json.dumps({"gcs_base_url": address, "disable_oauth": True, **dict.fromkeys(GCS_EMPTY, "")})
        store = GCSStore("b", service_account_key=key, client_options=plain)
    elif protocol == "az":
        store = AzureStore("b", account_name="a", account_key=KEY, endpoint=f"{address}/a", client_options=plain)
    else:
        store = HTTPStore.from_url(f"{address}/b", client_options=plain)
    condition = {} if protocol in ("http", "gs") else {"if_match": f'"{TAG}"'}
    return lambda size: len(store.get("x", options={"range": (0, size), **condition}).bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.05, 0.3])
    parser.add_argument("--together", type=int, default=64)
    options = parser.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(ObjectServer, sender), daemon=True)
    server.start()
    port = receiver.recv()
    sizes = [random.Random(0).randint(30_000, SIZE) for _ in range(options.reads)]
    print("| store | latency, ms | client | reads/s | CPU, ms per read |\n|---|---|---|---|---|")
    for latency in options.latency:
        with slow_line(port, latency) as slow, ThreadPoolExecutor(options.together) as threads:
            for protocol in ("s3", "gs", "az", "http"):
                for name, client in (("fsspec", _fsspec), ("obstore", _obstore)):
                    read = client(protocol, f"http://127.0.0.1:{slow}")
                    list(threads.map(read, sizes[: options.together]))  # connections are opened, modules loaded
                    started, before = time.perf_counter(), time.process_time()
                    if list(threads.map(read, sizes)) != sizes:
                        raise SystemExit(f"expected all bytes of {protocol} by {name}")
                    seconds, cpu = time.perf_counter() - started, time.process_time() - before
                    rate = f"{len(sizes) / seconds:.0f} | {1000 * cpu / len(sizes):.2f}"
                    print(f"| {protocol} | {1000 * latency:.0f} | {name} | {rate} |", flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
