from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from pipeline.decoding.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    size=st.integers(8, 80),
    crop=st.integers(8, 80),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_pixels_equal_torchvisions(width: int, height: int, size: int, crop: int, interpolation: str) -> None:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocess = Preprocess((size,), (crop, crop), interpolation, HALF, HALF)
    if max(preprocess.resized(width, height)) > 20_000:
        return
    reference = Compose([Resize(size, InterpolationMode(interpolation)), CenterCrop(crop)])
    assert np.array_equal(preprocess.apply(image), np.asarray(reference(image)))


@pytest.mark.parametrize("size", [(900, 7), (7, 900), (61, 60), (300, 40), (20, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_cropping_before_resizing_changes_the_rounding_only(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x, band = np.mgrid[: size[1], : size[0], :3]  # smooth: bicubic never has to clip
    pixels = (128 + 100 * np.sin(x / 3 + band) * np.cos(y / 4)).astype(np.uint8)
    image = Image.fromarray(pixels)
    for crop in ((32, 32), (20, 60), (50, 50)):
        preprocess = Preprocess((40,), crop, interpolation, HALF, HALF)
        expected = preprocess.apply(image).astype(int)
        with monkeypatch.context() as context:
            context.setattr("pipeline.decoding.resample.MOST_RESIZED", 0)
            found = preprocess.apply(image).astype(int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 2  # Pillow may resize the other side first, and rounds in between


def test_a_long_thin_image_needs_little_memory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    middle = np.random.default_rng(0).integers(0, 256, (1, 3, 3), dtype=np.uint8)
    line = np.full((1, 1_000_001, 3), 77, np.uint8)
    line[:, 499_999:500_002] = middle
    preprocess = Preprocess((256,), (224, 224), "bilinear", HALF, HALF)
    assert preprocess.resized(1_000_001, 1) == (256_000_256, 256)  # 260 GB
    tracemalloc.start()
    for image, turn in ((line, False), (line.swapaxes(0, 1), True)):
        found = preprocess.apply(Image.fromarray(np.ascontiguousarray(image)))
        found = found.swapaxes(0, 1) if turn else found
        # The crop shows 0.875 of the middle pixel, with its neighbours' share at the ends.
        assert np.abs(found[:, 112].astype(int) - middle[0, 1]).max() <= 1
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_two_numbers_squash() -> None:
    image = Image.linear_gradient("L").resize((60, 30)).convert("RGB")
    preprocess = Preprocess((20, 24), (20, 24), "bicubic", HALF, HALF)
    expected = np.asarray(image.resize((24, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocess.apply(image), expected)
    assert preprocess.shape == (20, 24, 3)


def test_the_spec_gives_it_back() -> None:
    preprocess = Preprocess((232,), (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocess.from_spec(preprocess.to_spec()) == preprocess


@pytest.mark.parametrize("size", [(224, 224), (256, 224), (224, 300)])
def test_an_image_of_the_right_size_is_left_alone(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    preprocess = Preprocess((224,), (224, 224), "bicubic", HALF, HALF)
    assert np.array_equal(preprocess.apply(Image.fromarray(pixels)), pixels)
    assert preprocess.apply(Image.new("RGB", size)).shape == (224, 224, 3)
