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
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_OF_PIXELS = (b"tRNS", b"eXIf")
"""The ancillary chunks that decide what is seen."""
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
"""Keywords of the texts that may state an orientation."""
_MOST_TEXT = 1 << 20
"""Pillow refuses longer texts."""
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


def without_side_data(data: bytes) -> bytes:
    """Return a PNG without the chunks that decide neither pixels nor orientation, which Pillow refuses if damaged.

    Texts, profiles, dates and further frames go, whatever their length; so does EXIF with a wrong checksum.
    """
    kept: list[bytes | memoryview] = [data[:_SIGNATURE]]
    whole = memoryview(data)
    start, is_changed = _SIGNATURE, False
    for at, name, length in _chunks(data):
        start = at + 12 + length
        if name[:1].islower() and (name not in _OF_PIXELS or (name == b"eXIf" and not _is_intact(whole[at:start]))):
            kept.append(_orientation_alone(whole[at:start]))
            is_changed = True
        else:
            kept.append(whole[at:start])
        if name == b"IEND":
            break
    return b"".join([*kept, whole[start:]]) if is_changed else data


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


def _is_intact(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _orientation_alone(chunk: memoryview) -> bytes | memoryview:
    """Return what remains of a chunk that may state an orientation, or nothing."""
    name, content = bytes(chunk[4:8]), bytes(chunk[8:-4])
    keyword = content.partition(b"\0")[0]
    if name not in _TEXT or keyword not in (_XMP, _RAW_EXIF) or not _is_intact(chunk):
        return b""
    text = _text(name, content, _MOST_XMP)
    if text is None:
        return b""
    if keyword == _RAW_EXIF:
        return chunk if len(text) <= _MOST_TEXT else b""
    body = b"iTXt" + _XMP + b'\0\0\0\0\0tiff:Orientation="%d"' % orientation_in_xmp(text)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _text(name: bytes, content: bytes, most: int) -> bytes | None:
    """Return the beginning of a text, unpacked, or None if it is damaged."""
    rest = content.partition(b"\0")[2]
    flag, method, text = {
        b"tEXt": (b"\0", b"", rest),
        b"zTXt": (b"\1", rest[:1], rest[1:]),
        b"iTXt": (rest[:1], rest[1:2], rest[2:].split(b"\0", 2)[-1]),
    }[name]
    if flag == b"\0":
        return text
    try:
        return zlib.decompressobj().decompress(text, most) if method == b"\0" else None
    except zlib.error:
        return None
