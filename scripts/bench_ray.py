"""Measure extraction through Ray against the plain run, on the processors of this machine.

    python scripts/bench_ray.py IMAGES [--repeats 3] [--backbone efficientnet_lite0] [--actors 1]

Both embed the same images with the same engine and precision, one after the other in turn; a cluster is started here
and serves all of the Ray runs. The rate is that of the loop from its first rows to its last: the start of actors, which
costs seconds whatever the number of images, is given apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline import open_cache
from pipeline.embedding.executor import Executor, LocalExecutor
from pipeline.embedding.ray import RayExecutor
from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract


def measure(images: str, path: Path, backbone: str, executor: Executor) -> tuple[float, float, float]:
    """Return images/s between the first rows and the last, seconds until the first rows, seconds in all."""
    marks: list[tuple[float, int]] = []

    def progress(ready: int, failed: int, total: int) -> None:
        marks.append((time.perf_counter(), ready))

    started = time.perf_counter()
    settings = ExtractSettings(backbone=backbone, run=RunSettings(precision="float32"))
    extract(images, path, settings, executor=executor, progress=progress)
    first, last = next(mark for mark in marks if mark[1]), marks[-1]
    rate = (last[1] - first[1]) / (last[0] - first[0])
    return rate, first[0] - started, last[0] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--actors", type=int, default=0)
    arguments = parser.parse_args()
    RayExecutor()  # tells Ray to be quiet
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    found: dict[str, list[tuple[float, float, float]]] = {"plain": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.repeats):
            rows = []
            for name, executor in (("plain", LocalExecutor()), ("ray", RayExecutor(actors=arguments.actors))):
                path = Path(folder) / f"{name}{turn}.h5"
                found[name].append(measure(arguments.images, path, arguments.backbone, executor))
                print(
                    f"{name}: {found[name][-1][0]:.1f} images/s, first rows after {found[name][-1][1]:.1f} s",
                    flush=True,
                )
                rows.append(open_cache(path).embeddings)
            assert np.array_equal(*rows)
    ray.shutdown()
    print(f"\n{os.cpu_count()} processors, medians of {arguments.repeats}\n")
    print("| | images/s | against plain | first rows after | in all |\n|---|---|---|---|---|")
    base = statistics.median(rate for rate, _, _ in found["plain"])
    for name, runs in found.items():
        rate, first, whole = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"| {name} | {rate:.1f} | {rate / base:.2f} | {first:.1f} s | {whole:.1f} s |")


if __name__ == "__main__":
    main()
