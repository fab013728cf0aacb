from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.decoding.coefficients import PRECISION_BITS, SUPPORT, axis_of


@pytest.mark.parametrize("resampling", list(SUPPORT))
@pytest.mark.parametrize(("length", "resized"), [(50, 40), (40, 50), (500, 31), (33, 33), (3, 90)])
def test_they_give_the_row_that_pillow_gives(length: int, resized: int, resampling: Image.Resampling) -> None:
    row = np.random.default_rng(length).integers(0, 256, (1, length), np.uint8)
    axis = axis_of(length, resized, 0, resized, 1, resampling)
    places = axis.first + axis.starts[:, None] + np.arange(axis.coefficients.shape[1])
    sums = (row[0][places].astype(np.int64) * axis.coefficients).sum(axis=1)
    found = np.clip((sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255)
    assert np.array_equal(found, np.asarray(Image.fromarray(row).resize((resized, 1), resampling))[0])


def test_a_crop_needs_a_part_of_the_axis() -> None:
    whole = axis_of(300, 100, 0, 100, 1, Image.Resampling.BICUBIC)
    part = axis_of(300, 100, 40, 60, 1, Image.Resampling.BICUBIC)
    assert (whole.first, whole.last) == (0, 300)
    assert 110 <= part.first < 120
    assert 180 < part.last <= 190
    assert np.array_equal(part.coefficients, whole.coefficients[40:60])


def test_the_part_is_as_long_as_asked() -> None:
    axis = axis_of(20, 20, 18, 20, 16, Image.Resampling.BILINEAR)
    assert (axis.first, axis.last) == (4, 20)
    assert axis.coefficients.tolist() == [[1 << PRECISION_BITS]] * 2
    assert axis.starts.tolist() == [14, 15]
