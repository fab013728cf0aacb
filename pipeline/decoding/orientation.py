"""Which way up a picture is: EXIF's and TIFF's tag 274."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

# EXIF orientation → the operation that makes the picture upright (TIFF 6.0, tag 274).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(image: Image.Image) -> Any:
    """Return the orientation that an image's metadata state; 1 where they cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF blocks raise anything
        return 1


def orientation_in_xmp(packet: Any) -> int:
    """Return the orientation that an XMP packet states, or 1."""
    found = _XMP.search(packet) if isinstance(packet, bytes) else None
    return int(found[1]) if found else 1


def turned(image: Image.Image, orientation: Any) -> Image.Image:
    """Return the image upright; an unknown orientation is ignored."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def turned_pixels(pixels: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    """Return pixels (H, W, any) upright, as `turned` does with a picture."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def upright(image: Image.Image) -> Image.Image:
    """Return the image upright, by its own metadata."""
    # Not ImageOps.exif_transpose, which also rewrites the EXIF block and fails where another tag of it is malformed.
    return turned(image, orientation_of(image))
