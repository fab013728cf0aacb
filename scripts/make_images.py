"""Write labelled images that other packages ship as class folders of PNG files.

    python scripts/make_images.py digits data/digits
    python scripts/make_images.py fashion-mnist data/fashion-mnist [--idx /usr/share/datasets/fashion-mnist]

digits: the 1797 handwritten digits of scikit-learn (8 × 8). fashion-mnist: 70 000 images (28 × 28) from the IDX files
of the Debian package dataset-fashion-mnist, as train/CLASS and test/CLASS.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


def write_folders(root: Path, images: NDArray[np.uint8], names: list[str]) -> None:
    """Write image i to root/names[i]/i.png."""
    for folder in sorted(set(names)):
        (root / folder).mkdir(parents=True)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        Image.fromarray(image).save(root / name / f"{i:05d}.png", compress_level=1)


def digits(root: Path) -> None:
    """Write scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    write_folders(root, images, [str(label) for label in data.target])


def fashion_mnist(root: Path, idx: Path) -> None:
    """Write Fashion-MNIST from its IDX files."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(idx / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(idx / f"{prefix}-labels-idx1-ubyte.gz", 8)
        write_folders(root / split, images, [FASHION_CLASSES[label] for label in labels])


def read_idx(file: Path, header: int) -> NDArray[np.uint8]:
    """Return the bytes after the header of a gzipped IDX file."""
    if not file.is_file():
        raise SystemExit(
            f"expected {file}, found nothing: apt-get install dataset-fashion-mnist, or name its folder with --idx"
        )
    with gzip.open(file) as opened:
        return np.frombuffer(opened.read(), np.uint8, offset=header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["digits", "fashion-mnist"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--idx", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if folder.exists():
        return  # whole, since it appears under its name only when it is
    unfinished = folder.with_name(folder.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    if arguments.dataset == "digits":
        digits(unfinished)
    else:
        fashion_mnist(unfinished, arguments.idx)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
