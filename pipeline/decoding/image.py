"""Bytes → uint8 RGB, by one policy for orientation, transparency, depth, animation and size.

Needs Pillow and NumPy only: decode workers import this module and `pipeline.decoding.preprocess`, and start quickly.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.core.items import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

SNIFF_BYTES = 32
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The allow-list, in Pillow's names. JPEG includes the JPEGs of phones that hold a second picture (MPO)."""

PILLOW, GPU = JPEG_DECODERS = "pillow", "gpu"
GPU_BYTES, GPU_PIXELS = 2 << 20, 1 << 25
"""Pillow decodes larger JPEGs: they would take too much shared or device memory. Part of what defines the numbers."""
GPU_SHRINK = 1.45
"""Least reduction of a JPEG with subsampled colours: nvJPEG repeats the colours that other decoders interpolate."""
_END_OF_IMAGE = b"\xff\xd9"
ADOBE_YCBCR = 1

_MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
)


# EXIF orientation → the operation that makes the picture upright (TIFF 6.0, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(Exception):
    """An image that cannot be decoded, with the status of its row.

    Attributes
    ----------
    status : Status
        Which kind of failure.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


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
        ``"scale16"``: 16-bit samples are divided by 257 and rounded; 32-bit and float ones have no known range and
        fail.
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


def is_image(head: bytes) -> bool:
    """Return whether a file's first `SNIFF_BYTES` bytes are those of an allowed image format."""
    if head.startswith(_MAGIC):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return True
    return len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#"


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual metadata, which does not matter for the pixels
            image = Image.open(io.BytesIO(data), formats=policy.formats)
            _check_size(image, policy)
            if thumbnail is not None and image.format in ("JPEG", "MPO"):
                _draft(image, 2 * thumbnail)
            image.load()
            return _rgb(_upright(image))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        if is_image(data[:SNIFF_BYTES]):
            raise DecodeError(Status.CORRUPT, "its header is damaged, or its format is not allowed") from None
        raise DecodeError(Status.NOT_AN_IMAGE, "no image of an allowed format") from None
    except Image.DecompressionBombError as error:
        raise DecodeError(Status.TOO_LARGE, str(error)) from None
    except MemoryError:
        raise DecodeError(Status.OUT_OF_MEMORY, "not enough memory to decode it") from None
    except Exception as error:  # on damaged files Pillow's plugins raise many kinds of errors
        raise DecodeError(Status.CORRUPT, _reason(error)) from None


def is_plain_jpeg(data: bytes, policy: DecodePolicy, resize_short: int) -> bool:
    """Return whether every JPEG decoder gives nearly the pixels of `decode_image`.

    This requires a complete file of moderate size, in YCbCr, that no policy rotates, refuses or converts. Its colours
    are not subsampled, or the image is reduced enough afterwards, to a shorter side of ``resize_short`` pixels. Only
    the header is parsed; the decoder finds other damage.
    """
    if len(data) > GPU_BYTES or not data.endswith(_END_OF_IMAGE):  # Pillow refuses a truncated file
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = Image.open(io.BytesIO(data), formats=policy.formats)
            _check_size(image, policy)
            subsampled = len({component[1:3] for component in image.layer}) > 1
            return (
                image.format == "JPEG"
                and image.mode == "RGB"
                and image.width * image.height <= GPU_PIXELS
                and (not subsampled or min(image.size) >= GPU_SHRINK * resize_short)
                and [component[0] for component in image.layer] == [1, 2, 3]  # other components may be R, G and B
                and image.info.get("adobe_transform", ADOBE_YCBCR) == ADOBE_YCBCR
                and orientation_of(image) not in _TURNS
            )
    except Exception:  # `decode_image` raises it again, with its kind
        return False


def upright_rgb(image: Image.Image, policy: DecodePolicy) -> Image.Image:
    """Convert an open Pillow image as `decode_image` does: upright, RGB.

    Raises
    ------
    DecodeError
        It is too large or damaged, or its pixels have no known range.
    """
    try:
        _check_size(image, policy)
        image.load()
        return _rgb(_upright(image))
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError(Status.OUT_OF_MEMORY, "not enough memory to decode it") from None
    except Exception as error:  # Pillow reads the pixels now, see decode_image
        raise DecodeError(Status.CORRUPT, _reason(error)) from None


def _check_size(image: Image.Image, policy: DecodePolicy) -> None:
    if image.width * image.height > policy.max_pixels:
        raise DecodeError(
            Status.TOO_LARGE, f"{image.width} × {image.height} pixels, above the limit of {policy.max_pixels}"
        )


def _draft(image: Image.Image, shorter: int) -> None:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 while the shorter side keeps at least ``shorter`` pixels."""
    scale = min(image.width, image.height) / shorter
    if scale >= 2:
        # draft() takes the largest reduction that leaves both sides at least this large.
        image.draft("RGB", (int(image.width / scale), int(image.height / scale)))


def orientation_of(image: Image.Image) -> Any:
    """Return the EXIF orientation (TIFF 6.0, tag 274) of an open image; 1, upright, where it cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF blocks raise anything
        return 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = orientation_of(image)
    # Not ImageOps.exif_transpose, which also rewrites the EXIF block and fails where another tag of it is malformed.
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bit(image)
    if image.mode == "F":
        raise DecodeError(Status.UNSUPPORTED, "floating-point pixels have no known range; convert to 8 or 16 bit")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    wide: NDArray[Any] = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > 0xFFFF:
        raise DecodeError(Status.UNSUPPORTED, "32-bit pixels have no known range; convert to 8 or 16 bit")
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8), mode="L").convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
