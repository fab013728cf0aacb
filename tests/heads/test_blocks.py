"""Blocks of features in units of their own, and heads that take the features as they are."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.errors import HeadError
from pipeline.heads.blocks import Blocks, block_scale, estimator_on_raw_features, joined_layers, on_raw_features
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import HEADS
from pipeline.heads.sklearn import EstimatorModel
from tests.heads.standin import blobs


def two_layers() -> tuple[list[np.ndarray], np.ndarray]:
    """Return a wide layer of large numbers and a narrow one of small numbers, and classes."""
    wide, y = blobs(120, 12)
    narrow, _ = blobs(120, 3, seed=1)
    return [wide * 1000 + 50, narrow / 1000], y


def test_every_block_varies_by_one_in_all() -> None:
    arrays, _ = two_layers()
    blocks = Blocks(arrays, [block_scale(array) for array in arrays])
    X = blocks[np.arange(120)]
    assert X.dtype == blocks.dtype == np.float32
    assert X.shape == blocks.shape == (120, 15)
    assert X[:, :12].var(axis=0).sum() == pytest.approx(1.0, rel=1e-4)
    assert X[:, 12:].var(axis=0).sum() == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(blocks[[5, 2]] * blocks.scale, np.concatenate(arrays, axis=1)[[5, 2]], rtol=1e-5)


def test_a_block_that_does_not_vary_stays() -> None:
    assert block_scale(np.full((4, 3), 7.0)) == 1.0


@pytest.mark.parametrize("name", ["logistic", "ridge", "knn", "centroid", "mlp"])
def test_a_head_on_scaled_blocks_becomes_one_on_the_features_as_they_are(name: str) -> None:
    arrays, y = two_layers()
    blocks = Blocks(arrays, [block_scale(array) for array in arrays])
    X = blocks[np.arange(120)]
    params = {"max_iter": 20} if name == "mlp" else {}
    model = HEADS[name](X, y, None, FitOptions(folds=2, params=params)).model
    raw = on_raw_features(model, blocks.scale)
    expected = model.predict_proba(X)
    np.testing.assert_allclose(raw.predict_proba(np.concatenate(arrays, axis=1)), expected, atol=2e-3)
    assert np.ptp(expected[:, 0]) > 0.1


def test_so_does_a_scikit_learn_estimator() -> None:
    arrays, y = two_layers()
    blocks = Blocks(arrays, [block_scale(array) for array in arrays])
    X, raw = blocks[np.arange(120)], np.concatenate(arrays, axis=1).astype(np.float64)
    fitted = LogisticRegression().fit(X, y)
    again = estimator_on_raw_features(fitted, blocks.scale)
    np.testing.assert_allclose(again.predict_proba(raw), fitted.predict_proba(X), atol=1e-4)
    notes = {"estimator": fitted, "method": "predict_proba"}
    model = on_raw_features(EstimatorModel("estimator", {}, "softmax", 3, notes=notes), blocks.scale)
    np.testing.assert_allclose(model.predict_proba(raw), fitted.predict_proba(X), atol=1e-4)
    assert model.width == 15


def test_layers_are_joined_in_the_order_of_the_head() -> None:
    arrays = {"a": np.full((2, 1), 1.0), "b": np.full((2, 2), 2.0)}
    assert joined_layers(("b", "a"), arrays).tolist() == [[2.0, 2.0, 1.0]] * 2
    assert joined_layers(("a",), arrays) is arrays["a"]
    with pytest.raises(HeadError, match="found no 'c': extract with --layer c"):
        joined_layers(("a", "c"), arrays)
