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
