"""Bytes → uint8 RGB, by one policy for orientation, transparency, depth, animation and size.

Needs Pillow and NumPy only: decode workers import this module and `pipeline.decoding.preprocess`, and start quickly.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.core.items import Status
from pipeline.decoding.bmp import without_runs
from pipeline.decoding.dicom import read_dicom
from pipeline.decoding.errors import DecodeError, check_size, first_words, unsupported
from pipeline.decoding.formats import DICOM, HEIC, SNIFF_BYTES, kind_of_image, unread_kind, what_it_is
from pipeline.decoding.heic import read_heic
from pipeline.decoding.jpeg2000 import deep_jpeg2000
from pipeline.decoding.orientation import TURNS, orientation_of, turned, upright
from pipeline.decoding.png import check_standard_png, deep_png, without_side_data
from pipeline.decoding.resample import MOST_RESIZED
from pipeline.decoding.samples import Samples
from pipeline.decoding.tiff import check_read_by_pillow, read_tiff

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The allow-list, in Pillow's names. JPEG includes the JPEGs of phones that hold a second picture (MPO)."""
BY_EXTRAS = (HEIC, DICOM)
"""Formats that an extra reads; they come with the allow-list, and are not in it, as it is part of the cache's spec."""

PILLOW, GPU = JPEG_DECODERS = "pillow", "gpu"
GPU_BYTES, GPU_PIXELS = 2 << 20, 1 << 25
"""Pillow decodes larger JPEGs: they would take too much shared or device memory. Part of what defines the numbers."""
GPU_SHRINK = 1.45
"""Least reduction of a JPEG with subsampled colours: nvJPEG repeats the colours that other decoders interpolate."""
_END_OF_IMAGE = b"\xff\xd9"
ADOBE_YCBCR = 1
_ADOBE_INKS = (0, 2)
"""What Adobe's marker says of four bands: CMYK, or the same as YCCK. Both are stored inverted."""
_SCALED_BY_PILLOW = ("PPM", "PNG")
"""Formats whose 16-bit samples Pillow returns in mode I, scaled to 65535 by the range that the header states."""
_UNREAD = re.compile(r"(?i)unsupported|not supported|cannot handle|unknown raw mode|unable to determine J2K image mode")


@dataclass(frozen=True, slots=True)
class DecodePolicy:
    """How bytes become pixels; every field is part of the cache's spec.

    Attributes
    ----------
    orientation : str
        ``"exif"``: the EXIF orientation is applied; one that cannot be read is ignored.
    background : str
        ``"white"``: the colour behind transparent pixels.
    depth : str
        ``"scale16"``: samples of up to 16 bits are scaled by their own range, 16-bit ones divided by 257 and rounded;
        signed, 32-bit and floating-point ones have no stated range and fail. See docs/sources.md for each format.
    frame : str
        ``"first"`` frame of an animation or page of a document.
    max_pixels : int
        Larger images fail before they are decoded.
    jpeg_decoder : str
        ``"pillow"``, or ``"gpu"``: the JPEGs that `is_plain_jpeg` knows are decoded and prepared on a CUDA device
        (`pipeline.decoding.gpu`), and all other images by Pillow.
    formats : tuple of str
        Pillow's names of the formats that are accepted.
    """

    orientation: str = "exif"
    background: str = "white"
    depth: str = "scale16"
    frame: str = "first"
    max_pixels: int = 200_000_000
    jpeg_decoder: str = PILLOW
    formats: tuple[str, ...] = FORMATS


def decode(data: bytes, policy: DecodePolicy = DecodePolicy()) -> NDArray[np.uint8]:
    """Decode one image.

    Parameters
    ----------
    data : bytes
        The encoded image.
    policy : DecodePolicy
        How.

    Returns
    -------
    (H, W, 3) uint8
        RGB, upright.

    Raises
    ------
    DecodeError
        The image has no allowed format, is damaged, or is too large.
    """
    return np.asarray(decode_image(data, policy))


