"""Index and extract a million tiny images in 100 tar shards, with a network that costs next to nothing.

    python scripts/million.py FOLDER [--images 1000000] [--shards 100] [--size 16] [--workers 2]

Says for each step its time, the peak memory of this process, and images/s; then where the time of extracting went. What
is measured is everything around a network: reading by offset, hashing, decoding, batches, checksums, writing.
"""

from __future__ import annotations

import argparse
import io
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from trivial_network import trivial_network

from pipeline.embedding.settings import RunSettings
from pipeline.sources import open_source
from pipeline.stages.extract import ExtractSettings, extract

PICTURES = 256


def pictures(size: int) -> list[bytes]:
    """Return PNGs of noise, ``size`` × ``size``."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(PICTURES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def write_shards(folder: Path, images: int, shards: int, size: int) -> int:
    """Write ``shard-000.tar`` and on; return their bytes. Only the name in a header changes, so it is patched."""
    made = pictures(size)
    templates = []
    for data in made:
        member = tarfile.TarInfo("class0/0000000.png")
        member.size = len(data)
        templates.append((bytearray(member.tobuf(tarfile.USTAR_FORMAT)), data + bytes(-len(data) % 512)))
    total = 0
    for shard, rows in enumerate(np.array_split(np.arange(images), shards)):
        with (folder / f"shard-{shard:03d}.tar").open("wb") as file:
            for row in rows.tolist():
                header, body = templates[row % PICTURES]
                header[:18] = b"class%d/%07d.png" % (row % 10, row)
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                file.write(header + body)
            file.write(bytes(1024))
            total += file.tell()
    return total


def say(what: str, seconds: float, images: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:<28} {seconds:7.1f} s  {images / seconds:9.0f} images/s  {peak:6.0f} MiB peak", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    total = write_shards(folder, options.images, options.shards, options.size)
    say(f"write {total / 2**20:.0f} MiB of shards", time.perf_counter() - started, options.images)
    pattern = str(folder / f"shard-{{000..{options.shards - 1:03d}}}.tar")
    for what in ("index", "index, kept"):
        started = time.perf_counter()
        found = len(open_source(pattern))
        say(what, time.perf_counter() - started, found)
    cache = folder / "million.h5"
    cache.unlink(missing_ok=True)
    settings = ExtractSettings(run=RunSettings(workers=options.workers))
    with trivial_network(size=options.size, batch_size=64):
        for what in ("extract", "extract again"):
            started = time.perf_counter()
            summary = extract(pattern, cache, settings)
            say(what, time.perf_counter() - started, summary.total)
            if summary.seconds.get("loop"):
                say("the loop of it", summary.seconds["loop"], summary.computed)
                print({name: round(value, 1) for name, value in summary.seconds.items()})
    if (summary.total, summary.failed) != (options.images, 0):
        raise SystemExit(f"expected {options.images} images and no failure, found {summary}")


if __name__ == "__main__":
    main()
