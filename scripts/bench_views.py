"""Compare heads on several views of every image with heads on one: accuracy, time of the extraction, bytes.

    python scripts/bench_views.py sample FASHION IMAGES [--train 3000] [--test 2000]   # of make_images.py fashion-mnist
    python scripts/bench_views.py crops PHOTOGRAPHS IMAGES                             # a set of photographs, see below
    python scripts/bench_views.py run IMAGES OUT [--rows 1000] [--seeds 3] [--backbone efficientnet_lite0] [--head H]

``crops`` makes a class of every photograph (at most 100, of a folder of any files): 12 crops of its left half to train
on and 12 of its right half to test on, of random places, sizes and shapes. Every seed of ``run`` draws its own training
images, as many of each class, and takes all test images. Differences are paired, with 95 % intervals over test images.
A cache that is already in OUT is kept.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import pipeline
from pipeline.fitting.compare import compare_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("flip", "5crop", "multiscale")
MOST_PHOTOGRAPHS, LEAST_EDGE, CROPS = 100, 1000, 12


def sample(source: Path, images: Path, counts: dict[str, int]) -> None:
    """Link as many images of every class of a data set with train and test folders."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        classes = sorted(entry for entry in (source / split).iterdir() if entry.is_dir())
        for entry in classes:
            folder = images / split / entry.name
            folder.mkdir(parents=True)
            files = sorted(entry.iterdir())
            for i in rng.permutation(len(files))[: count // len(classes)]:
                (folder / files[i].name).symlink_to(files[i].resolve())


def photographs(folder: Path) -> Iterator[Image.Image]:
    """Yield the large photographs of a folder."""
    found = 0
    for file in sorted(folder.rglob("*")):
        try:
            with warnings.catch_warnings(), Image.open(file) as opened:
                warnings.simplefilter("ignore")
                if min(opened.size) < LEAST_EDGE:
                    continue
                picture = opened.convert("RGB")
        except (OSError, Image.DecompressionBombError):
            continue
        yield picture
        found += 1
        if found == MOST_PHOTOGRAPHS:
            return


def crops(source: Path, images: Path) -> None:
    """Write crops of the halves of photographs, a class for each photograph."""
    rng = np.random.default_rng(0)
    for number, picture in enumerate(photographs(source)):
        width, height = picture.width // 2, picture.height
        for split, left in (("train", 0), ("test", width)):
            folder = images / split / f"photo{number:03d}"
            folder.mkdir(parents=True)
            for i in range(CROPS):
                w, h = (int(edge * rng.uniform(0.25, 0.7)) for edge in (width, height))
                x, y = left + int(rng.integers(width - w)), int(rng.integers(height - h))
                part = picture.crop((x, y, x + w, y + h))
                part.thumbnail((500, 500))
                part.save(folder / f"{i:02d}.jpg", quality=90)


def draw(cache: pipeline.Cache, table: Path, rows: int, seed: int) -> None:
    """Write labels of as many training images of every class, and of all test images."""
    rng, split, labels = np.random.default_rng(seed), np.asarray(cache.columns["split"]), np.asarray(cache.labels)
    kept = [np.flatnonzero(split == "test")]
    for label in range(len(cache.label_names)):
        its = np.flatnonzero((labels == label) & (split == "train"))
        kept.append(rng.permutation(its)[: rows // len(cache.label_names)])
    chosen = np.sort(np.concatenate(kept))
    with table.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["key", "label", "split"])
        for row, key in zip(chosen, cache.keys_of(chosen), strict=True):
            lines.writerow([key, cache.label_names[labels[row]], split[row]])


def run(images: Path, out: Path, rows: int, seeds: int, backbone: str, head: str) -> None:
    """Extract every kind of views, fit heads on it, and print what they reach."""
    out.mkdir(parents=True, exist_ok=True)
    caches = {}
    for kind in (None, *KINDS):
        path = caches[kind] = out / f"{kind or 'one'}.h5"
        summary = pipeline.extract(images, path, views=kind, backbone=backbone, verbose=False)
        rate = f"{summary.metrics['images_per_second']:.1f} images/s" if summary.metrics["computed"] else "done before"
        print(f"{kind or 'one view'}: {rate}, {path.stat().st_size} bytes", flush=True)
    gains: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        table = out / f"labels-{seed}.csv"
        draw(pipeline.open_cache(caches[None]), table, rows, seed)
        found = {}
        for kind, cache in caches.items():
            folder = out / f"run-{kind or 'one'}-{seed}"
            options = {"labels": str(table), "seed": seed, "head": head, "report": False, "verbose": False}
            result = pipeline.fit_head(cache, folder, **options)
            found[kind] = folder
            figures = result.metrics["test"]
            spent = sum(result.seconds.values())
            print(
                f"seed {seed}, {kind or 'one view'}: accuracy {figures['accuracy']['value']:.4f}, "
                f"log loss {figures['log_loss']['value']:.4f}, {spent:.1f} s",
                flush=True,
            )
        lines = compare_runs([found[None], *(found[kind] for kind in KINDS)])[1:]
        for kind, line in zip(KINDS, lines, strict=True):
            d = line.difference
            assert d is not None
            gains[kind].append(d.value)
            print(f"seed {seed}, {kind} − one view: {d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})", flush=True)
    for kind, values in gains.items():
        print(f"{kind}: mean difference {np.mean(values):+.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sample", "crops", "run"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--head", default="logistic")
    asked = parser.parse_args()
    if asked.what == "sample":
        sample(asked.source, asked.target, {"train": asked.train, "test": asked.test})
    elif asked.what == "crops":
        crops(asked.source, asked.target)
    else:
        run(asked.source, asked.target, asked.rows, asked.seeds, asked.backbone, asked.head)


if __name__ == "__main__":
    main()
