"""Small writers of image files, independent of the libraries that read them: TIFF, PNG, BMP and PNM by `struct`."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def packed_bits(values: Array, bits: int, order: str = ">") -> bytes:
    """Pack the samples of each row, (H, V) unsigned, most significant bit first; 8 and 16 bits in the byte order."""
    if bits in (8, 16, 32, 64):
        kind = values.dtype.kind if values.dtype.kind in "if" else "u"
        return values.astype(f"{order}{kind}{bits // 8}").tobytes()
    planes = (values[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


@dataclass
class Page:
    """A page of a TIFF: (H, W, S) samples and what its header says of them."""

    pixels: Array
    bits: int = 8
    photometric: int | None = None
    planar: bool = False
    form: int = 1
    extras: tuple[int, ...] | None = None
    deflate: bool = False
    predictor: bool = False
    tile: int = 0
    tags: dict[int, tuple[str, list[int]]] = field(default_factory=dict)
    nested: list[Page] = field(default_factory=list)


def tiff(*pages: Page, order: str = "<", big: bool = False) -> bytes:
    """Return a TIFF or BigTIFF of some pages."""
    mark = b"II" if order == "<" else b"MM"
    word = "Q" if big else "I"
    header = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    out = bytearray(mark + header + struct.pack(order + word, 0))
    link = len(out) - struct.calcsize(word)
    for page in pages:
        at, next_link = _write_page(out, page, order, word)
        struct.pack_into(order + word, out, link, at)
        link = next_link
    return bytes(out)


def _put(out: bytearray, data: bytes) -> int:
    out.extend(bytes(-len(out) % 8))
    at = len(out)
    out.extend(data)
    return at


def _write_page(out: bytearray, page: Page, order: str, word: str) -> tuple[int, int]:
    height, width, bands = page.pixels.shape
    encoded = _blocks(page, order)
    blocks = [_put(out, block) for block in encoded]
    nested = [_write_page(out, inner, order, word)[0] for inner in page.nested]
    photometric = (2 if bands >= 3 else 1) if page.photometric is None else page.photometric
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [page.bits] * bands),
        259: ("H", [8 if page.deflate else 1]),
        277: ("H", [bands]),
        284: ("H", [2 if page.planar else 1]),
        339: ("H", [page.form] * bands),
    }
    if photometric >= 0:
        tags[262] = ("H", [photometric])
    if page.tile:
        tags |= {322: ("I", [page.tile]), 323: ("I", [page.tile])}
        tags |= {324: (word, blocks), 325: (word, [len(block) for block in encoded])}
    else:
        tags |= {273: (word, blocks), 278: ("I", [height]), 279: (word, [len(block) for block in encoded])}
    if page.predictor:
        tags[317] = ("H", [2])
    if page.extras is not None:
        tags[338] = ("H", list(page.extras))
    if nested:
        tags[330] = (word, nested)
    return _write_tags(out, tags | page.tags, order, word)


def _write_tags(out: bytearray, tags: dict[int, tuple[str, list[int]]], order: str, word: str) -> tuple[int, int]:
    size = struct.calcsize(word)
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(order + kind * len(values), *values)
        raw = struct.pack(order + word, _put(out, raw)) if len(raw) > size else raw
        code = {"H": 3, "I": 4, "Q": 16}[kind]
        entries += struct.pack(order + "HH" + word, tag, code, len(values)) + raw.ljust(size, b"\0")
    at = _put(out, struct.pack(order + ("Q" if word == "Q" else "H"), len(tags)) + entries + bytes(size))
    return at, len(out) - size


def _blocks(page: Page, order: str) -> list[bytes]:
    """Return the encoded strips or tiles: per band where planar."""
    height, width, _ = page.pixels.shape
    parts = [page.pixels[..., i : i + 1] for i in range(page.pixels.shape[2])] if page.planar else [page.pixels]
    encoded = []
    for part in parts:
        side = page.tile
        tiles = [part]
        if side:
            padded = np.pad(part, ((0, -height % side), (0, -width % side), (0, 0)))
            tiles = [padded[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]
        for tile in tiles:
            if page.predictor:
                tile = np.concatenate([tile[:, :1], np.diff(tile, axis=1)], axis=1)  # modulo the type's range
            data = packed_bits(tile.reshape(len(tile), -1), page.bits, order)
            encoded.append(zlib.compress(data) if page.deflate else data)
    return encoded


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: Array, bits: int = 8, *further: bytes, colour_type: int | None = None) -> bytes:
    """Return a PNG of (H, W, S) samples: grey, grey and alpha, RGB or RGBA, or of indices (colour type 3)."""
    height, width, bands = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands] if colour_type is None else colour_type
    rows = packed_bits(pixels.reshape(height, -1), bits)
    step = len(rows) // height
    raw = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(further) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp(pixels: Array, bits: int, masks: tuple[int, ...] = (), *, top_down: bool = False, header: int = 40) -> bytes:
    """Return a BMP of packed values (H, W), each of 16, 24 or 32 bits."""
    height, width = pixels.shape
    raw = pixels.astype("<u4").view(np.uint8).reshape(height, width, 4)[..., : bits // 8].reshape(height, -1)
    raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 4)))
    body = (raw if top_down else raw[::-1]).tobytes()
    compression = 3 if masks else 0
    dib = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, len(body), 0, 0, 0, 0
    )
    words = struct.pack(f"<{len(masks)}I", *masks)
    dib = dib + words if header == 40 else (dib + words.ljust(16, b"\0") + b"BGRs").ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(dib) + len(body), 0, 0, 14 + len(dib)) + dib + body
