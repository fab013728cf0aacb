"""Extract the same images from stores that are far away, and compare the rates with that of the local folder.

    python scripts/bench_line.py FOLDER [--count 5000] [--rate 250] [--latency 0.05 0.3] [--bandwidth 100e6]
        [--kinds KIND ...] [--repeats 1]

Writes JPEGs of 96x96 to 500x375 into FOLDER, and serves them by HTTP and as S3, Google Cloud Storage and Azure, from
one small server behind `scripts/slow_line.py`. The network costs nothing but takes the time of ``--rate`` images/s, as
one on a GPU would; 0 takes none. So what is compared is whether reads keep up. Runs are interleaved; CPU is that of the
extraction with its workers, without the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import csv
import io
import json
import multiprocessing
import os
import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image
from remote_memory import FileServer
from slow_line import slow_line
from source_variants import make_tars
from trivial_network import TrivialBackbone, TrivialEngine

from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

DISTINCT = 60
WHEN, WHEN_HTTP = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"
ACCOUNT, KEY = "account", base64.b64encode(b"key").decode()
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
GOOGLE = "/storage/v1/b/"


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


def _serve(folder: Path, port: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: StoreServer(folder), "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class PacedEngine(TrivialEngine):
    """An engine that takes a time for each image and no processor."""

    in_flight = 1

    def __init__(self, batch_size: int, rate: float) -> None:
        super().__init__(batch_size)
        self._each, self._free_at = 1 / rate if rate else 0.0, 0.0

    def submit(self, images: NDArray[np.uint8]) -> Future[dict[str, NDArray[Any]]]:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + len(images) * self._each
        time.sleep(max(0.0, self._free_at - now))
        return super().submit(images)


def write_images(folder: Path, count: int) -> dict[str, bytes]:
    """Return JPEGs of many sizes by name, of smooth noise, which packs as photographs do."""
    random, made = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        width = int(random.integers(96, 501))
        small = random.integers(0, 256, (width // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
        file = io.BytesIO()
        size = (width, max(96, width * 3 // 4))
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
        made.append(file.getvalue())
    return {f"c{i % 10}/{i:06d}.jpg": made[i % DISTINCT] for i in range(count)}


def write_files(folder: Path, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        path = folder / "files" / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    make_tars(folder / "files" / "tars", images, 4)


@contextlib.contextmanager
def places(folder: Path, names: list[str], port: int) -> Iterator[dict[str, str]]:
    """Point every client at the server; yields what to call each kind."""
    import fsspec

    address = f"http://127.0.0.1:{port}"
    with (folder / f"list-{port}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((f"{address}/files/folder/{name}", name.split("/")[0]) for name in names)]
        )
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
    from pipeline.sources import store

    store._filesystem.cache_clear()
    with mock.patch.dict(os.environ, variables):
        yield {
            "http, table": str(folder / f"list-{port}.csv"),
            "http, tar": f"{address}/files/tars/shard-{{0..3}}.tar",
            "s3, folder": "s3://files/folder",
            "s3, tar": "s3://files/tars/shard-{0..3}.tar",
            "gs, folder": "gs://files/folder",
            "az, folder": "az://files/folder",
        }


def run(place: str, cache: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Return images/s, and processor seconds per thousand images."""
    cache.unlink(missing_ok=True)
    engine = PacedEngine(options.batch_size, options.rate)
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    with (
        mock.patch("pipeline.stages.extract.load_backbone", return_value=TrivialBackbone(224)),
        mock.patch("pipeline.embedding.executor.choose_engine", return_value=(engine, {"images": 0})),
    ):
        summary = extract(place, cache, ExtractSettings(run=RunSettings(workers=options.workers, precision="float32")))
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    if summary.computed != options.count:
        raise SystemExit(f"expected {options.count} images of {place}, found {summary}")
    cpu = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    return summary.computed / summary.seconds["loop"], 1000 * cpu / summary.computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.05, 0.3])
    parser.add_argument("--bandwidth", type=float, default=100e6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--kinds", nargs="*")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "indexes")
    images = write_images(folder, options.count)
    write_files(folder, images)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, sender), daemon=True)
    server.start()
    port = receiver.recv()
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        for latency in options.latency:
            with slow_line(port, latency, options.bandwidth) as slow, places(folder, list(images), slow) as kinds:
                every = {"local folder": str(folder / "files" / "folder"), **kinds}
                for kind, place in every.items():
                    if options.kinds and kind not in ("local folder", *options.kinds):
                        continue
                    try:
                        rate, cpu = run(place, folder / "cache.h5", options)
                    except Exception as error:
                        print(f"{kind}: {type(error).__name__}: {error}", flush=True)
                        continue
                    found.setdefault((kind, latency), []).append((rate, cpu))
                    print(f"{1000 * latency:4.0f} ms  {kind:14s} {rate:7.1f} images/s  {cpu:6.2f} ms CPU", flush=True)
    server.terminate()
    print("\n| source | latency, ms | images/s | against the folder | CPU, ms per image |\n|---|---|---|---|---|")
    for (kind, latency), values in found.items():
        rate, cpu = (statistics.median(one) for one in zip(*values, strict=True))
        base = statistics.median(one for one, _ in found["local folder", latency])
        print(f"| {kind} | {1000 * latency:.0f} | {rate:.0f} | {rate / base:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
