"""Measure the memory of an extraction from a remote store while it runs.

    python scripts/remote_memory.py FOLDER [--images 200000] [--every 10000] [--workers 2]

Writes tiny images into tar shards, serves them by HTTP on the loopback interface, and embeds them with a network that
costs next to nothing. Each image is a ranged request of its own. Prints the memory (RSS) of the main process, and that
of all its processes together, in which shared pages count several times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

from loopback import RequestServer, serve
from million import write_shards
from trivial_network import trivial_network

from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract

SHARDS = 10


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
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, options.images, SHARDS, 16)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(partial(FileServer, folder), sender), daemon=True
    )
    server.start()
    address = f"http://127.0.0.1:{receiver.recv()}/shard-{{000..{SHARDS - 1:03d}}}.tar"
    started, due = time.perf_counter(), 0

    def progress(ready: int, failed: int, total: int) -> None:
        nonlocal due
        if ready >= due or ready == total:
            due = ready + options.every
            own, together = memory_mib(server.pid or 0)
            seconds = time.perf_counter() - started
            print(f"{ready:8d} images {seconds:7.0f} s  {own:6.0f} MiB, all processes {together:6.0f} MiB", flush=True)

    cache = folder / "remote.h5"
    cache.unlink(missing_ok=True)
    with trivial_network(size=16, batch_size=64):
        summary = extract(
            address, cache, ExtractSettings(run=RunSettings(workers=options.workers)), progress=progress, say=print
        )
    server.terminate()
    print(*summary.headlines(), sep="\n")


if __name__ == "__main__":
    main()
