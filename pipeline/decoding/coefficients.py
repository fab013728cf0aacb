"""Which pixels a pass of a resize adds up, and with which of Pillow's integer coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISION_BITS = 32 - 8 - 2
"""Fractional bits of a coefficient: 8 of the 32 are the sample's, 2 keep the sum from overflowing."""
SUPPORT = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}
"""Radius of the filters, in pixels of the smaller image."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What one pass needs: pixels ``first`` to ``last`` of the source; ``starts`` (n,) count from ``first``."""

    first: int
    last: int
    starts: NDArray[np.int32]
    coefficients: NDArray[np.int32]


@lru_cache(maxsize=64)
def axis_of(length: int, resized: int, begin: int, end: int, least: int, resampling: Image.Resampling) -> Axis:
    """Return what the pixels ``begin`` to ``end`` of an axis need, with Pillow's coefficients.

    Those are measured: Pillow resizes impulses in 32-bit integers, where the result is the coefficient itself, in the
    rounding of 8-bit images. A row of the image has an impulse at every `taps`-th pixel, so that a pixel of the result
    sees one of them.
    """
    scale = length / resized
    support = SUPPORT[resampling] * max(scale, 1.0)
    taps = min(int(2 * support) + 4, length)
    impulses = np.zeros((taps, length), np.int32)
    places = np.arange(length)
    impulses[places % taps, places] = 1 << PRECISION_BITS
    responses = np.asarray(Image.fromarray(impulses).resize((resized, taps), resampling))
    wanted = np.arange(begin, end)
    starts = np.clip(np.floor((wanted + 0.5) * scale - support).astype(np.int64) - 1, 0, length - taps)
    there = responses[(starts[:, None] + np.arange(taps)) % taps, wanted[:, None]] != 0
    starts += there.argmax(axis=1)
    used = int((taps - there[:, ::-1].argmax(axis=1) - there.argmax(axis=1)).max())
    starts = np.minimum(starts, length - used)
    coefficients = responses[(starts[:, None] + np.arange(used)) % taps, wanted[:, None]]
    first, last = int(starts.min()), int(starts.max()) + used
    first = max(0, min(first, last - least))
    last = max(last, first + least)
    return Axis(first, last, (starts - first).astype(np.int32), np.ascontiguousarray(coefficients, np.int32))
