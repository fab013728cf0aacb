"""Samples of a stated range → 8-bit RGB: the one arithmetic of depth, inversion and transparency.

Readers that get the samples as the file holds them (16-bit PNG, TIFF, JPEG 2000, DICOM) end here.

Axes: H W pixels, S samples of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY, RGB, CMYK = "grey", "RGB", "CMYK"
COLOURS = {GREY: 1, RGB: 3, CMYK: 4}
STRAIGHT, PREMULTIPLIED = "straight", "premultiplied"
_AT_ONCE = 1 << 20
"""Samples converted at a time; bounds the memory of wide types."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of an image, and what the header says about them.

    Attributes
    ----------
    values : (H, W, S) uint8 or uint16
        Colours first, then alpha where there is one; further samples are ignored.
    top : int
        The largest value of the type: 255 for 8 bits, 4095 for 12.
    colour : str
        ``"grey"``, ``"RGB"`` or ``"CMYK"``.
    inverted : bool
        0 is white.
    alpha : str or None
        ``"straight"``, or ``"premultiplied"`` where the colours hold the product; None for opaque.
    """

    values: NDArray[Any]
    top: int
    colour: str = GREY
    inverted: bool = False
    alpha: str | None = None

    def rgb(self) -> Image.Image:
        """Return the 8-bit RGB image, transparent pixels over white."""
        height, width, _ = self.values.shape
        count = COLOURS[self.colour]
        out = np.empty((height, width, count), np.uint8)
        rows = max(1, _AT_ONCE // max(1, width * (count + 1)))
        for start in range(0, height, rows):
            out[start : start + rows] = self._eight_bit(self.values[start : start + rows])
        if self.colour == GREY:
            return Image.fromarray(out[..., 0]).convert("RGB")
        if self.colour == RGB:
            return Image.fromarray(out)
        # Pillow 11.3 warns of the mode of fromarray, which would take the inks for RGBA.
        return Image.frombuffer("CMYK", (width, height), out, "raw", "CMYK", 0, 1).convert("RGB")

    def _eight_bit(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        count, top = COLOURS[self.colour], self.top
        colours: NDArray[Any] = values[..., :count].astype(np.uint32)
        if self.inverted:
            colours = top - colours
        if self.alpha is None:
            return ((colours * 255 + top // 2) // top).astype(np.uint8)
        alpha = values[..., count : count + 1].astype(np.float64)
        share = colours * (alpha / top) if self.alpha == STRAIGHT else colours
        over = np.minimum(share + (top - alpha), top)
        # Over nothing, which is 0 in CMYK's inks and white elsewhere.
        over = share if self.colour == CMYK else over
        return np.asarray(np.rint(over * (255 / top)), np.uint8)
