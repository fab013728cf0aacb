"""Every combination of container and mode, by independent writers: the same picture, or refused by name."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode, upright_rgb
from tests.decoding.writers import Page, bmp, chunk, png, tiff

Array = np.ndarray[Any, Any]
HEIGHT, WIDTH = 21, 34
_random = np.random.default_rng(5)
RGB = np.clip(
    np.linspace(0, 255, WIDTH)[None, :, None] + _random.normal(0, 40, (HEIGHT, WIDTH, 3)), 0, 255
).astype(np.uint8)  # fmt: skip
GREY = RGB[..., 1:2]
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).round().astype(np.uint8)


def at_depth(pixels: Array, bits: int) -> Array:
    """Return 8-bit values in the range of another depth."""
    top = (1 << bits) - 1
    return ((pixels.astype(np.uint32) * top + 127) // 255).astype(np.uint8 if bits <= 8 else np.uint16)


def eight_bit(values: Array, bits: int) -> Array:
    """Return what a depth leaves of a picture, by arithmetic with fractions."""
    return np.rint(values.astype(np.float64) * 255 / ((1 << bits) - 1)).astype(np.uint8)


def on_white(colours: Array, alpha: Array) -> Array:
    share = alpha.astype(float) / 255
    return np.rint(colours * share + 255 * (1 - share))


def three(pixels: Array) -> Array:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def check(data: bytes | bytearray, expected: Array, within: int = 0) -> None:
    found = decode(bytes(data)).astype(int)
    assert found.shape == expected.shape
    assert int(np.abs(found - expected).max()) <= within


def cmyk(inks: Array) -> Image.Image:
    return Image.frombytes("CMYK", (inks.shape[1], inks.shape[0]), inks.tobytes())


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_tifffile(pixels: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def refused(data: bytes | bytearray, *words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(bytes(data))
    assert caught.value.status == Status.UNSUPPORTED
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_every_depth_and_layout(bits: int, order: str) -> None:
    for bands, planar, inverted, big in itertools.product((1, 3), (False, True), (False, True), (False, True)):
        if bands == 3 and inverted:
            continue
        values = at_depth(GREY if bands == 1 else RGB, bits)
        expected = three(eight_bit(values, bits))
        stored = (1 << bits) - 1 - values if inverted else values
        for tile, deflate in ((0, False), (16, False), (0, True), (16, True)):
            page = Page(
                stored, bits, 0 if inverted else None, planar=planar and bands > 1, tile=tile, deflate=deflate
            )  # fmt: skip
            check(tiff(page, order=order, big=big), expected)
            if deflate and bits in (8, 16):
                page.predictor = True
                check(tiff(page, order=order, big=big), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_with_further_bands(bits: int, planar: bool) -> None:
    for colours, kind in itertools.product((GREY, RGB), ("ignored", "straight", "premultiplied", "two more")):
        wide, alpha = at_depth(colours, bits), at_depth(ALPHA, bits)
        expected = three(eight_bit(wide, bits)).astype(float)
        extras: tuple[int, ...] = {"ignored": (0,), "straight": (2,), "premultiplied": (1,), "two more": (2, 0)}[kind]
        further = [alpha, alpha] if kind == "two more" else [alpha]
        if kind != "ignored":
            expected = on_white(expected, eight_bit(alpha, bits))
        if kind == "premultiplied":
            top = (1 << bits) - 1
            wide = np.rint(wide.astype(float) * alpha / top).astype(wide.dtype)
        photometric = 1 if colours is GREY else 2
        data = tiff(Page(np.concatenate([wide, *further], axis=2), bits, photometric, planar=planar, extras=extras))
        if kind == "two more" and colours is GREY:
            refused(data, "3 bands")
        else:
            # Pillow divides 8-bit colours by their alpha and multiplies them again.
            check(data, expected, within=2 if kind == "premultiplied" and bits == 8 else 1)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma", "jpeg2000", "png", "webp"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_tiffs_of_tifffile(compression: str | None, kind: str) -> None:
    scale = 257 if kind == "u2" else 1
    lossless = {"lossless": True} if compression == "webp" else {}
    for bands, order in itertools.product((1, 3), "<>"):
        pixels = (GREY if bands == 1 else RGB).astype(kind) * scale
        if (compression == "webp" and (bands == 1 or kind == "u2")) or (
            compression in ("png", "jpeg2000") and order == ">"
        ):
            continue  # which the writer does not write
        photometric = "minisblack" if bands == 1 else "rgb"
        data = by_tifffile(
            pixels[..., 0] if bands == 1 else pixels, photometric=photometric, byteorder=order, compression=compression,
            compressionargs=lossless or None, metadata=None,
        )  # fmt: skip
        check(data, three(GREY if bands == 1 else RGB))


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u4", "u8", "f2", "f4", "f8", "c8"])
def test_tiff_types_without_a_stated_range_are_refused(kind: str) -> None:
    name = {"i": "signed", "u": "unsigned", "f": "floating", "c": "complex"}[kind[0]]
    refused(by_tifffile(np.zeros((8, 9), kind), photometric="minisblack"), name, f"{int(kind[1]) * 8}-bit")
    refused(by_tifffile(np.ones((8, 9, 3), kind), photometric="rgb"), name)


def test_tiff_of_unstated_meaning_is_refused() -> None:
    refused(tiff(Page(np.concatenate([RGB, RGB[..., :2]], axis=2), photometric=1, extras=(0,) * 4)), "5 bands")
    refused(tiff(Page(np.concatenate([RGB, ALPHA], axis=2))), "4 bands without a stated meaning")
    check(tiff(Page(np.concatenate([RGB, np.full_like(ALPHA, 255)], axis=2))), RGB)
    refused(tiff(Page(RGB, extras=(0, 0))), "2 of them")
    refused(tiff(Page(RGB, photometric=9)), "Lab")
    refused(tiff(Page(RGB, photometric=-1)), "does not say")
    refused(tiff(Page(np.concatenate([RGB, GREY], axis=2), photometric=5, tags={332: ("H", [2])})), "inks")
    refused(tiff(Page(GREY, photometric=32803)), "RAW")
    refused(tiff(Page(RGB, tags={50706: ("H", [1])})), "RAW")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_cmyk(bits: int, planar: bool) -> None:
    inks = np.concatenate([RGB, GREY // 3], axis=2)
    expected = np.asarray(cmyk(inks).convert("RGB"))
    check(tiff(Page(at_depth(inks, bits), bits, 5, planar=planar)), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_of_a_palette(bits: int) -> None:
    indices = at_depth(GREY, bits)
    colours = _random.integers(0, 256, (3, 1 << bits))
    expected = np.moveaxis(colours[:, indices[..., 0]], 0, -1)
    for scale in (256, 257, 1):  # some programs write 8-bit values
        table: list[int] = (colours * scale).ravel().tolist()
        for deflate in (False, True):
            check(tiff(Page(indices, bits, 3, tags={320: ("H", table)}, deflate=deflate)), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_picture_of_a_tiff_is_the_first_page_that_is_no_thumbnail(bits: int) -> None:
    wide = at_depth(RGB, bits)
    small = Page(wide[::3, ::3], bits, tags={254: ("I", [1])})
    old = Page(wide[::3, ::3], bits, tags={255: ("H", [2])})
    mask = Page(at_depth(GREY, bits), bits, tags={254: ("I", [4])})
    full, other = Page(wide, bits), Page(wide[::-1], bits)
    for big, order in itertools.product((False, True), "<>"):
        for pages in ([small, full], [old, full], [mask, small, full, other], [full, small], [full, other]):
            check(tiff(*pages, big=big, order=order), RGB)
        nested = Page(small.pixels, bits, tags=small.tags, nested=[full])
        check(tiff(nested, big=big, order=order), RGB)
        check(tiff(Page(wide, bits, nested=[small]), big=big, order=order), RGB)
        check(tiff(small, big=big, order=order), RGB[::3, ::3])  # alone it is the picture


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff(bits: int, orientation: int) -> None:
    straight = RGB if orientation < 5 else RGB.swapaxes(0, 1)
    mirrored = {0: (1, 1), 1: (1, -1), 2: (-1, -1), 3: (-1, 1)}[(orientation - 1) % 4]
    page = Page(at_depth(RGB, bits), bits, tags={274: ("H", [orientation])})
    check(tiff(page), straight[:: mirrored[0], :: mirrored[1]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_of_every_depth(bits: int) -> None:
    values = at_depth(GREY, bits)
    check(png(values, bits), three(eight_bit(values, bits)))
    key = int(values[3, 4, 0])
    keyed = np.where(values == key, 255, eight_bit(values, bits))
    check(png(values, bits, chunk(b"tRNS", struct.pack(">H", key))), three(keyed))
    if bits <= 8:
        colours = _random.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        data = png(values, bits, chunk(b"PLTE", colours.tobytes()), colour_type=3)
        check(data, colours[values[..., 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_colours_and_alpha(bits: int) -> None:
    rgb, grey, alpha = at_depth(RGB, bits), at_depth(GREY, bits), at_depth(ALPHA, bits)
    key = rgb[2, 3]
    keyed = np.where((rgb == key).all(axis=2, keepdims=True), 255, RGB)
    files = [
        (rgb, RGB, ()),
        (np.concatenate([rgb, alpha], axis=2), on_white(RGB, ALPHA), ()),
        (np.concatenate([grey, alpha], axis=2), on_white(three(GREY), ALPHA), ()),
        (rgb, keyed, (chunk(b"tRNS", struct.pack(">3H", *key.tolist())),)),
    ]
    for pixels, expected, further in files:
        check(png(pixels, bits, *further), expected, within=1)
        if not further:
            check(imagecodecs.png_encode(np.ascontiguousarray(pixels)), expected, within=1)
        if bits == 8 and not further:
            check(saved(Image.fromarray(pixels), "PNG"), expected, within=1)


def test_sixteen_bits_are_rounded_not_cut() -> None:
    values = _random.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    expected = eight_bit(values, 16)
    for data in (
        png(values, 16),
        tiff(Page(values, 16)),
        tiff(Page(values, 16, planar=True)),
        b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes(),
        imagecodecs.jpeg2k_encode(values, level=0, mct=False, codecformat="jp2"),
        imagecodecs.jpeg2k_encode(values, level=0, mct=False, codecformat="j2k"),
    ):
        check(data, expected)
    grey = values[..., :1]
    for data in (
        png(grey, 16),
        tiff(Page(grey, 16)),
        tiff(Page(65535 - grey, 16, 0)),
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + grey.astype(">u2").tobytes(),
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(grey[..., 0]), level=0, codecformat="jp2"),
        saved(Image.fromarray(grey[..., 0]), "PNG"),
        saved(Image.fromarray(grey[..., 0]), "TIFF"),
        saved(Image.fromarray(grey[..., 0]), "JPEG2000"),
    ):
        check(data, three(expected[..., :1]))


@pytest.mark.parametrize("top", [15, 255, 1023, 4095, 65535])
def test_pnm_of_every_range(top: int) -> None:
    values = ((RGB.astype(np.uint32) * top + 127) // 255).astype(np.uint16)
    expected = np.rint(values.astype(float) * 255 / top)
    kind = ">u2" if top > 255 else "u1"
    head = b"%d %d %d\n" % (WIDTH, HEIGHT, top)
    check(b"P6\n# a comment\n" + head + values.astype(kind).tobytes(), expected)
    check(b"P5\n" + head + values[..., :1].astype(kind).tobytes(), three(expected[..., :1]), within=int(top > 255))
    check(b"P3\n" + head + b" ".join(b"%d" % value for value in values.ravel()), expected)


@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
def test_jpeg2000_of_every_depth(bits: int) -> None:
    for pixels in (GREY[..., 0], RGB):
        values = at_depth(pixels, bits)
        data = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, mct=False, codecformat="jp2")
        expected = eight_bit(values, bits)
        check(data, three(expected if expected.ndim == 3 else expected[..., None]))


def test_jpeg2000_of_signed_samples_is_refused() -> None:
    refused(imagecodecs.jpeg2k_encode(GREY[..., 0].astype(np.int16), level=0), "signed")


def test_bmp_variants() -> None:
    red, green, blue = (RGB[..., i].astype(np.uint32) for i in range(3))
    packed = red << 16 | green << 8 | blue
    for top_down in (False, True):
        check(bmp(packed, 24, top_down=top_down), RGB)
        check(bmp(packed, 32, top_down=top_down), RGB)
        for header in (56, 108, 124):
            masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
            check(bmp(packed, 32, masks, top_down=top_down, header=header), RGB)  # alpha of zeros counts as none
            check(bmp(packed | 0xFF000000, 32, masks, top_down=top_down, header=header), RGB)
            alpha = ALPHA[..., 0].astype(np.uint32) << 24
            check(bmp(packed | alpha, 32, masks, top_down=top_down, header=header), on_white(RGB, ALPHA), within=1)
    five = RGB >> 3
    expected = (five.astype(int) * 255 / 31).astype(int)
    values = five.astype(np.uint32)
    packed = values[..., 0] << 10 | values[..., 1] << 5 | values[..., 2]
    check(bmp(packed, 16), expected, within=1)
    packed = values[..., 0] << 11 | (RGB[..., 1] >> 2).astype(np.uint32) << 5 | values[..., 2]
    expected[..., 1] = (RGB[..., 1] >> 2).astype(int) * 255 / 63
    check(bmp(packed, 16, (0xF800, 0x7E0, 0x1F)), expected, within=1)
    refused(bmp(packed, 16, (0xF00, 0xF0, 0xF)), "Unsupported BMP")


def in_runs(runs: bytes, bits: int, size: tuple[int, int], colours: Array) -> bytes:
    """Return a run-length encoded BMP."""
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    dib = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, 1 if bits == 8 else 2, len(runs), 0, 0, len(colours), 0)
    start = 14 + len(dib) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start) + dib + palette + runs


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_of_runs_that_leave_pixels_out(bits: int) -> None:
    colours = _random.integers(0, 256, (16, 3))
    five = 0x55 if bits == 4 else 5
    as_they_are = b"\0\3" + (b"\x12\x10" if bits == 4 else b"\1\2\1\0")
    for size in ((20, 9), (7, 300)):  # rows from the bottom up
        for runs, pixels in (
            (bytes((4, five, 0, 0)), {0: [5] * 4}),
            (bytes((4, five, 0, 2, 1, 3, 2, five)), {0: [5] * 4, 3: [0] * 5 + [5] * 2}),
            (as_they_are + bytes((0, 0, 2, five)), {0: [1, 2, 1], 1: [5, 5]}),
            (bytes((2, five, 0, 0, 0, 0, 255, five)), {0: [5] * 2, 2: [5] * size[0]}),
        ):
            indices = np.zeros((size[1], size[0]), int)
            for row, values in pixels.items():
                indices[-1 - row, : len(values)] = values
            check(in_runs(runs + b"\0\1", bits, size, colours), colours[indices])
            with pytest.raises(DecodeError) as caught:
                decode(in_runs(runs, bits, size, colours))
            assert caught.value.status == Status.CORRUPT


def test_animations_give_their_first_frame() -> None:
    first, other = Image.fromarray(RGB), Image.fromarray(RGB[::-1])
    for kind in ("PNG", "WEBP"):
        check(saved(first, kind, save_all=True, append_images=[other], duration=40, lossless=True), RGB)
    palette = first.quantize(200)
    data = saved(palette, "GIF", save_all=True, append_images=[other.quantize(200)], duration=40)
    check(data, np.asarray(palette.convert("RGB")))
    small = saved(first, "MPO", save_all=True, append_images=[other], quality=100, subsampling=0)
    check(small, np.asarray(Image.open(io.BytesIO(saved(first, "JPEG", quality=100, subsampling=0)))))


def test_jpegs_of_cmyk_and_rare_kinds() -> None:
    inks = cmyk(np.concatenate([RGB // 2, GREY // 4], axis=2))
    expected = np.asarray(inks.convert("RGB")).astype(int)
    found = decode(saved(inks, "JPEG", quality=100, subsampling=0)).astype(int)
    assert np.abs(found - expected).mean() < 3  # inverted, as Adobe writes it
    refused(imagecodecs.jpegls_encode(RGB), "JPEG-LS")
    refused(imagecodecs.jpeg8_encode(at_depth(GREY[..., 0], 12), bitspersample=12), "12 bits")


def with_adobe_transform(jpeg: bytes, transform: int | None) -> bytes:
    """Return a JPEG with another value in Adobe's marker, or without the marker."""
    at = jpeg.index(b"\xff\xee")
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + (b"" if transform is None else jpeg[at : end - 1] + bytes([transform])) + jpeg[end:]


