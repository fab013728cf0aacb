"""Compare the pixels of this program with each library's own reading of the same files.

python scripts/compare_readers.py FOLDER...

The library is tifffile for TIFF, pydicom for DICOM, pillow-heif for HEIC and Pillow for all others. Its reading is
brought to 8-bit RGB in the plainest way: upright, over white, samples of 16 bits divided by 257. What differs by more
than rounding is listed, and so is what only one of both reads.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from pipeline.decoding.errors import DecodeError
from pipeline.decoding.formats import SNIFF_BYTES, kind_of_image
from pipeline.decoding.image import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDING = 2
MOST_PIXELS = 50_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    counts: Counter[str] = Counter()
    for folder in options.folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            outcome, detail = compare(path.read_bytes())
            counts[outcome] += 1
            if outcome not in ("the same", "neither reads", "no image"):
                print(f"{outcome}\t{path.relative_to(folder)}\t{detail}")
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())), file=sys.stderr)
    return 0


def compare(data: bytes) -> tuple[str, str]:
    """Return how both readings compare, and details."""
    kind = kind_of_image(data[:SNIFF_BYTES])
    if kind is None:
        return "no image", ""
    try:
        found: NDArray[np.uint8] | None = decode(data)
        reason = ""
    except DecodeError as error:
        found, reason = None, f"{error.status.name.lower()}: {error}"
    try:
        other = _READERS.get(kind.name, by_pillow)(data)
    except Exception as error:
        return ("neither reads", reason) if found is None else ("only here", f"{type(error).__name__}: {error}"[:90])
    if found is None:
        return ("refused" if kind.remedy else "only there"), f"{kind.name}: {reason}"
    if found.shape != other.shape:
        return "other shape", f"{kind.name}: {found.shape} here, {other.shape} there"
    most = int(np.abs(found.astype(int) - other.astype(int)).max(initial=0))
    return ("the same", "") if most <= ROUNDING else ("differs", f"{kind.name}: by up to {most}")


def by_pillow(data: bytes) -> NDArray[Any]:
    """Read by Pillow, in any format that it knows."""
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST_PIXELS:
        raise ValueError("too large")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.repeat(np.rint(np.asarray(image) / 257)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no stated range")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def by_tifffile(data: bytes) -> NDArray[Any]:
    """Read the first page by tifffile, if it is grey or RGB of 8 or 16 bits."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.imagewidth * page.imagelength > MOST_PIXELS:
            raise ValueError("too large")
        if page.photometric not in (0, 1, 2) or page.extrasamples or 274 in page.tags:
            return by_pillow(data)
        values = page.asarray(squeeze=False)[:, 0]
    values = np.moveaxis(values[..., 0], 0, -1) if values.shape[0] > 1 else values[0]
    if values.dtype not in (np.uint8, np.uint16, np.bool_) or values.shape[2] not in (1, 3):
        raise ValueError(f"{values.dtype} of shape {values.shape} has no stated range or colour")
    top = (1 << page.bitspersample) - 1
    levels = np.rint(values * (255 / top))
    levels = 255 - levels if page.photometric == 0 else levels
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


def by_pillow_heif(data: bytes) -> NDArray[Any]:
    """Read by pillow-heif, as a plugin of Pillow."""
    import pillow_heif

    image = pillow_heif.open_heif(data).to_pillow()
    if image.mode == "I;16":
        return np.repeat(np.rint(np.asarray(image) / 257)[..., None], 3, axis=2)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def by_pydicom(data: bytes) -> NDArray[Any]:
    """Read the first frame by pydicom, with its own window, if it is grey; or its colours of 8 bits."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array

    dataset = pydicom.dcmread(io.BytesIO(data))
    values = pixel_array(dataset, index=0)
    if dataset.SamplesPerPixel == 3 and values.dtype == np.uint8:
        return np.asarray(values)
    if dataset.SamplesPerPixel != 1 or dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError("no plain reading")
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    if bits > 16:
        raise ValueError("no stated range")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if dataset.get("WindowWidth"):
        values = apply_windowing(apply_modality_lut(values, dataset), dataset)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    levels = np.rint((values.astype(float) - low) * (255 / (high - low)))
    levels = 255 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels
    return np.repeat(levels[..., None], 3, axis=2)


_READERS = {"TIFF": by_tifffile, "DICOM": by_pydicom, "HEIC": by_pillow_heif}

if __name__ == "__main__":
    sys.exit(main())