def decode_image(data: bytes, policy: DecodePolicy, *, thumbnail: int | None = None) -> Image.Image:
    """Decode to an upright RGB Pillow image, the input of `pipeline.decoding.preprocess`.

    Parameters
    ----------
    data : bytes
        The encoded image.
    policy : DecodePolicy
        How.
    thumbnail : int, optional
        Side in pixels of a small picture to look at, which the image is reduced to afterwards: a JPEG is then decoded
        at 1/2, 1/4 or 1/8 while its shorter side keeps twice as many. Not for embeddings, which would change.

    Raises
    ------
    DecodeError
        As `decode`.
    """
    kind = _kind_of(data, policy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual metadata, which does not matter for the pixels
            return _READERS.get(kind, _by_pillow)(data, policy, thumbnail)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        reason = _unread_variant(kind, data)
        if reason:
            raise unsupported(reason) from None
        raise DecodeError(Status.CORRUPT, "its header is damaged, or of an unknown variant") from None
    except Image.DecompressionBombError as error:
        raise DecodeError(Status.TOO_LARGE, str(error)) from None
    except MemoryError:
        raise DecodeError(Status.OUT_OF_MEMORY, "not enough memory to decode it") from None
    except Exception as error:  # on damaged files the libraries raise many kinds of errors
        raise _failure(error) from None


def is_plain_jpeg(data: bytes, policy: DecodePolicy, resize_short: int) -> bool:
    """Return whether every JPEG decoder gives nearly the pixels of `decode_image`.

    This requires a complete file of moderate size, in YCbCr, that no policy rotates, refuses or converts. Its colours
    are not subsampled, or the image is reduced enough afterwards, to a shorter side of ``resize_short`` pixels, and the
    longer side does not become extreme. Only
    the header is parsed; the decoder finds other damage.
    """
    if len(data) > GPU_BYTES or not data.endswith(_END_OF_IMAGE):  # Pillow refuses a truncated file
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = Image.open(io.BytesIO(data), formats=policy.formats)
            check_size(image.size, policy.max_pixels)
            subsampled = len({component[1:3] for component in image.layer}) > 1
            return (
                image.format == "JPEG"
                and image.mode == "RGB"
                and image.width * image.height <= GPU_PIXELS
                and (not subsampled or min(image.size) >= GPU_SHRINK * resize_short)
                and [component[0] for component in image.layer] == [1, 2, 3]  # other components may be R, G and B
                and image.info.get("adobe_transform", ADOBE_YCBCR) == ADOBE_YCBCR
                and max(image.size) * resize_short**2 <= MOST_RESIZED * min(image.size)
                and orientation_of(image) not in TURNS
            )
    except Exception:  # `decode_image` raises it again, with its kind
        return False


def upright_rgb(image: Image.Image, policy: DecodePolicy) -> Image.Image:
    """Convert an open Pillow image as `decode_image` does: upright, RGB.

    Raises
    ------
    DecodeError
        It is too large or damaged, or its pixels have no stated range.
    """
    try:
        check_size(image.size, policy.max_pixels)
        if image.format == "TIFF" and hasattr(image, "tag_v2"):
            check_read_by_pillow(image.tag_v2.get)
        _check_inks(image)
        image.load()
        return _rgb(upright(image))
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError(Status.OUT_OF_MEMORY, "not enough memory to decode it") from None
    except Exception as error:  # Pillow reads the pixels now, see decode_image
        raise _failure(error) from None


def _kind_of(data: bytes, policy: DecodePolicy) -> str:
    """Return the format of a file that is read.

    Raises
    ------
    DecodeError
        It is of no such format; the reason says what it is.
    """
    kind = kind_of_image(data[:SNIFF_BYTES]) or unread_kind(data)
    if kind is None:
        raise DecodeError(Status.NOT_AN_IMAGE, what_it_is(data))
    if kind.remedy:
        raise unsupported(f"{kind.name}: {kind.remedy}")
    if kind.name not in policy.formats and not (kind.name in BY_EXTRAS and policy.formats == FORMATS):
        raise unsupported(f"{kind.name} is not among the formats of the cache's decode policy")
    return kind.name


def _by_pillow(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=policy.formats)
    check_size(image.size, policy.max_pixels)
    _check_inks(image)
    if thumbnail is not None and image.format in ("JPEG", "MPO"):
        _draft(image, 2 * thumbnail)
    image.load()
    return _rgb(upright(image))


def _check_inks(image: Image.Image) -> None:
    """Refuse a JPEG of four bands that does not say whether 0 is ink or paper, which Pillow takes for inverted."""
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK":
        if "adobe_transform" not in image.info:
            raise unsupported("JPEG of CMYK that does not say whether 0 is ink or paper: convert it to RGB")
        if image.info["adobe_transform"] not in _ADOBE_INKS:
            raise unsupported("JPEG of four bands whose marker says that they are three: convert it to RGB")


def _read_gif(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=policy.formats)
    check_size(image.size, policy.max_pixels)
    inside = image.tile[0][1] if image.tile else None
    image.load()
    found = _rgb(image)
    if inside is not None and inside != (0, 0, *image.size):  # around the frame Pillow fills in the first colour
        whole = Image.new("RGB", image.size, "white")
        whole.paste(found.crop(inside), inside)
        found = whole
    return turned(found, orientation_of(image))


def _read_png(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    check_standard_png(data)
    data = without_side_data(data)
    image = Image.open(io.BytesIO(data), formats=policy.formats)
    check_size(image.size, policy.max_pixels)
    deep = deep_png(data)
    if deep is None:
        image.load()
        return _rgb(upright(image))
    return turned(deep.rgb(), orientation_of(image))


def _read_tiff(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    found = read_tiff(data, policy.max_pixels)
    return _by_pillow(found, policy, thumbnail) if isinstance(found, bytes) else found


def _read_jpeg2000(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=policy.formats)
    check_size(image.size, policy.max_pixels)
    deep = deep_jpeg2000(data)
    if deep is not None:
        return deep.rgb()
    image.load()
    return _rgb(upright(image))


def _read_avif(data: bytes, policy: DecodePolicy, thumbnail: int | None) -> Image.Image:
    # Pillow knows some brands only, and libavif finds the others by itself.
    return _by_pillow(data[:8] + b"avif" + data[12:], policy, thumbnail)


_READERS: dict[str, Callable[[bytes, DecodePolicy, int | None], Image.Image]] = {
    "PNG": _read_png,
    "GIF": _read_gif,
    "BMP": lambda data, policy, thumbnail: _by_pillow(without_runs(data, policy.max_pixels), policy, thumbnail),
    "TIFF": _read_tiff,
    "JPEG2000": _read_jpeg2000,
    "AVIF": _read_avif,
    HEIC: lambda data, policy, thumbnail: _rgb(read_heic(data, policy.max_pixels)),
    DICOM: lambda data, policy, thumbnail: read_dicom(data, policy.max_pixels),
}
"""Formats with a reader of their own; all others are Pillow's."""


def _failure(error: Exception) -> DecodeError:
    """Distinguish what a library does not read, and a library that is not there, from damaged files."""
    text = first_words(error)
    if isinstance(error, ImportError):
        return unsupported(f"{text}: repair the installation, and extract with --retry-failed")
    return unsupported(f"{text}: save it again as PNG") if _UNREAD.search(text) else DecodeError(Status.CORRUPT, text)


def _unread_variant(kind: str, data: bytes) -> str:
    """Return the reason for a sound JPEG of a rare variant, whose header Pillow takes for damaged; or nothing."""
    if kind != "JPEG":
        return ""
    frame = re.search(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7])..(.)(..)..(.)", data, re.DOTALL)
    if frame is None:
        return ""
    bits, bands = frame[2][0], frame[4][0]
    if frame[1] == b"\xf7":
        return "JPEG-LS image: save it as PNG or TIFF"
    if frame[3] == b"\0\0":
        return "JPEG that states its height behind its pixels: save it as PNG or TIFF"
    return "" if bits == 8 and bands in (1, 3, 4) else f"JPEG of {bands} × {bits} bits: save it as PNG or TIFF"


def _draft(image: Image.Image, shorter: int) -> None:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 while the shorter side keeps at least ``shorter`` pixels."""
    scale = min(image.width, image.height) / shorter
    if scale >= 2:
        # draft() takes the largest reduction that leaves both sides at least this large.
        image.draft("RGB", (int(image.width / scale), int(image.height / scale)))


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image as Pillow read it, by its mode; `pipeline.decoding.table` states the outcome of each."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SCALED_BY_PILLOW):
        return Samples(np.asarray(image).astype(np.uint16)[..., None], 65535).rgb()
    if image.mode in ("I", "F"):
        what = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise unsupported(f"{what}, which have no stated range: convert it to 8 or 16 bit")
    if image.mode == "RGBA" and image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # writers that know no alpha leave zeros in its place
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")
