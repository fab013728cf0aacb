from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.analysis.outliers import FAR, IS_BLANK, find_outliers
from pipeline.analysis.picture_facts import contrast_and_sharpness
from tests.analysis.archive import archive, png


def textured(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def planted() -> Any:
    """60 usual images, and one of each kind that is not."""
    cache = archive(66, images=False, spread=1.0)
    images = {row: textured(row) for row in range(66)}
    images[61] = Image.new("RGB", (48, 48), (250, 250, 250))
    images[62] = images[62].filter(ImageFilter.GaussianBlur(6))
    images[63] = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    images[64] = textured(64, (300, 300))
    images[65] = textured(65, (96, 24))
    cache.images = {row: png(image) for row, image in images.items()}
    del cache.images[59]
    cache.embeddings[60] += 40.0
    cache.layers = {"penultimate": cache.embeddings}
    return cache


def test_each_kind_of_outlier_is_named(planted: Any) -> None:
    found = find_outliers(planted)
    why = dict(zip(found.rows.tolist(), found.table["why"], strict=True))
    assert why[60] == FAR
    assert why[61] == IS_BLANK
    assert why[62] == "blurred"
    assert why[63] == "sharp or noisy"
    assert "large" in why[64]
    assert "elongated" in why[65]
    assert found.by_pixels
    assert found.unread == 1
    usual = [row for row in range(60) if why[row]]
    assert len(usual) <= 2
    assert found.table["why"].iloc[0]  # outliers come first
    assert found.count == sum(map(bool, why.values()))
    assert "1 blank" in found.summary()


def test_without_images_embeddings_judge_and_say_so(planted: Any) -> None:
    bare = archive(66, images=False, spread=1.0)
    bare.layers = planted.layers
    lines: list[str] = []
    found = find_outliers(bare, say=lines.append)
    assert found.rows[0] == 60
    assert not found.by_pixels
    assert "embeddings alone" in lines[0]
    assert np.isnan(found.table["width"]).all()


def test_a_copy_of_an_outlier_does_not_hide_it(planted: Any) -> None:
    cache = archive(66, images=False, spread=1.0)
    cache.embeddings[:2] = planted.embeddings[60]
    cache.layers = {"penultimate": cache.embeddings}
    found = find_outliers(cache, use_pixels=False)
    assert set(found.rows[:2].tolist()) == {0, 1}
    assert list(found.table["why"][:2]) == [FAR, FAR]
    assert not find_outliers(cache, use_pixels=False, k=1).table["why"][found.rows < 2].any()


def test_sharpness_does_not_depend_on_contrast() -> None:
    image = textured(0)
    pale = Image.eval(image, lambda level: 100 + level // 4)
    assert contrast_and_sharpness(pale)[1] == pytest.approx(contrast_and_sharpness(image)[1], rel=0.2)
    assert contrast_and_sharpness(image.filter(ImageFilter.GaussianBlur(3)))[1] < contrast_and_sharpness(image)[1] / 4
