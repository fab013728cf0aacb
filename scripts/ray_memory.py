"""Measure the memory of the driver of an extraction through Ray while it runs.

    python scripts/ray_memory.py FOLDER [--images 200000] [--every 10000]

Writes tiny images into tar shards, and embeds them with a network that costs next to nothing, on a cluster that is
started here. Prints the memory (RSS) of the driver.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from million import write_shards
from remote_memory import SHARDS, memory_mib
from torch import nn

from pipeline.embedding.ray import RayExecutor
from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract


def build() -> tuple[nn.Module, dict[str, Any]]:
    """Return the network and its preprocessing: the means of 4 × 4 patches."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    edges = {"resize": 16, "crop": 16, "interpolation": "bilinear"}
    return network, {**edges, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, options.images, SHARDS, 16)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    started, due = time.perf_counter(), 0

    def progress(ready: int, failed: int, total: int) -> None:
        nonlocal due
        if ready >= due or ready == total:
            due = ready + options.every
            print(f"{ready:8d} images {time.perf_counter() - started:7.0f} s  {memory_mib(0)[0]:6.0f} MiB", flush=True)

    cache = folder / "ray.h5"
    cache.unlink(missing_ok=True)
    run = RunSettings(engine="torch", device="cpu", precision="float32", batch_size=64, workers=1)
    settings = ExtractSettings(backbone="python:ray_memory:build", run=run)
    pattern = str(folder / f"shard-{{000..{SHARDS - 1:03d}}}.tar")
    summary = extract(pattern, cache, settings, executor=RayExecutor(), progress=progress, say=print)
    print(*summary.headlines(), sep="\n")


if __name__ == "__main__":
    main()
