"""Prepare images by Pillow alone and as decode workers do: differing pixels, and processor time of each step.

    python scripts/bench_prepare.py [--size 500x375 --size 3000x2000] [--folder PHOTOGRAPHS] [--repeats 5]

Without a folder the images are crops of two photographs, as in bench_extract.py. The methods are interleaved, image by
image and repeat by repeat; times are those of this process's processor, so that other work on the machine matters
little, and the ratio least. The JPEG decoder is checked and the kernel loaded before, at a cost that is shown.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.decoding import jpeg
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image
from pipeline.decoding.preprocess import RESAMPLING, Preprocess
from pipeline.decoding.resample import RESAMPLER, Geometry, by_pillow
from pipeline.decoding.worker import prepare
from scripts.bench_extract import machine, make_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

PREPROCESS = Preprocess((256,), (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3)
POLICY = DecodePolicy()
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


def resized_by_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """Resize and crop by Pillow."""
    size = PREPROCESS.resized(*image.size)
    interpolation = RESAMPLING[PREPROCESS.interpolation]
    return by_pillow(image, Geometry(size, PREPROCESS.corner(*size), PREPROCESS.crop, interpolation))


def cost(work: Callable[[], NDArray[np.uint8]]) -> tuple[float, NDArray[np.uint8]]:
    """Return processor milliseconds of a call, and its result."""
    started = time.process_time()
    result = work()
    return (time.process_time() - started) * 1e3, result


def methods(data: bytes) -> dict[str, Callable[[], NDArray[np.uint8]]]:
    """Return the ways to prepare a file, and their parts."""
    image = decode_image(data, POLICY)
    pixels = jpeg.decode_plain(data, POLICY)
    found: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "Pillow": lambda: resized_by_pillow(decode_image(data, POLICY)),
        "a worker": lambda: prepare(data, POLICY, PREPROCESS),
        "Pillow, resize": lambda: resized_by_pillow(image),
        "a worker, resize": lambda: PREPROCESS.apply(image if pixels is None else pixels),
    }
    return found


def measure(name: str, files: Iterator[Path], repeats: int) -> None:
    """Print a row of the table for a set of files."""
    totals: list[dict[str, float]] = [defaultdict(float) for _ in range(repeats)]
    differing = count = 0
    for file in files:
        data = file.read_bytes()
        try:
            ways = methods(data)
        except DecodeError:
            continue
        count += 1
        expected = ways["Pillow"]()
        differing += int((ways["a worker"]() != expected).sum())
        for total in totals:
            for way, work in ways.items():
                total[way] += cost(work)[0]
    of = {way: statistics.median(total[way] / count for total in totals) for way in totals[0]}
    ratio = statistics.median(total["Pillow"] / total["a worker"] for total in totals)
    resize = statistics.median(total["Pillow, resize"] / total["a worker, resize"] for total in totals)
    print(
        f"| {name} | {count} | {differing} | {of['Pillow']:.2f} | {of['a worker']:.2f} | {ratio:.2f}× "
        f"| {of['Pillow, resize']:.2f} | {of['a worker, resize']:.2f} | {resize:.1f}× |",
        flush=True,
    )


def ready() -> None:
    """Check the decoder and load the kernel, and print what that costs."""
    checked, _ = cost(lambda: np.array(len(jpeg.unusable()), np.uint8))
    started = time.process_time()
    RESAMPLER.load()
    loaded = (time.process_time() - started) * 1e3
    print(f"checking the JPEG decoder: {checked:.0f} ms; loading the kernel: {loaded:.0f} ms")
    for reason in filter(None, (jpeg.unusable(), RESAMPLER.reason)):
        print(reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", default=[], metavar="WIDTHxHEIGHT")
    parser.add_argument("--folder", type=Path, help="photographs, in any sub-folder")
    parser.add_argument("--images", type=int, default=20, help="how many of each size")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    decode_image(_small_png(), POLICY)  # Pillow's own start
    print(machine())
    ready()
    print(
        "\n| images | count | differing pixels | Pillow, ms | a worker, ms | ratio | resize: Pillow, ms | a worker, ms "
        "| ratio |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in arguments.size or ([] if arguments.folder else ["500x375", "375x500", "3000x2000"]):
        width, height = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            make_images(Path(name), arguments.images, width, height)
            measure(size, iter(sorted(Path(name).iterdir())), arguments.repeats)
    if arguments.folder:
        found = (path for path in sorted(arguments.folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
        measure(str(arguments.folder.name), (path for path in found if path.is_file()), arguments.repeats)


def _small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