def test_jpegs_of_cmyk_that_do_not_say_which_way_are_refused() -> None:
    pixels = np.concatenate([RGB, GREY], axis=2)
    data = saved(Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes()), "JPEG")
    refused(with_adobe_transform(data, None), "whether 0 is ink or paper")
    refused(with_adobe_transform(data, 1), "says that they are three")
    assert np.array_equal(decode(with_adobe_transform(data, 0)), decode(data))
    with pytest.raises(DecodeError, match="whether 0 is ink or paper"):
        upright_rgb(Image.open(io.BytesIO(with_adobe_transform(data, None))), DecodePolicy())


def part_of_a_gif(transparent: bool) -> bytes:
    """Return a GIF of 6 × 4 whose only frame is 2 × 1 at (3, 2), in colours 1 and 2, on background 3."""
    colours = bytes([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    screen = b"GIF89a" + struct.pack("<HHBBB", 6, 4, 0x81, 3, 0) + colours
    control = b"!\xf9\4\1\0\0\2\0" if transparent else b""
    frame = b"," + struct.pack("<HHHHB", 3, 2, 2, 1, 0) + b"\2"
    codes = 4 | 1 << 3 | 2 << 6 | 5 << 9  # clear, 1, 2, end, of 3 bits each
    return screen + control + frame + b"\2" + struct.pack("<H", codes) + b"\0;"


@pytest.mark.parametrize("transparent", [False, True])
def test_a_first_frame_that_is_a_part_of_the_picture_is_over_white(transparent: bool) -> None:
    expected = np.full((4, 6, 3), 255)
    expected[2, 3] = 200, 0, 0
    if not transparent:
        expected[2, 4] = 0, 200, 0
    check(part_of_a_gif(transparent), expected)


def test_png_of_iphones_is_refused() -> None:
    data = saved(Image.fromarray(RGB), "PNG")
    refused(data[:8] + chunk(b"CgBI", b"\x50\0\x20\6") + data[8:], "CgBI")


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_an_undefined_sample_format_counts_as_unsigned(order: str) -> None:
    for pixels, photometric in ((GREY, 1), (RGB, 2)):
        check(tiff(Page(pixels, 8, photometric, form=4), order=order), three(pixels))
    colours = [*range(0, 65536, 257), *([0] * 256), *([65535] * 256)]
    palette = Page(GREY, 8, 3, form=4, tags={320: ("H", colours)})
    check(tiff(palette, order=order), np.concatenate([GREY, 0 * GREY, 0 * GREY + 255], axis=2))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_large_side_data_of_a_png_is_no_damage(name: bytes) -> None:
    text = b"<edit/>" * 300_000
    packed = zlib.compress(text)
    content = {
        b"zTXt": b"history\0\0" + packed,
        b"iTXt": b"history\0\1\0\0\0" + packed,
        b"iCCP": b"profile\0\0" + packed,
        b"tEXt": b"history\0" + text * 40,
    }[name]
    for bits in (8, 16):
        check(png(at_depth(RGB, bits), bits, chunk(name, content)), RGB)


def test_damaged_side_data_of_a_png_are_no_damage_to_the_picture() -> None:
    spoilt = bytearray(chunk(b"tEXt", b"history\0edited"))
    spoilt[-1] ^= 255
    further = [
        bytes(spoilt),
        chunk(b"zTXt", b"history\0\1packed otherwise"),
        *(chunk(name, b"") for name in (b"iCCP", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"eXIf", b"acTL")),
        *[chunk(b"tEXt", b"history\0" + bytes(1_000_000))] * 70,  # more than Pillow takes in all
    ]
    for bits in (8, 16):
        check(png(at_depth(RGB, bits), bits, *further), RGB)
    key = bytearray(chunk(b"tRNS", bytes(6)))
    key[-1] ^= 255  # this one decides pixels
    with pytest.raises(DecodeError):
        decode(png(RGB, 8, bytes(key)))


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt"])
def test_the_orientation_in_each_kind_of_text_of_a_png_counts(name: bytes) -> None:
    exif = Image.Exif()
    exif[274] = 6
    digits = exif.tobytes().hex()
    start = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": bytes(5)}[name]
    for keyword, text in (
        (b"XML:com.adobe.xmp", b'<x tiff:Orientation="6"/>'),
        (b"Raw profile type exif", f"\nexif\n{len(digits) // 2}\n{digits}\n".encode()),
    ):
        content = keyword + start + (zlib.compress(text) if name == b"zTXt" else text)
        check(png(RGB, 8, chunk(name, content)), np.rot90(RGB, -1))
        check(png(RGB, 8, chunk(name, content)[:-1] + b"?"), RGB)


@pytest.mark.parametrize("packed", [False, True])
def test_the_orientation_in_a_long_packet_of_a_png_counts(packed: bool) -> None:
    text = b'<x tiff:Orientation="6"/>' + b"<edit/>" * 300_000
    content = b"XML:com.adobe.xmp\0" + (b"\1\0\0\0" + zlib.compress(text) if packed else b"\0\0\0\0" + text)
    check(png(RGB, 8, chunk(b"iTXt", content)), np.rot90(RGB, -1))


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_orientation_in_every_container(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    upright = decode(saved(Image.fromarray(RGB), kind, **options))
    expected = np.rot90(upright, {3: 2, 6: -1, 8: 1}[orientation])
    check(saved(Image.fromarray(RGB), kind, exif=exif, **options), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_truncated_tiff_is_damaged(bits: int) -> None:
    for planar, deflate in itertools.product((False, True), (False, True)):
        page = Page(at_depth(RGB, bits), bits, planar=planar, deflate=deflate)
        whole = bytearray(tiff(page))
        # The strips lie before the tags: a strip that the tags say to be longer than the file is a cut one.
        at = whole.index(struct.pack("<HH", 279, 4))
        count = 3 if planar else 1
        place = at + 8 if count == 1 else struct.unpack_from("<I", whole, at + 8)[0] + 8
        struct.pack_into("<I", whole, place, 10_000_000)
        outcome: object
        try:
            outcome = decode(bytes(whole))
        except DecodeError as error:
            outcome = error.status
        if isinstance(outcome, np.ndarray):
            assert np.array_equal(outcome, RGB)  # the strip itself is whole
        else:
            assert outcome == Status.CORRUPT
