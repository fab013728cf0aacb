"""BMP files in runs: Pillow misreads empty rows and moves, and takes pixels that are left out for damage."""

from __future__ import annotations

import struct

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError, check_size

_WITH_COMPRESSION = 40
"""Bytes of the shortest header that states a compression."""
_BITS = {1: 8, 2: 4}
"""Compression (RLE8, RLE4) → bits of an index."""
_END_OF_ROW, _END, _MOVE = 0, 1, 2


def without_runs(data: bytes, max_pixels: int) -> bytes:
    """Return a run-length encoded BMP as one of 8-bit indices; others as they are.

    Pixels that no run covers have the index 0.

    Raises
    ------
    DecodeError
        The picture is too large, or its runs are cut off.
    """
    if len(data) < 54:
        return data
    start, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    if header < _WITH_COMPRESSION or _BITS.get(compression) != bits or width <= 0 or height == 0:
        return data
    check_size((width, abs(height)), max_pixels)
    indices = _indices(data, start, bits, (width, abs(height)))
    padding = bytes(-width % 4)
    rows = b"".join(indices[at : at + width] + padding for at in range(0, len(indices), width))
    head = bytearray(data[:start])
    struct.pack_into("<HII", head, 28, 8, 0, len(rows))
    (colours,) = struct.unpack_from("<I", data, 46)
    struct.pack_into("<I", head, 46, colours or 1 << bits)
    return bytes(head) + rows


def _indices(data: bytes, at: int, bits: int, size: tuple[int, int]) -> bytes:
    """Return the indices of a picture of ``size`` (width, height), in the order of the file."""
    width, height = size
    found = bytearray(width * height)
    x = y = 0
    while y < height and at + 2 <= len(data):
        count, value = data[at : at + 2]
        at += 2
        if count:
            run = (bytes((value >> 4, value & 15)) * count)[:count] if bits == 4 else bytes((value,)) * count
        elif value == _END:
            return bytes(found)
        elif value == _END_OF_ROW:
            x, y = 0, y + 1
            continue
        elif value == _MOVE:
            right, up = data[at : at + 2].ljust(2, b"\0")
            x, y, at = x + right, y + up, at + 2
            continue
        else:  # indices as they are, up to a whole word
            length = -(-value * bits // 8)
            run = _unpacked(data[at : at + length], bits)[:value]
            at += length + length % 2
        run = run[: max(width - x, 0)]
        found[y * width + x : y * width + x + len(run)] = run
        x += len(run)
    if y < height - 1 or (y < height and x < width):
        raise DecodeError(Status.CORRUPT, "its runs end before the picture does")
    return bytes(found)


def _unpacked(packed: bytes, bits: int) -> bytes:
    return bytes(index for byte in packed for index in (byte >> 4, byte & 15)) if bits == 4 else packed
