"""Resize and crop in one step, with the bits of the installed Pillow at a fraction of its cost.

Pillow resizes the whole image and stores four bytes per pixel. The functions of `pipeline.decoding.kernel` compute only
what the crop keeps, many samples at a time. Pillow stays the reference: it gives the coefficients, `load` compares the
kernel with it, and it resizes all images until the kernel repays the time it takes to load.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, __version__

from pipeline.decoding.coefficients import SUPPORT, Axis, axis_of
from pipeline.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.decoding.kernel import Kernel

    Order = Callable[[tuple[int, int], tuple[int, int]], bool]

REPAYS_S = 0.1
"""Seconds of resizing by Pillow after which the kernel is loaded: about as many as that takes."""
LEAST_WIDTH, LEAST_HEIGHT = 16, 8
"""Smaller images and crops are left to Pillow: the kernel's vectors are as large."""
MOST_RESIZED = 1 << 26
"""Pixels of the whole resized image; one of more is cropped first by Pillow, and resized from what the crop shows: that
of a long thin picture would fill the memory."""


BLACK = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A resize followed by a crop.

    Attributes
    ----------
    size : (int, int)
        Width and height after the resize.
    corner : (int, int)
        Left and top of the crop in the resized image; negative: of its padding.
    crop : (int, int)
        Height and width of the crop.
    resampling : PIL.Image.Resampling
    fill : (int, int, int)
        Colour of the padding.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    crop: tuple[int, int]
    resampling: Image.Resampling
    fill: tuple[int, int, int] = BLACK

    @property
    def kept_columns(self) -> tuple[int, int]:
        """First column of the resized image that the crop keeps, and the one after the last."""
        return max(self.corner[0], 0), min(self.corner[0] + self.crop[1], self.size[0])

    @property
    def kept_rows(self) -> tuple[int, int]:
        """The same for rows."""
        return max(self.corner[1], 0), min(self.corner[1] + self.crop[0], self.size[1])


