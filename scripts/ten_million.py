"""Ten million rows through the cache: laid out, half written, killed, resumed, updated, verified; in shards, merged.

python scripts/ten_million.py /scratch/folder [--rows 10000000] [--width 8]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.merge import merge
from pipeline.cache.replace import lay_out, publish
from pipeline.cache.update import open_update
from pipeline.cache.verify import verify
from pipeline.core.items import ItemTable
from pipeline.core.shards import ShardRecord, items_sha256
from pipeline.core.spec import canonical_json, fingerprint

BATCH = 4096
CHANGED = 1000
SHARDS = 8


def items_of(rows: int, first: int = 0) -> ItemTable:
    """Return items ``first`` to ``first + rows``: a later first is an archive that lost some and gained some."""
    wanted = np.arange(first, first + rows)
    numbers = np.char.zfill(wanted.astype("S8"), 8)
    return ItemTable(
        keys=np.char.add(np.char.add(b"class/", numbers), b".jpg"),
        labels=(wanted % 10).astype(np.int32),
        label_names=tuple("0123456789"),
        sizes=np.full(rows, 1000, dtype=np.int64),
        mtimes_ns=wanted,
        columns={},
    )


def values(rows: np.ndarray, width: int) -> np.ndarray:
    return (rows[:, None] * 31 + np.arange(width)).astype(np.float32) % 1009


def create(path: Path, rows: int, width: int) -> None:
    lay_out(path, items_of(rows), widths={"penultimate": width}, dtype="float32", attributes=attributes_of(width))


def attributes_of(width: int) -> dict[str, str]:
    spec = {"backbone": "synthetic", "layers": [{"name": "penultimate", "width": width}], "dtype": "float32"}
    return {
        "spec": canonical_json(spec),
        "fingerprint": fingerprint(spec),
        "versions": "{}",
        "self_check": "{}",
        "source": canonical_json({"kind": "synthetic", "location": "none"}),
    }


def update(path: Path, rows: int, width: int) -> None:
    """Follow an archive that lost its first images and gained as many others."""
    target, plan, _ = open_update(
        path,
        items_of(rows, CHANGED),
        lambda asked: np.ones((len(asked), 16), dtype=np.uint8),
        dtype="float32",
        attributes=attributes_of(width),
    )
    assert plan is not None
    assert (plan.deleted, plan.added) == (CHANGED, CHANGED)
    fill(target, width, 2 * rows, first=CHANGED)
    publish(target, path)


def fill(path: Path, width: int, until: int, first: int = 0) -> None:
    """Write what is to do; at row ``until``, be killed."""
    todo = np.flatnonzero(open_cache(path).status == 0)
    writer = CacheWriter(path)
    for number, start in enumerate(range(0, len(todo), BATCH)):
        rows = todo[start : start + BATCH]
        hashes = np.zeros((len(rows), 16), dtype=np.uint8)
        hashes[:, :8] = (rows + 1).astype("<i8").view(np.uint8).reshape(-1, 8)
        writer.write(rows, {"penultimate": values(rows + first, width)}, hashes)
        if number % 32 == 31:
            writer.commit()
        if rows[-1] >= until:
            os.kill(os.getpid(), signal.SIGKILL)
    writer.close()


def check(path: Path, width: int, first: int) -> None:
    """Compare every row with its right value."""
    cache = open_cache(path)
    for start in range(0, len(cache), 1 << 18):
        rows = np.arange(start, min(start + (1 << 18), len(cache)))
        assert np.array_equal(cache.embeddings[rows], values(rows + first, width)), start


def shard_paths(path: Path) -> list[Path]:
    return [path.with_name(f"{path.stem}-{number}.h5") for number in range(1, SHARDS + 1)]


def write_shards(path: Path, rows: int, width: int) -> None:
    """Write the caches of a job array, one after the other."""
    whole = items_of(rows)
    sha256 = items_sha256(whole)
    for number, part in enumerate(shard_paths(path), 1):
        record = ShardRecord(number, SHARDS, rows, sha256)
        own = record.rows
        items = ItemTable(
            whole.keys[own], whole.labels[own], whole.label_names, whole.sizes[own], whole.mtimes_ns[own], columns={}
        )
        attributes = {**attributes_of(width), "shard": record.to_json()}
        lay_out(part, items, widths={"penultimate": width}, dtype="float32", attributes=attributes)
        fill(part, width, 2 * rows, first=own.start)


def step(name: str, path: Path, rows: int, width: int) -> None:
    """Do one step in this process."""
    if name == "create":
        create(path, rows, width)
    elif name == "write half, then kill -9":
        fill(path, width, rows // 2)
    elif name == "resume":
        fill(path, width, rows)
    elif name == "update":
        update(path, rows, width)
    elif name == "verify":
        assert verify(path).complete
    elif name == "compare with the right values":
        check(path, width, CHANGED)
    elif name == "write 8 shards":
        path.unlink()
        write_shards(path, rows, width)
    elif name == "open 8 shards as one":
        cache = open_cache(shard_paths(path))
        sample = np.random.default_rng(0).integers(0, rows, 1000)
        assert np.array_equal(cache.embeddings[sample], values(sample, width))
        assert (cache.status == 1).all()
    elif name == "merge 8 shards":
        merge(shard_paths(path), path)
    elif name == "compare the merged rows":
        check(path, width, 0)


STEPS = (
    "create",
    "write half, then kill -9",
    "resume",
    "update",
    "verify",
    "compare with the right values",
    "write 8 shards",
    "open 8 shards as one",
    "merge 8 shards",
    "compare the merged rows",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--step", choices=STEPS)
    options = parser.parse_args()
    path = options.folder / "ten_million.h5"
    if options.step:
        step(options.step, path, options.rows, options.width)
        return
    path.unlink(missing_ok=True)
    print(f"{options.rows} rows of width {options.width}")
    for name in STEPS:
        command = [
            sys.executable,
            __file__,
            str(options.folder),
            "--rows",
            str(options.rows),
            "--width",
            str(options.width),
        ]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--step", name])
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
        expected = -signal.SIGKILL if "kill" in name else 0
        seconds = time.perf_counter() - started
        print(f"{name:<30} {seconds:7.1f} s  {usage.ru_maxrss / 1024:7.0f} MiB peak", flush=True)
        if process.returncode != expected:
            sys.exit(f"expected exit code {expected} of '{name}', found {process.returncode}")
    print(f"file of {path.stat().st_size / 2**20:.0f} MiB, {int((open_cache(path).status == 1).sum())} rows done")
    for file in (path, *shard_paths(path)):
        file.unlink()


if __name__ == "__main__":
    main()
