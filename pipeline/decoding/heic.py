"""HEIC and HEIF photographs, where the extra `heic` is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.decoding.errors import check_size, unsupported

if TYPE_CHECKING:
    from PIL import Image


def read_heic(data: bytes, max_pixels: int) -> Image.Image:
    """Read the primary picture, upright: libheif applies the file's own rotation, and EXIF's does not count.

    Raises
    ------
    DecodeError
        The extra is not installed, or the picture is too large.
    """
    try:
        import pillow_heif  # an extra
    except ModuleNotFoundError:
        raise unsupported(
            "HEIC image: pip install 'embedding-pipeline[heic]' and extract with --retry-failed, or convert it to JPEG"
        ) from None
    try:
        file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    except ValueError:
        if b"meta" not in data and b"moov" in data:
            raise unsupported("HEIC film without a still picture: save a frame of it as PNG") from None
        raise
    check_size(file.size, max_pixels)
    image: Image.Image = file.to_pillow()
    return image
