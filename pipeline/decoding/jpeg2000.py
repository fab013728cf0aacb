"""JPEG 2000 files whose samples are not 8 bits: Pillow shifts them, and keeps the high bytes of colours."""

from __future__ import annotations

import struct

from pipeline.decoding.errors import unsupported
from pipeline.decoding.samples import GREY, RGB, STRAIGHT, Samples

_START = b"\xff\x4f\xff\x51"
_SRGB, _GREYSCALE = 16, 17


def deep_jpeg2000(data: bytes) -> Samples | None:
    """Return the samples of a file of other than 8 bits; None for one that Pillow reads as it is.

    Raises
    ------
    DecodeError
        Its samples are signed, differ in type, or have another meaning than grey, RGB and alpha.
    """
    at = data.find(_START)
    count = struct.unpack_from(">H", data, at + 40)[0] if at >= 0 and len(data) >= at + 42 else 0
    if not 0 < count <= 64 or len(data) < at + 42 + 3 * count:
        return None  # damaged: Pillow raises
    types = [tuple(data[at + 42 + 3 * i : at + 45 + 3 * i]) for i in range(count)]
    if any(kind & 0x80 for kind, _, _ in types):
        raise unsupported("JPEG 2000 of signed samples, which have no stated range: convert it to 8 or 16 bit")
    if count > 4:
        raise unsupported(f"JPEG 2000 of {count} bands: save the bands you need as RGB")
    if all(kind == 7 for kind, _, _ in types):
        return None
    bits = types[0][0] + 1
    header = data[:at]
    if len(set(types)) > 1 or types[0][1:] != (1, 1) or bits > 16 or b"pclr" in header or not _plain_colours(header):
        raise unsupported(f"JPEG 2000 of {bits} bits in a colour space or layout that is not read: save it as PNG")
    import imagecodecs  # keeps it out of workers that meet no such file

    values = imagecodecs.jpeg2k_decode(data)
    values = values[..., None] if values.ndim == 2 else values
    return Samples(values, (1 << bits) - 1, GREY if count < 3 else RGB, alpha=STRAIGHT if count in (2, 4) else None)


def _plain_colours(header: bytes) -> bool:
    """Return whether the colours are sRGB or grey: a bare codestream states none, and profiles are ignored."""
    at = header.find(b"colr")
    if at < 0 or header[at + 4 : at + 5] != b"\1":
        return True
    return int.from_bytes(header[at + 7 : at + 11], "big") in (_SRGB, _GREYSCALE)
