from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backbones import Backbone, load_backbone
from pipeline.engines import open_engine
from pipeline.engines.openvino import supported_precisions
from pipeline.engines.openvino_mixed import round_keeping_sums
from pipeline.engines.selfcheck import check, reference
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


def _nearest(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest bfloat16 value, by the bits."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 25), spread=st.floats(0, 3))
def test_filters_are_rounded_to_neighbours_and_keep_their_sums(seed: int, k: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    filters = (rng.normal(size=(7, k)) * np.exp(spread * rng.normal(size=(7, k)))).astype(np.float32)
    filters[0] = 0
    rounded = round_keeping_sums(filters)
    assert not (rounded.view(np.uint32) & 0xFFFF).any()  # bfloat16 is the upper half of float32's bits
    assert np.all(np.abs(rounded - filters) <= np.abs(filters) * 2.0**-7)
    exact = filters.astype(np.float64)
    error, of_nearest = (np.abs((values - exact).sum(axis=1)) for values in (rounded, _nearest(filters)))
    assert np.all(error <= of_nearest + 1e-12)


def test_the_sum_of_a_filter_that_nearly_cancels_survives() -> None:
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(200, 9)).astype(np.float32)
    filters -= filters.mean(axis=1, keepdims=True) - 0.001
    error = np.abs((round_keeping_sums(filters).astype(np.float64) - filters).sum(axis=1))
    of_nearest = np.abs((_nearest(filters).astype(np.float64) - filters).sum(axis=1))
    assert np.median(error) < np.median(of_nearest) / 5


def test_mixed_keeps_the_contract_where_bfloat16_does_not(backbone: Backbone, crops: list[Image.Image]) -> None:
    if "mixed" not in supported_precisions():
        pytest.skip("this processor has no bfloat16")
    images = np.stack([backbone.preprocess.apply(crop) for crop in crops[:12]])
    expected, cosines = reference(backbone, images), {}
    for precision in ("bfloat16", "mixed"):
        engine = open_engine(backbone, engine="openvino", precision=precision)
        cosines[precision] = check(engine, images, expected)
        engine.close()
    assert cosines["bfloat16"] < 0.999 <= cosines["mixed"] < 0.999999, cosines


def test_mixed_is_openvinos(backbone: Backbone) -> None:
    with pytest.raises(EngineError, match="mixed is OpenVINO's"):
        open_engine(backbone, engine="torch", device="cpu", precision="mixed")
