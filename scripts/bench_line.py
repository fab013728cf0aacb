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
import contextlib
import csv
import io
import os
import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from PIL import Image
from slow_line import slow_line
from source_variants import make_tars
from store_server import clients_at, store_server
from trivial_network import TrivialBackbone, TrivialEngine

from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

DISTINCT = 60


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
    address = f"http://127.0.0.1:{port}"
    with (folder / f"list-{port}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((f"{address}/files/folder/{name}", name.split("/")[0]) for name in names)]
        )
    with clients_at(port):
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
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with store_server(folder) as (port, _):
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
                        print(
                            f"{1000 * latency:4.0f} ms  {kind:14s} {rate:7.1f} images/s  {cpu:6.2f} ms CPU", flush=True
                        )
    print("\n| source | latency, ms | images/s | against the folder | CPU, ms per image |\n|---|---|---|---|---|")
    for (kind, latency), values in found.items():
        rate, cpu = (statistics.median(one) for one in zip(*values, strict=True))
        base = statistics.median(one for one, _ in found["local folder", latency])
        print(f"| {kind} | {1000 * latency:.0f} | {rate:.0f} | {rate / base:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
