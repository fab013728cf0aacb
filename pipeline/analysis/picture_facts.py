"""What an image is like regardless of what it shows: its size, contrast and sharpness.

Axes: N rows.
"""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.system import processor_count
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from pipeline.cache import Cache

    Floats = NDArray[np.float64]

_SIDE = 256
"""Larger images are reduced to this longer side: sharpness is then comparable between sizes, as seen on a screen."""
_CHUNK = 64


@dataclass(frozen=True)
class PictureFacts:
    """Facts on the images of N rows, NaN where an image cannot be read.

    Attributes
    ----------
    width, height : ndarray of shape (N,), float64
        Pixels of the file.
    contrast : ndarray of shape (N,), float64
        Standard deviation of the grey levels, of 255.
    sharpness : ndarray of shape (N,), float64
        Variance of the Laplacian over the variance of the grey levels; NaN without contrast too. Blur lowers it at any
        contrast, noise raises it.
    """

    width: Floats
    height: Floats
    contrast: Floats
    sharpness: Floats

    @property
    def there(self) -> NDArray[np.bool_]:
        """Whether each image could be read."""
        return np.isfinite(self.width)


def picture_facts(cache: Cache, rows: NDArray[np.int64]) -> PictureFacts:
    """Read the images of rows and measure them.

    Parameters
    ----------
    cache : Cache
        The cache whose images are read.
    rows : ndarray of shape (N,), int64
        Rows of the cache.
    """
    facts = np.full((len(rows), 4), np.nan)

    def fill(start: int) -> None:
        for n in range(start, min(start + _CHUNK, len(rows))):
            facts[n] = _facts_of(image_bytes(cache, int(rows[n])))

    # Warning filters belong to the process, and decoding sets and resets them: threads would interfere.
    with warnings.catch_warnings(), ThreadPoolExecutor(processor_count()) as threads:
        warnings.simplefilter("ignore")
        list(threads.map(fill, range(0, len(rows), _CHUNK)))
    return PictureFacts(*facts.T)


def _facts_of(data: bytes | None) -> tuple[float, float, float, float]:
    unknown = (np.nan, np.nan, np.nan, np.nan)
    if data is None:
        return unknown
    try:
        image = decode_image(data, DecodePolicy(), thumbnail=_SIDE)
        width, height = _size_of_file(data) or decode_image(data, DecodePolicy()).size
    except DecodeError:
        return unknown
    image.thumbnail((_SIDE, _SIDE))
    contrast, sharpness = contrast_and_sharpness(image)
    return width, height, contrast, sharpness


def _size_of_file(data: bytes) -> tuple[int, int] | None:
    """Return the size that the header states; None for formats that Pillow does not know."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.size
    except Exception:  # the image was decoded: another reader knows its size
        return None


def contrast_and_sharpness(image: Image.Image) -> tuple[float, float]:
    """Measure an image as it is, in grey; see `PictureFacts`.

    Examples
    --------
    >>> from PIL import Image
    >>> contrast_and_sharpness(Image.new("RGB", (8, 8), "white"))
    (0.0, nan)
    """
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    variance = float(grey.var())
    if variance == 0 or min(grey.shape) < 3:
        return variance**0.5, float("nan")
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return variance**0.5, float((laplacian**2).mean()) / variance
