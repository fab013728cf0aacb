"""The kernel's pixels are those of the installed Pillow, bit for bit, or Pillow's are taken."""

from __future__ import annotations

import builtins
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decoding import resample
from pipeline.decoding.coefficients import SUPPORT
from pipeline.decoding.kernel import Kernel, compile_kernel
from pipeline.decoding.resample import ORDERS, Geometry, Resampler, agrees, by_kernel, by_pillow, fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BICUBIC = Image.Resampling.BICUBIC
FILTERS = list(SUPPORT)


@pytest.fixture(scope="module")
def loaded() -> Resampler:
    resampler = Resampler()
    resampler.load()
    assert resampler.reason == ""
    return resampler


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return compile_kernel()


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return noise with black and white patches, where a filter's overshoot is clipped."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    pixels[: height // 2, : width // 3, :3] = 255
    pixels[height // 3 :, width // 2 :, :3] = 0
    return pixels


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def centred(size: tuple[int, int], crop: tuple[int, int], resampling: Image.Resampling = BICUBIC) -> Geometry:
    corner = (size[0] - crop[1]) // 2, (size[1] - crop[0]) // 2
    return Geometry(size, corner, crop, resampling)


def assert_same(resampler: Resampler, pixels: NDArray[np.uint8], geometry: Geometry) -> None:
    image = image_of(pixels)
    expected = by_pillow(image, geometry)
    assert np.array_equal(resampler.apply(pixels, geometry), expected)
    assert np.array_equal(resampler.apply(image, geometry), expected)


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    crop=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    shift=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    resampling=st.sampled_from([*FILTERS, Image.Resampling.NEAREST]),
)
def test_any_resize_and_crop_gives_pillows_pixels(
    loaded: Resampler,
    width: int,
    height: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    shift: tuple[int, int],
    resampling: Image.Resampling,
) -> None:
    middle = centred(size, crop).corner
    corner = min(middle[0] + shift[0], size[0] - 1), min(middle[1] + shift[1], size[1] - 1)
    assert_same(loaded, picture(width, height), Geometry(size, corner, crop, resampling))


@pytest.mark.parametrize(
    ("width", "height"),
    [(500, 375), (375, 500), (640, 427), (2000, 300), (300, 2000), (260, 300), (256, 256), (97, 131)],
)
@pytest.mark.parametrize("resampling", FILTERS)
def test_sizes_of_photographs(loaded: Resampler, width: int, height: int, resampling: Image.Resampling) -> None:
    short = 256 / min(width, height)
    assert_same(
        loaded, picture(width, height), centred((int(width * short), int(height * short)), (224, 224), resampling)
    )


@pytest.mark.parametrize(
    ("size", "resized"),
    [((1, 1), (64, 64)), ((1, 5000), (64, 320)), ((5000, 1), (320, 64)), ((16, 8), (200, 100)), ((15, 7), (200, 100)),
     ((20_000, 9), (300, 80)), ((17, 9000), (40, 300)), ((64, 64), (64, 64)), ((64, 200), (64, 90))],
)  # fmt: skip
def test_extreme_sizes(loaded: Resampler, size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert_same(loaded, picture(*size), centred(resized, (60, 40)))


def test_what_fills_the_memory_of_pillow_is_left_to_it() -> None:
    crop = (224, 224)
    assert fits((30_000, 30), centred((1 << 18, 256), crop))
    assert not fits((30_000, 30), centred(((1 << 18) + 1, 256), crop))


def test_grey_is_resized_as_three_equal_channels(loaded: Resampler) -> None:
    image = Image.fromarray(picture(90, 70)[..., 0]).convert("RGB")
    geometry = centred((60, 47), (40, 40))
    found = loaded.apply(image, geometry)
    assert np.array_equal(found, by_pillow(image, geometry))
    assert np.array_equal(found[..., 0], found[..., 2])


def test_the_fourth_byte_and_the_strides_of_an_array_do_not_matter(loaded: Resampler) -> None:
    pixels, geometry = picture(90, 70), centred((60, 47), (40, 40))
    expected = loaded.apply(pixels, geometry)
    other = pixels.copy()
    other[..., 3] = 7
    assert np.array_equal(loaded.apply(other, geometry), expected)
    assert np.array_equal(loaded.apply(np.asfortranarray(pixels), geometry), expected)


def test_the_kernel_is_loaded_when_pillow_took_as_long_as_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0.0, 10.0, 0.03))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(clock)))
    resampler, pixels, geometry = Resampler(), picture(90, 70), centred((60, 47), (40, 40))
    before = []
    for _ in range(5):
        before.append(resampler.repays)
        resampler.apply(pixels, geometry)
    assert before == [False, False, False, False, True]
    resampler.load()
    assert not resampler.repays
    monkeypatch.setattr(resample, "by_pillow", None)  # no longer needed
    assert resampler.apply(pixels, geometry).shape == (40, 40, 3)


