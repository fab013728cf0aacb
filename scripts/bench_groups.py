"""Compare one answer per group with single rows, on groups of images of one class drawn from a cache.

``python scripts/bench_groups.py fashion.h5 --rows 4000 --size 5`` prints a line for each seed.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

import pipeline


def write_groups(path: Path, cache: pipeline.Cache, rows: int, size: int, seed: int) -> None:
    """Write a table of so many labelled rows in groups that share class and split."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(cache.labels)
    split = np.asarray(cache.columns["split"]) if "split" in cache.columns else np.full(len(labels), "")
    chosen = rng.permutation(np.flatnonzero(labels >= 0))[:rows]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "label", "item"])
        number = 0
        for label, side in sorted({(int(labels[row]), str(split[row])) for row in chosen}):
            its = chosen[(labels[chosen] == label) & (split[chosen] == side)]
            for start in range(0, len(its), size):
                for key in cache.keys_of(its[start : start + size]):
                    table.writerow([key, cache.label_names[label], f"item{number}"])
                number += 1


def main() -> None:
    """Fit with one answer per group, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--size", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "items.csv"
            write_groups(table, pipeline.open_cache(asked.cache), asked.rows, asked.size, seed)
            run = Path(folder) / "run"
            options = {"labels": str(table), "per": "item", "seed": seed, "C": [0.001, 0.01, 0.1], "report": False}
            result = pipeline.fit_head(asked.cache, run, verbose=False, **options)
        of_groups, pooling = result.metrics["test"]["per_group"], result.metrics["pooling"]
        losses = ", ".join(f"{entry['pooling']} {entry['loss']:.4f}" for entry in pooling["candidates"])
        figures = {name: of_groups[name] for name in ("single", "accuracy", "difference")}
        shown = ", ".join(f"{name} {f['value']:.4f} ({f['low']:.4f} to {f['high']:.4f})" for name, f in figures.items())
        print(f"seed {seed}: {shown}, {of_groups['groups']} groups; took {pooling['how']}; loss of {losses}")


if __name__ == "__main__":
    main()
