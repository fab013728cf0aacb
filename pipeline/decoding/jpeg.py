"""Plain JPEGs decoded by libjpeg-turbo through simplejpeg: Pillow's pixels in less time.

Only files whose pixels no policy changes are decoded here. Pillow reads the header first, so that sizes, formats and
limits are judged as for any other file. A file with any warning of the decoder is left to Pillow, which then decides
its pixels or its failure.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, __version__

from pipeline.decoding.image import ADOBE_YCBCR, DecodePolicy
from pipeline.decoding.orientation import orientation_of, turned_pixels
from pipeline.errors import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START = b"\xff\xd8\xff"
_SAMPLINGS = {"4:4:4": [(1, 1)] * 3, "4:2:2": [(2, 1), (1, 1), (1, 1)], "4:2:0": [(2, 2), (1, 1), (1, 1)]}
"""Samples of each component across and down, per block; the three that `unusable` compares."""
_YCBCR, _GREY = [1, 2, 3], [1]
"""Numbers of the components; other numbers may stand for red, green and blue."""
KEPT_BYTES = 128 << 20
"""The most memory that is kept from one image to the next, in each thread."""
_NOTHING = np.empty(0, np.uint8)


class _Kept(threading.local):
    memory: NDArray[np.uint8] = _NOTHING


_KEPT = _Kept()


def decode_plain(data: bytes, policy: DecodePolicy) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG.

    Parameters
    ----------
    data : bytes
        Any file.
    policy : DecodePolicy

    Returns
    -------
    (H, W, 4) uint8, or None
        RGB and a byte that has no meaning, upright: the pixels of `pipeline.decoding.image.decode_image`. Valid until
        this thread's next call. None for every file that is to be decoded there.
    """
    pixels = _plain(data, policy) if data.startswith(_START) else None
    if pixels is None:
        _KEPT.memory = _NOTHING  # Pillow has all the memory that an image may take
    return pixels


def _plain(data: bytes, policy: DecodePolicy) -> NDArray[np.uint8] | None:
    try:
        if unusable():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header: Any = Image.open(io.BytesIO(data), formats=policy.formats)
        if not _is_plain(header) or header.width * header.height > policy.max_pixels:
            return None
        pixels = _decoded(data, header.size)
    except Exception:  # Pillow tells what is wrong
        return None
    return turned_pixels(pixels, orientation_of(header)) if pixels.shape[:2] == (header.height, header.width) else None


def why_pillow() -> str:
    """Return why Pillow has decoded all JPEGs so far, in a line; empty where none was decoded, or not by Pillow."""
    return unusable() if unusable.cache_info().currsize else ""


@cache
def unusable() -> str:
    """Return why Pillow has to decode all JPEGs; empty where simplejpeg, which has a libjpeg of its own, agrees."""
    try:
        for data in _examples():
            with Image.open(io.BytesIO(data)) as image:
                if not np.array_equal(_decoded(data, image.size)[..., :3], np.asarray(image.convert("RGB"))):
                    return f"decoding JPEGs by Pillow, which is slower: Pillow {__version__} decodes in another way"
    except MemoryError:  # it is this image that takes the memory: the next one asks again
        raise
    except Exception as error:  # no simplejpeg for this machine, or an encoder that Pillow lacks
        return f"decoding JPEGs by Pillow, which is slower: {first_line(error)}"
    return ""


def _decoded(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    from simplejpeg import decode_jpeg  # a platform may lack it

    pixels: NDArray[np.uint8] = decode_jpeg(
        data, "RGBX", fastdct=False, fastupsample=False, strict=True, buffer=_memory(4 * math.prod(size))
    )
    return pixels


def _memory(length: int) -> NDArray[np.uint8]:
    """Return memory for an image, the last one's if it is large enough: fresh pages cost a seventh of the decoding."""
    if length > KEPT_BYTES:
        return np.empty(length, np.uint8)
    if length > _KEPT.memory.nbytes:
        _KEPT.memory = _NOTHING  # before the new one is allocated
        _KEPT.memory = np.empty(length, np.uint8)
    return _KEPT.memory


def _is_plain(header: Any) -> bool:
    """Return whether the decoders cannot differ: 8 bits, grey or YCbCr, in a sampling that `unusable` compares."""
    numbers, samplings = [part[0] for part in header.layer], [part[1:3] for part in header.layer]
    if header.format not in ("JPEG", "MPO") or header.bits != 8 or "transparency" in header.info:
        return False
    if header.mode == "L":
        return numbers == _GREY and samplings == [(1, 1)]
    return (
        header.mode == "RGB"
        and numbers == _YCBCR
        and samplings in _SAMPLINGS.values()
        and header.info.get("adobe_transform", ADOBE_YCBCR) == ADOBE_YCBCR
    )


def _examples() -> list[bytes]:
    """Return small JPEGs of each kind, with edges, noise and sizes that end inside a block."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    image = Image.fromarray(noise).resize((75, 43), Image.Resampling.BICUBIC)
    files = []
    for sampling in _SAMPLINGS:
        for progressive in (False, True):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90, subsampling=sampling, progressive=progressive)
            files.append(file.getvalue())
    grey = io.BytesIO()
    image.convert("L").save(grey, "JPEG", quality=70)
    return [*files, grey.getvalue()]