def test_small_images_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "REPAYS_S", -1.0)
    resampler = Resampler()
    monkeypatch.setattr(time, "thread_time", lambda: pytest.fail("it was timed"))
    resampler.apply(picture(10, 10), centred((20, 20), (20, 20)))


def test_without_the_library_pillow_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *others: Any, **more: Any) -> Any:
        if name == "pipeline.decoding.kernel":
            raise ImportError("No module named 'llvmlite'")
        return real(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    resampler, pixels, geometry = Resampler(), picture(90, 70), centred((60, 47), (40, 40))
    resampler.load()
    monkeypatch.undo()
    assert resampler.reason == "resizing by Pillow, which is slower: No module named 'llvmlite'"
    assert np.array_equal(resampler.apply(pixels, geometry), by_pillow(image_of(pixels), geometry))


def test_a_pillow_that_rounds_otherwise_is_noticed_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
        pixels = by_pillow(image, geometry).copy()
        pixels[3, 5, 1] ^= 1
        return pixels

    monkeypatch.setattr(resample, "by_pillow", other)
    resampler, pixels, geometry = Resampler(), picture(90, 70), centred((60, 47), (40, 40))
    resampler.load()
    assert "rounds in another way" in resampler.reason
    assert not resampler.repays
    assert np.array_equal(resampler.apply(pixels, geometry), other(image_of(pixels), geometry))


def in_order(down_first: Callable[..., bool]) -> Callable[[Image.Image, Geometry], NDArray[np.uint8]]:
    """Return a Pillow that resizes the axes in a given order."""

    def resized(image: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
        (width, height), (new_width, new_height) = image.size, geometry.size
        between = (width, new_height) if down_first(image.size, geometry.size) else (new_width, height)
        return by_pillow(image.resize(between, geometry.resampling), geometry)

    return resized


@pytest.mark.parametrize("right", ORDERS)
def test_the_order_of_the_passes_is_found_out(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, right: Callable[..., bool]
) -> None:
    monkeypatch.setattr(resample, "by_pillow", in_order(right))
    assert [order for order in ORDERS if agrees(kernel, order)] == [right]


@pytest.mark.parametrize(
    "order",
    [
        lambda size, new: True,
        lambda size, new: size[1] - new[1] > 2 * (size[0] - new[0]),
        lambda size, new: size[1] > new[1] and size[1] - new[1] >= 2 * (size[0] - new[0]),
        lambda size, new: size[1] > new[1] and size[1] - new[1] > 3 * (size[0] - new[0]),
        lambda size, new: new[0] * size[1] > size[0] * new[1],
    ],
)
def test_an_unknown_order_agrees_with_none(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, order: Callable[..., bool]
) -> None:
    monkeypatch.setattr(resample, "by_pillow", in_order(order))
    assert not [known for known in ORDERS if agrees(kernel, known)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_random_cases(kernel: Kernel, seed: int) -> None:
    draw, order = random.Random(seed), next(order for order in ORDERS if agrees(kernel, order))
    done = 0
    while done < 1000:
        width, height, *size = (int(2 ** draw.uniform(3, 9.5)) for _ in range(4))
        crop = int(2 ** draw.uniform(3, 8)), int(2 ** draw.uniform(3, 8))
        geometry = centred((size[0], size[1]), crop, draw.choice(FILTERS))
        if fits((width, height), geometry):
            pixels = picture(width, height, done)
            assert np.array_equal(by_kernel(kernel, order, pixels, geometry), by_pillow(image_of(pixels), geometry)), (
                width,
                height,
                geometry,
            )
            done += 1
