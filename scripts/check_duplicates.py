"""Plant copies (resized, recompressed, cropped by 5 %) among images, look for duplicates, say what was found.

    python scripts/check_duplicates.py data/fashion data/fashion.h5 --work data/planted --sheet sheet.png

IMAGES is left as it is: it is linked into the work folder, and so is a copy of its cache. The sheet shows 50 of the
other pairs that were flagged, side by side, for a look at how many are twins.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
from PIL import Image

from pipeline import open_cache
from pipeline.analysis.duplicates import find_duplicates
from pipeline.sources.reopen import image_bytes

KINDS = ("resized", "recompressed", "cropped")


def plant(images: Path, folder: Path, count: int, seed: int) -> None:
    """Link all images into ``folder`` and put three copies of some beside them."""
    for path in images.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(images)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    rng = np.random.default_rng(seed)
    keys = sorted(path for path in folder.rglob("*") if path.is_file())
    for n in rng.choice(len(keys), min(count, len(keys)), replace=False):
        path = keys[n]
        image = Image.open(path)
        image.load()
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        width, height = image.size
        scale = rng.uniform(0.75, 2.0)
        image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC).save(
            path.with_name(f"{path.stem}_resized.png")
        )
        image.save(path.with_name(f"{path.stem}_recompressed.jpg"), quality=int(rng.integers(75, 96)))
        x, y = rng.uniform(0, 0.05, 2)
        box = (x * width, y * height, (x + 0.95) * width, (y + 0.95) * height)
        image.resize((round(width * 0.95), round(height * 0.95)), Image.Resampling.BICUBIC, box=box).save(
            path.with_name(f"{path.stem}_cropped.png")
        )


def original(key: str) -> tuple[str, str]:
    """Return the key without the mark of a copy, and the mark."""
    stem = key.rpartition(".")[0]
    for kind in KINDS:
        if stem.endswith(f"_{kind}"):
            return stem.removesuffix(f"_{kind}"), kind
    return stem, ""


def sheet(cache: object, pairs: np.ndarray, path: str) -> None:
    """Draw pairs side by side, ten in a row."""
    side, rows = 64, -(-len(pairs) // 10)
    page = Image.new("RGB", (10 * (2 * side + 8), rows * (side + 8)), "white")
    for n, pair in enumerate(pairs):
        for half, row in enumerate(pair):
            image = Image.open(io.BytesIO(image_bytes(cache, int(row)))).convert("RGB")  # type: ignore[attr-defined]
            page.paste(
                image.resize((side, side), Image.Resampling.NEAREST),
                (n % 10 * (2 * side + 8) + half * (side + 1), n // 10 * (side + 8)),
            )
    page.save(path)


@click.command(help=__doc__)
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.argument("cache", type=click.Path(exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="A folder for links, copies and cache.")
@click.option("--count", default=600, show_default=True, help="Images to copy.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threshold", type=float, help="Of pipeline duplicates.")
@click.option("--sheet", "sheet_path", default="sheet.png", show_default=True)
def main(images: Path, cache: str, work: Path, count: int, seed: int, threshold: float | None, sheet_path: str) -> None:
    if not (work / "images").exists():
        plant(images, work / "images", count, seed)
        shutil.copyfile(cache, work / "images.h5")
        subprocess.run(
            [sys.executable, "-m", "pipeline", "extract", str(work / "images"), "-o", str(work / "images.h5")],
            check=True,
        )
    opened = open_cache(work / "images.h5")
    started = time.perf_counter()
    found = find_duplicates(opened, threshold=threshold, say=print)
    print(
        f"{len(opened)} images in {time.perf_counter() - started:.1f} s, {found.exact} exact pairs, {found.near} near"
    )
    names = [original(str(key)) for key in opened.keys]
    group = dict(zip(found.rows.tolist(), found.table["group"].tolist(), strict=True))
    first = {stem: row for row, (stem, kind) in enumerate(names) if not kind}
    planted, hits = Counter(), Counter()
    for row, (stem, kind) in enumerate(names):
        if kind:
            planted[kind] += 1
            hits[kind] += row in group and group[row] == group.get(first[stem])
    for kind in KINDS:
        print(f"{kind:14s} {hits[kind]} of {planted[kind]} found: recall {hits[kind] / planted[kind]:.4f}")
    print(f"all            recall {hits.total() / planted.total():.4f}")
    others = np.array([pair for pair in found.pairs.tolist() if not (names[pair[0]][1] or names[pair[1]][1])])
    shown = np.random.default_rng(seed).permutation(others)[:50]
    print(f"{len(others)} other pairs; {len(shown)} of them are on {sheet_path}")
    sheet(opened, shown, sheet_path)


if __name__ == "__main__":
    main()
