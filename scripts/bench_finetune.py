"""Compare fine-tuning with the frozen probe on Fashion-MNIST: accuracy, images/s and memory, also on shifted images.

    python scripts/bench_finetune.py FASHION OUT [--train 2000] [--test 10000] [--seeds 3] [--methods lp-ft gradual …]
        [--backbone efficientnet_lite0] [-- OPTIONS OF FINETUNE]

FASHION is what ``make_images.py fashion-mnist`` wrote. Every seed draws its own training images, as many of each class,
and is the seed of every method. All steps are the commands that users type: extract, fit-head, finetune, predict. The
shifted images are the test images turned by up to 15°, blurred and given noise (`shifted`), always the same ones. A
result that is already in OUT is kept: the same command goes on. Intervals are of the mean over seeds: 95 %, by drawing
test images; differences from the probe are paired, on the same images.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from bench_memory import SAMPLE_EVERY_S, tree_bytes
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

METHODS = {
    "head-only": ["--schedule", "head-only"],
    "lp-ft": ["--schedule", "lp-ft"],
    "gradual": ["--schedule", "gradual"],
    "random head": ["--schedule", "lp-ft", "--start", "random"],
}
LARGEST_TURN, BLUR, NOISE = 15.0, 0.5, 10.0
REPLICATES = 2000


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn a picture by up to 15° either way, blur it (σ 0.5 pixels) and add noise (σ 10 of 255)."""
    angle = rng.uniform(-LARGEST_TURN, LARGEST_TURN)
    changed = image.rotate(angle, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(BLUR))
    pixels = np.asarray(changed, dtype=np.float64) + rng.normal(0.0, NOISE, (image.height, image.width))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def sample(folder: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """Draw as many images of every class."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    chosen: list[Path] = []
    for entry in classes:
        files = sorted(entry.iterdir())
        picked = np.sort(rng.permutation(len(files))[: count // len(classes)])
        chosen += [files[i] for i in picked]
    return chosen


def write_images(fashion: Path, out: Path, train: int, test: int, seeds: int) -> None:
    """Write OUT/seed-N/images/{train,test}/CLASS and OUT/shifted/CLASS."""
    held_out = sample(fashion / "test", test, np.random.default_rng(0))
    for seed in range(seeds):
        folder = out / f"seed-{seed}" / "images"
        if folder.exists():
            continue
        drawn = sample(fashion / "train", train, np.random.default_rng(seed))
        for split, files in (("train", drawn), ("test", held_out)):
            for file in files:
                target = folder / split / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(file)
    if not (out / "shifted").exists():
        for file in held_out:
            target = out / "shifted" / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shifted(Image.open(file), np.random.default_rng(int(file.stem))).save(target, compress_level=1)


def pipeline(*arguments: str | Path) -> tuple[float, float]:
    """Run a command of ours; return its seconds and the peak of its proportional memory in GB."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    print("$", " ".join(command[2:]), flush=True)
    started, peak = time.perf_counter(), 0
    running = psutil.Popen(command)
    while running.poll() is None:
        try:
            peak = max(peak, tree_bytes(running))
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_EVERY_S)
    if running.wait():
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, peak / 1e9


def right(table: Path, split: str | None = None) -> NDArray[np.float64]:
    """Say of every image, in the order of their keys, whether its class was found: the folder in its key."""
    with table.open(encoding="utf-8", newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if split is None or row["split"] == split]
    rows.sort(key=lambda row: Path(row["key"]).parts[-2:])
    return np.array([float(row["predicted"] == Path(row["key"]).parent.name) for row in rows])


def interval(values: NDArray[np.float64]) -> list[float]:
    """Return the mean and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(REPLICATES)]
    return [float(values.mean()), *(float(q) for q in np.quantile(means, [0.025, 0.975]))]


def run_probe(folder: Path, out: Path, backbone: str, seed: int) -> None:
    if (folder / "probe.json").exists():
        return
    pipeline("extract", folder / "images", "-o", folder / "cache.h5", "--backbone", backbone)
    seconds, memory = pipeline("fit-head", folder / "cache.h5", "-o", folder / "probe", "--seed", str(seed))
    pipeline("predict", folder / "probe", out / "shifted", "-o", folder / "probe.csv")
    (folder / "probe.json").write_text(json.dumps({"seconds": seconds, "peak_gb": memory}))


def run_method(folder: Path, out: Path, name: str, seed: int, options: Sequence[str]) -> None:
    stem = name.replace(" ", "-")
    facts, run = folder / f"{stem}.json", folder / stem
    if facts.exists():
        return
    seconds, memory = pipeline(
        "finetune", folder / "cache.h5", folder / "probe", "-o", run, "--seed", str(seed), *METHODS[name], *options
    )
    pipeline("predict", run, out / "shifted", "-o", folder / f"{stem}.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    training = metrics["training"]
    rates = [entry["images_per_s"] for entry in training["history"][1:]]
    facts.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "peak_gb": memory,
                "images_s": float(np.median(rates)),
                "best_epoch": training["best_epoch"],
                "lr": training["lr"],
                "mix": metrics["mix"]["share"],
            }
        )
    )


def summary(out: Path, names: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Put the seeds together: accuracies with intervals, paired differences from the probe."""
    rows: list[dict[str, Any]] = []
    hits: dict[tuple[str, str], NDArray[np.float64]] = {}
    for name in names:
        stem = name.replace(" ", "-")
        folders = [out / f"seed-{seed}" for seed in range(seeds)]
        facts = [json.loads((folder / f"{stem}.json").read_text()) for folder in folders]
        row: dict[str, Any] = {"method": name}
        row |= {key: float(np.mean([fact[key] for fact in facts])) for key in facts[0]}
        for what, found in (
            ("test", np.stack([right(folder / stem / "predictions.csv", "test") for folder in folders])),
            ("shifted", np.stack([right(folder / f"{stem}.csv") for folder in folders])),
        ):
            hits[what, name] = found.mean(axis=0)
            row[what] = interval(hits[what, name])
            row[f"{what}_by_seed"] = [float(value) for value in found.mean(axis=1)]
            row[f"{what}_more_than_probe"] = interval(hits[what, name] - hits[what, "probe"])
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fashion", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("options", nargs="*", help="for pipeline finetune, behind --")
    arguments = parser.parse_args()
    out: Path = arguments.out
    write_images(arguments.fashion, out, arguments.train, arguments.test, arguments.seeds)
    for seed in range(arguments.seeds):
        folder = out / f"seed-{seed}"
        run_probe(folder, out, arguments.backbone, seed)
        for name in arguments.methods:
            run_method(folder, out, name, seed, arguments.options)
    rows = summary(out, ["probe", *arguments.methods], arguments.seeds)
    (out / "results.json").write_text(json.dumps(rows, indent=2))
    print(f"\n{arguments.train} training images, {arguments.test} test images, {arguments.seeds} seeds, "
          f"{arguments.backbone}, {os.cpu_count()} processors\n")  # fmt: skip
    print("| | test | more than the probe | shifted | more than the probe | images/s | minutes | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            "{:.4f} ({:.4f} to {:.4f})".format(*row["test"]),
            "{:+.4f} ({:+.4f} to {:+.4f})".format(*row["test_more_than_probe"]),
            "{:.4f} ({:.4f} to {:.4f})".format(*row["shifted"]),
            "{:+.4f} ({:+.4f} to {:+.4f})".format(*row["shifted_more_than_probe"]),
            f"{row['images_s']:.0f}" if "images_s" in row else "",
            f"{row['seconds'] / 60:.1f}",
            f"{row['peak_gb']:.1f}",
        ]
        print(f"| {row['method']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
