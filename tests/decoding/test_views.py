from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.decoding.preprocess import Preprocess

if TYPE_CHECKING:
    from typing import Literal

PLAIN = Preprocess((32,), (28, 28), "bicubic", (0.5,) * 3, (0.5,) * 3)


def image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def test_a_mirrored_view_takes_no_further_pixels() -> None:
    flip, picture = replace(PLAIN, views="flip"), image(90, 51)
    assert flip.shape == PLAIN.shape
    assert flip.view_count == 2
    assert np.array_equal(flip.apply(picture), PLAIN.apply(picture))


@pytest.mark.parametrize(("width", "height"), [(90, 51), (33, 120), (64, 64)])
def test_corners_are_those_of_the_whole_resized_image(width: int, height: int) -> None:
    crops, picture = replace(PLAIN, views="5crop"), image(width, height)
    found = crops.apply(picture)
    assert found.shape == crops.shape == (5 * 28, 28, 3)
    whole = resized(picture, PLAIN.resized(width, height))
    wanted = [PLAIN.apply(picture), whole[:28, :28], whole[:28, -28:], whole[-28:, :28], whole[-28:, -28:]]
    assert np.array_equal(found, np.concatenate(wanted))


@pytest.mark.parametrize("fit", ["squash", "cover"])
def test_without_a_margin_the_corners_get_one(fit: Literal["squash", "cover"]) -> None:
    tight = replace(PLAIN, resize=(28, 28), fit=fit, views="5crop")
    picture = image(40, 60)
    found = tight.apply(picture).reshape(5, 28, 28, 3)
    size = replace(tight, resize=(32, 32)).resized(40, 60)  # 8/7 of the crop, as 256 to 224
    whole = resized(picture, size)
    assert np.array_equal(found[0], replace(tight, views="").apply(picture))
    assert np.array_equal(found[1], whole[:28, :28])
    assert np.array_equal(found[4], whole[-28:, -28:])


def test_an_image_narrower_than_the_crop_has_its_corners_where_it_ends() -> None:
    inside = replace(PLAIN, resize=(32, 32), fit="contain", views="5crop")
    found = inside.apply(image(120, 30)).reshape(5, 28, 28, 3)
    assert np.array_equal(found[1], found[3])  # the image is 8 pixels high: there is no upper and lower corner
    assert not np.array_equal(found[1], found[2])


def test_scales_enlarge_the_centre() -> None:
    scales, picture = replace(PLAIN, views="multiscale"), image(90, 51)
    wanted = [replace(PLAIN, resize=(edge,)).apply(picture) for edge in (32, 40, 51)]
    assert np.array_equal(scales.apply(picture), np.concatenate(wanted))


@pytest.mark.parametrize("views", ["", "flip", "5crop", "multiscale"])
def test_the_spec_names_views_only_where_there_are_some(views: str) -> None:
    made = replace(PLAIN, views=views)
    assert ("views" in made.to_spec()) == bool(views)
    assert Preprocess.from_spec(made.to_spec()) == made
