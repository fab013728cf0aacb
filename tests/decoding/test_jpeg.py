"""Plain JPEGs have Pillow's pixels; all others, and all damaged ones, are Pillow's."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decoding import jpeg
from pipeline.decoding.image import DecodePolicy, decode
from pipeline.decoding.jpeg import decode_plain, unusable, why_pillow

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLICY = DecodePolicy()


def picture(width: int = 61, height: int = 43) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (7, 11, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), exif=exif)


def assert_same(data: bytes) -> None:
    found = decode_plain(data, POLICY)
    assert found is not None
    assert np.array_equal(found[..., :3], decode(data))


@pytest.mark.parametrize("size", [(61, 43), (64, 48), (1, 1), (8, 1), (17, 90)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_plain_jpegs_have_pillows_pixels(size: tuple[int, int], subsampling: str, progressive: bool) -> None:
    assert_same(encoded(picture(*size), subsampling=subsampling, progressive=progressive, quality=85))


@pytest.mark.parametrize(
    "options", [{}, {"quality": 1}, {"quality": 100}, {"restart_marker_rows": 1}, {"optimize": True}]
)
def test_other_ways_to_encode(options: dict[str, Any]) -> None:
    assert_same(encoded(picture(), **options))


def test_photographs(photographs: list[Image.Image]) -> None:
    for photograph in photographs:
        assert_same(encoded(photograph, quality=90))


def test_grey_jpegs() -> None:
    assert_same(encoded(picture().convert("L")))


def test_bytes_after_the_end_do_not_matter() -> None:
    assert_same(encoded(picture()) + b"written by a camera")


def test_two_pictures_in_a_file_give_the_first() -> None:
    file = io.BytesIO()
    picture().save(file, "MPO", save_all=True, append_images=[picture(30, 20)])
    assert_same(file.getvalue())


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied(orientation: int) -> None:
    assert_same(oriented(orientation))


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture().convert("CMYK")),
        encoded(picture(), keep_rgb=True),
        encoded(picture())[:-2],
        encoded(picture())[:-40] + b"\xff\xd9",
        b"\xff\xd8\xff",
        b"",
        b"no picture",
    ],
    ids=["cmyk", "rgb", "no end", "cut", "start", "empty", "text"],
)
def test_other_files_are_left_to_pillow(data: bytes) -> None:
    assert decode_plain(data, POLICY) is None


def test_policies_are_left_to_pillow() -> None:
    data = encoded(picture())
    assert decode_plain(data, DecodePolicy(max_pixels=61 * 43 - 1)) is None
    assert decode_plain(data, DecodePolicy(max_pixels=61 * 43)) is not None
    assert decode_plain(data, DecodePolicy(formats=("PNG",))) is None


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_files_are_pillows_or_have_its_pixels(data: st.DataObject) -> None:
    options = {"progressive": data.draw(st.booleans()), "subsampling": data.draw(st.sampled_from(["4:4:4", "4:2:0"]))}
    whole = bytearray(encoded(picture(40, 30), **options))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]) + data.draw(
        st.sampled_from([b"", b"\xff\xd9"])
    )
    policy = DecodePolicy(max_pixels=1 << 20)
    found = decode_plain(file, policy)
    if found is not None:
        assert np.array_equal(found[..., :3], decode(file, policy))


@pytest.fixture
def fresh() -> Any:
    unusable.cache_clear()
    yield
    unusable.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_nothing_is_said_before_a_jpeg_came() -> None:
    assert why_pillow() == ""
    assert unusable.cache_info().currsize == 0
    assert decode_plain(encoded(picture()), POLICY) is not None
    assert why_pillow() == ""


@pytest.mark.usefixtures("fresh")
def test_a_decoder_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = jpeg._decoded

    def other(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
        pixels = real(data, size)
        pixels[-1, -1, 2] ^= 1
        return pixels

    monkeypatch.setattr(jpeg, "_decoded", other)
    assert decode_plain(encoded(picture()), POLICY) is None
    assert "decodes in another way" in why_pillow()
    assert "\n" not in why_pillow()


@pytest.mark.usefixtures("fresh")
def test_a_missing_decoder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
        raise ModuleNotFoundError("No module named 'simplejpeg'")

    monkeypatch.setattr(jpeg, "_decoded", missing)
    assert decode_plain(encoded(picture()), POLICY) is None
    assert why_pillow() == "decoding JPEGs by Pillow, which is slower: No module named 'simplejpeg'"


@pytest.mark.usefixtures("fresh")
def test_a_lack_of_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
        raise MemoryError

    data = encoded(picture())
    with monkeypatch.context() as during:
        during.setattr(jpeg, "_decoded", too_much)
        assert decode_plain(data, POLICY) is None
    assert why_pillow() == ""
    assert decode_plain(data, POLICY) is not None


def test_memory_is_kept_for_the_next_image_of_at_most_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = encoded(picture(61, 43)), encoded(picture(30, 20))
    first, second = decode_plain(large, POLICY), decode_plain(small, POLICY)
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, second)
    assert np.array_equal(second[..., :3], decode(small))
    assert decode_plain(b"no picture", POLICY) is None  # Pillow's turn: nothing is kept
    third = decode_plain(small, POLICY)
    assert third is not None
    assert not np.shares_memory(first, third)
    monkeypatch.setattr(jpeg, "KEPT_BYTES", 1000)
    fourth = decode_plain(small, POLICY)
    assert fourth is not None
    assert not np.shares_memory(third, fourth)
    assert np.array_equal(fourth[..., :3], decode(small))


def test_a_file_that_pillow_refuses_is_never_decoded() -> None:
    """Cut anywhere, whatever follows: what decodes here decodes there."""
    whole = encoded(picture(24, 16), subsampling="4:2:0")
    for end in range(0, len(whole), 3):
        for file in (whole[:end], whole[:end] + b"\xff\xd9", whole[:end] + bytes(40)):
            if decode_plain(file, POLICY) is not None:
                decode(file)  # raises where Pillow refuses it
