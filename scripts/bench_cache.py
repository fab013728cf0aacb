"""Measure the cache against the disk, and against plain chunked + gzip HDF5, .npy and Parquet.

    python scripts/bench_cache.py [--rows 100000] [--width 1280] [--folder DIR] [--repeats 3]

Write: the same rows through CacheWriter (checksums, hashes and a commit every 4096 rows included) against plain
sequential
writes of as many bytes with one fdatasync at the end. Read: sequentially, in shuffled minibatches of 256, and one
column. Repeats are interleaved; medians. The operating system's page cache is warm for all readers alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache import format as cache_format
from pipeline.core.items import ItemTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH = 256
COMMIT = 4096
SLOW = ("chunked + gzip HDF5", "Parquet")
SLOW_PART = 40
"""The slow readers get a fortieth of the minibatches, scaled up."""


def write_cache(path: Path, rows: NDArray[np.float32]) -> float:
    """Write a cache; return seconds, laying out not included (it is done once, before the first image)."""
    count = len(rows)
    items = ItemTable(
        np.array([b"%09d" % i for i in range(count)]),
        np.zeros(count, np.int32),
        ("one",),
        np.full(count, -1, np.int64),
        np.full(count, -1, np.int64),
        {},
    )
    attributes = {"spec": "{}", "fingerprint": "", "versions": "{}", "self_check": "{}", "source": "{}"}
    cache_format.create(path, items, widths={"penultimate": rows.shape[1]}, dtype="float32", attributes=attributes)
    hashes = np.zeros((COMMIT, 16), np.uint8)
    started = time.perf_counter()
    writer = CacheWriter(path)
    for start in range(0, count, COMMIT):
        part = rows[start : start + COMMIT]
        writer.write(np.arange(start, start + len(part)), {"penultimate": part}, hashes[: len(part)])
        writer.commit()
    writer.close()
    return time.perf_counter() - started


def write_plainly(path: Path, rows: NDArray[np.float32]) -> float:
    """Write the bytes to a reserved file in order; return seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, rows.nbytes)
    os.fsync(fd)
    started = time.perf_counter()
    for start in range(0, len(rows), COMMIT):
        os.pwrite(fd, memoryview(rows[start : start + COMMIT]).cast("B"), start * rows.strides[0])
    os.fdatasync(fd)
    os.close(fd)
    return time.perf_counter() - started


def timed(read: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def readers(folder: Path, rows: NDArray[np.float32]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Lay the other files out; return by format a reader of each kind."""
    count, width = rows.shape
    with h5py.File(folder / "gzip.h5", "w") as file:
        file.create_dataset("x", data=rows, chunks=(min(1024, count), width), compression="gzip", compression_opts=4)
    np.save(folder / "x.npy", rows)
    pq.write_table(pa.table({f"f{i}": rows[:, i] for i in range(width)}), folder / "x.parquet")
    order = np.random.default_rng(0).permutation(count)
    batches = [np.sort(order[i : i + BATCH]) for i in range(0, count, BATCH)]
    few = batches[: max(1, len(batches) // SLOW_PART)]
    cache = open_cache(folder / "cache.h5").embeddings
    npy = np.load(folder / "x.npy", mmap_mode="r")
    zipped = h5py.File(folder / "gzip.h5")["x"]

    def shuffled(array: Any, some: list[NDArray[np.int64]]) -> Callable[[], None]:
        return lambda: [np.asarray(array[batch]) for batch in some] and None

    def parquet_rows() -> None:
        table = pq.read_table(folder / "x.parquet")
        for batch in few:
            table.take(pa.array(batch)).num_rows  # noqa: B018

    return {
        "this cache": {
            "sequential": lambda: np.array(cache),
            "shuffled minibatches": shuffled(cache, batches),
            "one column": lambda: np.array(cache[:, 7]),
        },
        ".npy, mapped": {
            "sequential": lambda: np.array(npy),
            "shuffled minibatches": shuffled(npy, batches),
            "one column": lambda: np.array(npy[:, 7]),
        },
        "chunked + gzip HDF5": {
            "sequential": lambda: zipped[:],
            "shuffled minibatches": shuffled(zipped, few),
            "one column": lambda: zipped[:, 7],
        },
        "Parquet": {
            "sequential": lambda: pq.read_table(folder / "x.parquet"),
            "shuffled minibatches": parquet_rows,
            "one column": lambda: pq.read_table(folder / "x.parquet", columns=["f7"]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Embeddings after a ReLU: half of them zeros, so that gzip has something to do.
    rows = np.random.default_rng(0).standard_normal((arguments.rows, arguments.width), dtype=np.float32).clip(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        writes: dict[str, list[float]] = {"this cache": [], "plain sequential writes": []}
        for _ in range(arguments.repeats):
            (folder / "cache.h5").unlink(missing_ok=True)
            writes["this cache"].append(write_cache(folder / "cache.h5", rows))
            writes["plain sequential writes"].append(write_plainly(folder / "raw", rows))
            (folder / "raw").unlink()
        print(f"{len(rows)} × {rows.shape[1]} float32, {rows.nbytes / 1e6:.0f} MB\n\n| write | MB/s |\n|---|---|")
        for what, values in writes.items():
            print(f"| {what} | {rows.nbytes / 1e6 / statistics.median(values):.0f} |")
        ratios = [plain / ours for ours, plain in zip(*writes.values(), strict=True)]
        print(f"\nthis cache / plain: {statistics.median(ratios):.2f}\n")
        times: dict[tuple[str, str], list[float]] = {}
        kinds = readers(folder, rows)
        for _ in range(arguments.repeats):
            for form, reads in kinds.items():
                for kind, read in reads.items():
                    scale = SLOW_PART if kind == "shuffled minibatches" and form in SLOW else 1
                    times.setdefault((form, kind), []).append(timed(read) * scale)
        print(
            "| read, seconds (against this cache) | sequential | shuffled minibatches | one column |\n|---|---|---|---|"
        )
        for form in kinds:
            cells = []
            for kind in ("sequential", "shuffled minibatches", "one column"):
                seconds = statistics.median(times[form, kind])
                cells.append(f"{seconds:.3f} ({seconds / statistics.median(times['this cache', kind]):.1f}×)")
            print(f"| {form} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
