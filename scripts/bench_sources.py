"""Extract the same images from every kind of source: compare the caches row by row, and the rates with the folder's.

    python scripts/bench_sources.py IMAGES [--count 5000] [--repeats 3] [--backbone efficientnet_lite0 | --trivial]
        [--kinds KIND ...] [--no-s3] [--json FILE]

IMAGES is a folder with classes. Every kind is made from it below a temporary folder: tar shards, WebDataset, zip,
Parquet, HDF5, a table, a glob; on S3 (moto's server, in this process, which takes its share of the processors) and in
memory://. Kinds are interleaved, so that what else the machine does falls on all of them; the table gives medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
from source_variants import copy_to, make_files, read_folder, s3_server
from trivial_network import trivial_network

from pipeline import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract


def check_equal(found: Path, right: Path) -> None:
    """Compare rows, content hashes and labels."""
    ours, theirs = open_cache(found), open_cache(right)
    for what in ("embeddings", "content_hash", "labels"):
        if not np.array_equal(getattr(ours, what), getattr(theirs, what)):
            raise SystemExit(f"expected the {what} of {right.stem} in {found.stem}, found others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--trivial", action="store_true", help="a network that costs nothing")
    parser.add_argument("--kinds", nargs="*", help="only these, and the folder")
    parser.add_argument("--no-s3", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # One precision for all: were it chosen each time, the check on a few images would be part of the time.
    settings = ExtractSettings(backbone=options.backbone, run=RunSettings(precision="float32"))
    rates: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["XDG_CACHE_HOME"] = str(folder / "indexes")
        images = read_folder(options.images, options.count)
        places = make_files(folder / "files", images)
        places |= copy_to("memory://images", folder / "files")
        if not options.no_s3:
            places |= copy_to(stack.enter_context(s3_server()), folder / "files")
        if options.kinds:
            places = {kind: place for kind, place in places.items() if kind in ("folder", *options.kinds)}
        if options.trivial:
            stack.enter_context(trivial_network())
        for _ in range(options.repeats):
            for kind, place in places.items():
                path = folder / f"{kind.replace(' ', '-')}.h5"
                path.unlink(missing_ok=True)
                summary = extract(place, path, settings)
                if summary.computed != len(images):
                    raise SystemExit(f"expected {len(images)} images of {kind}, found {summary}")
                check_equal(path, folder / "folder.h5")
                rates.setdefault(kind, []).append(summary.computed / summary.seconds["loop"])
    base = statistics.median(rates["folder"])
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors"
    what = "trivial network" if options.trivial else options.backbone
    print(f"{len(images)} images, {what}, {options.repeats} runs of each, interleaved ({machine}); all rows equal\n")
    print("| source | images/s | against the folder |\n|---|---|---|")
    for kind, values in rates.items():
        print(f"| {kind} | {statistics.median(values):.0f} | {statistics.median(values) / base:.2f} |")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "network": what, "rates": rates}, indent=2))


if __name__ == "__main__":
    main()
