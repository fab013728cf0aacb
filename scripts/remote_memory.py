"""Measure the memory of an extraction from a remote store while it runs.

    python scripts/remote_memory.py FOLDER [--images 200000] [--every 10000] [--workers 2]
        [--store http|s3|gs|az]

Writes tiny images into tar shards, serves them on the loopback interface, and embeds them with a network that costs
next to nothing. Prints the memory (RSS) of the main process, and that
of all its processes together, in which shared pages count several times.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from million import write_shards
from store_server import clients_at, store_server
from trivial_network import trivial_network

from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract

SHARDS = 10
BUCKET = "tars"


def memory_mib(leave_out: int) -> tuple[float, float]:
    """Return the memory of this process and of it with all that descend from it, but for one."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            sizes[int(folder.name)] = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours - {leave_out}:
        ours |= more
    return sizes[os.getpid()] / 2**20, sum(sizes.get(process, 0) for process in ours) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", choices=["http", "s3", "gs", "az"], default="http")
    options = parser.parse_args()
    folder: Path = options.folder
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    write_shards(folder / BUCKET, options.images, SHARDS, 16)
    with store_server(folder) as (port, server), clients_at(port):
        place = f"http://127.0.0.1:{port}" if options.store == "http" else f"{options.store}:/"
        measure(f"{place}/{BUCKET}/shard-{{000..{SHARDS - 1:03d}}}.tar", folder, server.pid or 0, options)


def measure(address: str, folder: Path, leave_out: int, options: argparse.Namespace) -> None:
    """Embed the images and print the memory as it goes."""
    started, due = time.perf_counter(), 0

    def progress(ready: int, failed: int, total: int) -> None:
        nonlocal due
        if ready >= due or ready == total:
            due = ready + options.every
            own, together = memory_mib(leave_out)
            seconds = time.perf_counter() - started
            print(f"{ready:8d} images {seconds:7.0f} s  {own:6.0f} MiB, all processes {together:6.0f} MiB", flush=True)

    cache = folder / "remote.h5"
    cache.unlink(missing_ok=True)
    with trivial_network(size=16, batch_size=64):
        summary = extract(
            address, cache, ExtractSettings(run=RunSettings(workers=options.workers)), progress=progress, say=print
        )
    print(*summary.headlines(), sep="\n")


if __name__ == "__main__":
    main()