def by_pillow(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    """Resize and crop an RGB image by Pillow, which defines the pixels: (H, W, 3) uint8."""
    if math.prod(geometry.size) > MOST_RESIZED:
        return _cropped_first(image, geometry)
    if geometry.size != image.size:
        image = image.resize(geometry.size, geometry.resampling)
    (left, top), (height, width) = geometry.corner, geometry.crop
    if (left, top, *image.size) != (0, 0, width, height):
        image = image.crop((left, top, left + width, top + height))  # outside the image: black, as torchvision pads
    return np.asarray(image)


def _cropped_first(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    """Resize only what the crop shows; rounds in another order than `by_pillow` at most."""
    (first, last), (top, bottom) = geometry.kept_columns, geometry.kept_rows
    across, down = image.width / geometry.size[0], image.height / geometry.size[1]
    box = first * across, top * down, last * across, bottom * down
    small = image.resize((last - first, bottom - top), geometry.resampling, box=box)
    left, above = min(geometry.corner[0], 0), min(geometry.corner[1], 0)
    height, width = geometry.crop
    return np.asarray(small.crop((left, above, left + width, above + height)))


class Resampler:
    """Resizes by Pillow first, and by the kernel once that repays its loading.

    Attributes
    ----------
    reason : str
        Why Pillow goes on, in a line, where the kernel cannot be used; empty otherwise.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._kernel: tuple[Kernel, Order] | None = None
        self._pillow_s = 0.0
        self._loading = threading.Lock()

    @property
    def repays(self) -> bool:
        """Whether `load` should be called now."""
        return self._pillow_s > REPAYS_S and self._kernel is None and not self.reason

    def load(self) -> None:
        """Compile the kernel and compare it with the installed Pillow; on any difference Pillow goes on."""
        with self._loading:
            if self._kernel is not None or self.reason:
                return
            try:
                from pipeline.decoding.kernel import compile_kernel  # few images do not repay its import

                kernel = compile_kernel()
                order = next((order for order in ORDERS if agrees(kernel, order)), None)
            except Exception as error:  # no llvmlite for this machine, or one that does not know it
                self.reason = f"resizing by Pillow, which is slower: {first_line(error)}"
                return
            if order is None:
                self.reason = f"resizing by Pillow, which is slower: Pillow {__version__} rounds in another way"
            else:
                self._kernel = kernel, order

    def apply(self, image: Image.Image | NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Resize and crop.

        Parameters
        ----------
        image : PIL.Image.Image, or (any, any, 4) uint8
            RGB; of an array's four bytes per pixel the last is ignored.
        geometry : Geometry

        Returns
        -------
        (H, W, 3) uint8
            The same by either implementation.
        """
        pixels = self._in_black(image, geometry)
        return pixels if geometry.fill == BLACK else _filled(pixels, geometry)

    def _in_black(self, image: Image.Image | NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Resize and crop; what lies outside the image is black."""
        if not fits(size_of(image), geometry):
            return by_pillow(_as_pillow(image), geometry)
        if self._kernel is not None:
            try:
                return by_kernel(*self._kernel, _as_array(image), geometry)
            except MemoryError:  # Pillow needs other memory, and says what is too much
                pass
        with self._timed():
            return by_pillow(_as_pillow(image), geometry)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        self._pillow_s += time.thread_time() - started


def _filled(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Colour what lies outside the image."""
    (first, last), (top, bottom), (left, above) = geometry.kept_columns, geometry.kept_rows, geometry.corner
    inside = slice(top - above, bottom - above), slice(first - left, last - left)
    if pixels[inside].shape == pixels.shape:
        return pixels
    out = np.empty_like(pixels)
    out[:] = geometry.fill
    out[inside] = pixels[inside]
    return out


RESAMPLER = Resampler()
"""That of this process."""


def by_kernel(kernel: Kernel, down_first: Order, pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize and crop pixels (any, any, 4) by the kernel: (H, W, 3) uint8."""
    (height, width), size, (left, top) = pixels.shape[:2], geometry.size, geometry.corner
    columns = axis_of(width, size[0], *geometry.kept_columns, LEAST_WIDTH, geometry.resampling)
    rows = axis_of(height, size[1], *geometry.kept_rows, LEAST_HEIGHT, geometry.resampling)
    whole = (len(rows.starts), len(columns.starts)) == geometry.crop
    out = (np.empty if whole else np.zeros)((*geometry.crop, 3), np.uint8)
    target = out[max(-top, 0) :, max(-left, 0) :]
    source = pixels[rows.first : rows.last, columns.first : columns.last]
    if down_first((width, height), size):
        between = np.empty((len(rows.starts), source.shape[1], 4), np.uint8)
        _down(kernel.down, source, rows, between)
        _across(kernel.across_rgb, between, columns, target)
    else:
        between = np.empty((source.shape[0], len(columns.starts), 4), np.uint8)
        _across(kernel.across, source, columns, between)
        _down(kernel.down_rgb, between, rows, target)
    return out


def across_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return False: Pillow up to 12 resizes rows before columns."""
    return False


def by_reduction(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow 13 resizes the columns first: where that removes more than twice as many pixels."""
    return size[1] > resized[1] and size[1] - resized[1] > 2 * (size[0] - resized[0])


ORDERS: tuple[Order, ...] = (by_reduction, across_first)


def agrees(kernel: Kernel, order: Order) -> bool:
    """Return whether the kernel gives the pixels of the installed Pillow in this order of the passes.

    The images are noise, small, and of sizes near those at which the order changes.
    """
    noise = np.random.default_rng(0)
    for number, (size, resized) in enumerate(_sizes_to_compare()):
        resampling = list(SUPPORT)[number % len(SUPPORT)]
        geometry = Geometry(resized, (2, 1), (resized[1] - 5, resized[0] + 3), resampling)
        pixels = noise.integers(0, 256, (size[1], size[0], 4), np.uint8)
        if not np.array_equal(by_kernel(kernel, order, pixels, geometry), by_pillow(_as_pillow(pixels), geometry)):
            return False
    return True


def _sizes_to_compare() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for width, height in ((64, 64), (39, 150), (150, 40)):
        for new_width in (width - 19, width + 21):
            edge = height - 2 * (width - new_width)
            for new_height in {edge - 1, edge, edge + 1, height - 1, height + 9}:
                if new_height - 5 >= LEAST_HEIGHT:
                    yield (width, height), (new_width, new_height)


def _across(function: Callable[..., None], source: NDArray[np.uint8], axis: Axis, out: NDArray[np.uint8]) -> None:
    rows, width = source.shape[:2]
    block = np.empty((width, 8), np.uint32)
    function(
        source.ctypes.data, source.strides[0], rows, width, block.ctypes.data, axis.starts.ctypes.data,
        axis.coefficients.ctypes.data, axis.coefficients.shape[1], len(axis.starts), out.ctypes.data, out.strides[0],
    )  # fmt: skip


def _down(function: Callable[..., None], source: NDArray[np.uint8], axis: Axis, out: NDArray[np.uint8]) -> None:
    function(
        source.ctypes.data, source.strides[0], source.shape[1], axis.starts.ctypes.data,
        axis.coefficients.ctypes.data, axis.coefficients.shape[1], len(axis.starts), out.ctypes.data, out.strides[0],
    )  # fmt: skip


def fits(size: tuple[int, int], geometry: Geometry) -> bool:
    """Return whether the kernel can resize an image of this width and height to what the crop keeps of it."""
    (left, right), (top, bottom) = geometry.kept_columns, geometry.kept_rows
    narrowest, lowest = min(size[0], right - left), min(size[1], bottom - top)
    large_enough = narrowest >= LEAST_WIDTH and lowest >= LEAST_HEIGHT
    return geometry.resampling in SUPPORT and large_enough and math.prod(geometry.size) <= MOST_RESIZED


def size_of(image: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """Return width and height."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def _as_pillow(image: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return Image.frombytes("RGB", size_of(image), np.ascontiguousarray(image), "raw", "RGBX")


def _as_array(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, Image.Image):
        return np.ascontiguousarray(image)
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)
