"""PNG files: side data that Pillow takes for damage, and the depths that it does not keep."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from pipeline.decoding.errors import unsupported
from pipeline.decoding.orientation import orientation_in_xmp
from pipeline.decoding.samples import GREY, RGB, STRAIGHT, Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNATURE = 8
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP = b"XML:com.adobe.xmp\0"
_SMALL = 1000
"""A text of fewer bytes stays below Pillow's limit of 1 MiB, also when it is unpacked: deflate packs to 1/1032."""
MOST_TEXT = 1 << 20
_MOST_TEXTS = 32 << 20
"""Pillow refuses PNGs with longer texts, or more text in all; its own limits are these and 64 MiB."""
_MOST_XMP = 64 << 20


def check_standard_png(data: bytes) -> None:
    """Refuse the PNGs that Apple's tools make for iPhones: blue first, premultiplied, packed without a header.

    Raises
    ------
    DecodeError
        It is one.
    """
    if data[12:16] == b"CgBI":
        raise unsupported("PNG of Apple's tools for iPhones (CgBI): save it as an ordinary PNG")


def without_long_texts(data: bytes) -> bytes:
    """Return a PNG without texts and profiles that Pillow refuses to read; an orientation in them is kept."""
    kept, total, start = [], 0, 0
    for at, name, length in _chunks(data):
        if name not in _TEXT or length < _SMALL:
            continue
        content = memoryview(data)[at + 8 : at + 8 + length]
        size = _unpacked(name, content)
        total += size
        if size <= MOST_TEXT and total <= _MOST_TEXTS:
            continue
        kept += [data[start:at], _orientation_chunk(bytes(content))]
        start = at + 12 + length
    return b"".join([*kept, data[start:]]) if kept else data


def deep_png(data: bytes) -> Samples | None:
    """Return the samples of a PNG that Pillow does not read as they are: 16 bits, and keyed grey of fewer than 8.

    Pillow keeps the high bytes of 16-bit colours, and compares the transparent grey or colour with scaled values.
    """
    depth, colour_type = data[24], data[25]
    keyed = colour_type == 0 and depth < 8 and any(name == b"tRNS" for _, name, _ in _chunks(data))
    if depth != 16 and not keyed:
        return None
    import imagecodecs  # keeps it out of workers that meet no such PNG

    values = imagecodecs.png_decode(data)
    values = values[..., None] if values.ndim == 2 else values
    bands = values.shape[2]
    return Samples(
        values,
        65535 if values.dtype.itemsize == 2 else 255,
        GREY if bands < 3 else RGB,
        alpha=STRAIGHT if bands in (2, 4) else None,
    )


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (position, name, length) of each whole chunk."""
    at = _SIGNATURE
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield at, name, length
        at += 12 + length


def _unpacked(name: bytes, content: memoryview) -> int:
    """Return the length of a text, no further than `MOST_TEXT` says: enough to see that it is too long."""
    packed = _packed_part(name, bytes(content))
    if packed is None:
        return len(content)
    try:
        return len(zlib.decompressobj().decompress(packed, MOST_TEXT + 1))
    except zlib.error:
        return len(content)  # Pillow decides


def _packed_part(name: bytes, content: bytes) -> bytes | None:
    _keyword, _, rest = content.partition(b"\0")
    if name in (b"zTXt", b"iCCP"):
        return rest[1:]
    if name == b"iTXt" and rest[:1] == b"\1":
        parts = rest[2:].split(b"\0", 2)
        return parts[2] if len(parts) == 3 else None
    return None


def _orientation_chunk(content: bytes) -> bytes:
    """Return a short chunk with the orientation that a long XMP packet states, or nothing."""
    if not content.startswith(_XMP):
        return b""
    packed = _packed_part(b"iTXt", content)
    try:
        text = content if packed is None else zlib.decompressobj().decompress(packed, _MOST_XMP)
    except zlib.error:
        return b""
    orientation = orientation_in_xmp(text)
    if orientation == 1:
        return b""
    body = b"iTXt" + _XMP + b'\0\0\0\0tiff:Orientation="%d"' % orientation
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
