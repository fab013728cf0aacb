from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.formats import SNIFF_BYTES, is_image
from pipeline.decoding.image import DecodePolicy, decode, decode_image, upright_rgb
from tests.decoding.writers import Page, png, tiff


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def small(photographs: list[Image.Image]) -> Image.Image:
    return photographs[0].resize((32, 20))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "JPEG2000", "AVIF"])
def test_every_allowed_format_is_sniffed_and_decoded(kind: str, small: Image.Image) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(small, kind, **options)
    assert is_image(data[:SNIFF_BYTES])
    pixels = decode(data)
    assert pixels.shape == (20, 32, 3)
    assert pixels.dtype == np.uint8
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, small: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(small, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data), np.asarray(expected.convert("RGB")))
    assert decode(data).shape == ((20, 32, 3) if orientation < 5 else (32, 20, 3))


def test_damaged_exif_counts_as_none(small: Image.Image) -> None:
    data = encode(small, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert decode(data).shape == (20, 32, 3)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_malformed_exif_never_costs_the_picture(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0131] = 6, "a description", "software"
    image = Image.linear_gradient("L").resize((16, 8)).convert("RGB")
    whole = bytearray(encode(image, "JPEG", exif=exif))
    start = whole.index(b"Exif\0\0") + 6
    for _ in range(data.draw(st.integers(1, 3))):
        whole[start + data.draw(st.integers(0, len(exif.tobytes()) - 7))] = data.draw(st.integers(0, 255))
    assert sorted(decode(bytes(whole)).shape) == [3, 8, 16]


def test_transparency_is_composited_on_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = decode(encode(image))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1
    grey = Image.new("LA", (1, 1), (10, 0))
    assert decode(encode(grey))[0, 0].tolist() == [255] * 3


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putpixel((1, 0), 1)
    assert decode(encode(image, transparency=0))[0].tolist() == [[255] * 3, [200, 10, 20]]
    assert decode(encode(image))[0].tolist() == [[0] * 3, [200, 10, 20]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decode(encode(Image.fromarray(wide), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_without_a_known_range_fail() -> None:
    for array in (np.array([[0.5]], dtype=np.float32), np.array([[1 << 20]], dtype=np.int32)):
        with pytest.raises(DecodeError) as caught:
            decode(encode(Image.fromarray(array), "TIFF"))
        assert caught.value.status == Status.UNSUPPORTED


def test_cmyk_bilevel_and_grey(small: Image.Image) -> None:
    for mode, kind in (("CMYK", "TIFF"), ("CMYK", "JPEG"), ("1", "PNG"), ("L", "JPEG")):
        pixels = decode(encode(small.convert(mode), kind))
        expected = np.asarray(small.convert(mode).convert("RGB")).astype(int)
        assert np.abs(pixels.astype(int) - expected).mean() < 12


def test_the_first_frame_of_an_animation(small: Image.Image) -> None:
    data = encode(small, "GIF", save_all=True, append_images=[Image.new("RGB", small.size, "red")])
    assert (
        np.array_equal(decode(data), np.asarray(small.convert("P").convert("RGB"))) or decode(data)[..., 1].mean() > 1
    )


def test_open_images_that_pillow_reads_wrongly_are_refused(small: Image.Image) -> None:
    rgb = np.asarray(small)
    wide, grey = rgb.astype(np.uint16) * 257, np.asarray(small.convert("L"))[..., None]
    for page in (Page(rgb), Page(wide, 16), Page(grey.astype(np.uint16) * 257, 16), Page(grey, photometric=0)):
        with Image.open(io.BytesIO(tiff(page))) as opened:
            found = np.asarray(upright_rgb(opened, DecodePolicy()))
        assert np.array_equal(found, decode(tiff(page)))
    for page in (Page(wide, 16, planar=True), Page(65535 - wide[..., :1], 16, photometric=0), Page(grey, form=2)):
        with Image.open(io.BytesIO(tiff(page))) as opened, pytest.raises(DecodeError) as caught:
            upright_rgb(opened, DecodePolicy())
        assert caught.value.status == Status.UNSUPPORTED
    with pytest.raises(DecodeError, match="no stated range"):
        upright_rgb(Image.fromarray(np.zeros((2, 3), np.int32)), DecodePolicy())


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    header = encode(Image.new("1", (40000, 3000)))
    with pytest.raises(DecodeError, match="40000 × 3000 pixels, above the limit of 100000000") as caught:
        decode(header[:200], DecodePolicy(max_pixels=100_000_000))
    assert caught.value.status == Status.TOO_LARGE
    assert decode(encode(Image.new("L", (10, 10))), DecodePolicy(max_pixels=100)).shape == (10, 10, 3)
    with pytest.raises(DecodeError):
        decode(encode(Image.new("L", (101, 1))), DecodePolicy(max_pixels=100))


@pytest.mark.parametrize("library", ["imagecodecs", "tifffile"])
def test_a_library_that_is_not_there_is_no_damage(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.full((2, 3, 3), 257, np.uint16)
    data = tiff(Page(wide, 16)) if library == "tifffile" else png(wide, 16)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DecodeError, match=f"{library}.*repair the installation") as caught:
        decode(data)
    assert caught.value.status == Status.UNSUPPORTED


def test_what_a_library_does_not_read_says_what_to_do() -> None:
    rle24 = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 2, 2, 1, 24, 4, 0, 0, 0, 0, 0) + bytes(16)
    with pytest.raises(DecodeError, match=r"Unsupported BMP compression \(4\): save it again as PNG") as caught:
        decode(rle24)
    assert caught.value.status == Status.UNSUPPORTED


def test_a_jpeg_that_states_its_height_at_its_end_is_no_damaged_one(small: Image.Image) -> None:
    height, width = struct.pack(">H", small.height), struct.pack(">H", small.width)
    with pytest.raises(DecodeError, match="height behind its pixels") as caught:
        decode(encode(small, "JPEG").replace(b"\x08" + height + width, b"\x08\0\0" + width, 1))
    assert caught.value.status == Status.UNSUPPORTED


def test_a_truncated_file_fails(photographs: list[Image.Image]) -> None:
    for kind in ("PNG", "JPEG"):
        data = encode(photographs[0], kind)
        with pytest.raises(DecodeError) as caught:
            decode(data[: len(data) // 2])
        assert caught.value.status == Status.CORRUPT
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_give_pixels_or_a_decode_error(data: st.DataObject) -> None:
    image = Image.linear_gradient("L").resize((16, 16))
    whole = bytearray(encode(image, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    outcome = _pixels_or_error(bytes(whole[:cut]))
    if isinstance(outcome, DecodeError):
        assert outcome.status > Status.DONE
    else:
        assert outcome.ndim == 3
        assert outcome.shape[2] == 3


def _pixels_or_error(data: bytes) -> np.ndarray[Any, Any] | DecodeError:
    try:
        return decode(data, DecodePolicy(max_pixels=1 << 20))
    except DecodeError as error:
        return error


@pytest.mark.parametrize(
    ("side", "size"), [(None, (1200, 800)), (401, (1200, 800)), (400, (1200, 800)), (200, (600, 400)), (60, (300, 200))]
)
def test_only_thumbnails_are_decoded_at_a_reduced_size(side: int | None, size: tuple[int, int]) -> None:
    data = encode(Image.linear_gradient("L").resize((1200, 800)), "JPEG")
    assert decode_image(data, DecodePolicy(), thumbnail=side).size == size


def test_tiff_with_a_huge_claim_does_not_allocate_it() -> None:
    entries = [(256, 4, 1, 60000), (257, 4, 1, 60000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    with pytest.raises(DecodeError) as caught:
        decode(body)
    assert caught.value.status == Status.TOO_LARGE
