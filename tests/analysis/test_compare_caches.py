from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis import compare_caches as module
from pipeline.analysis.compare_caches import compare_caches, linear_cka
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive


def test_cka_is_that_of_the_paper_and_knows_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(90, 8)).astype(np.float32) + 3, rng.normal(size=(120, 5)).astype(np.float32)
    rows, others = np.arange(5, 85), rng.permutation(120)[:80]
    monkeypatch.setattr(module, "_BLOCK", 32)
    x, y = X[rows] - X[rows].mean(0), Y[others] - Y[others].mean(0)
    kernel, other = x @ x.T, y @ y.T  # the definition: alignment of the two Gram matrices
    expected = (kernel * other).sum() / np.sqrt((kernel**2).sum() * (other**2).sum())
    assert linear_cka(X, rows, Y, others) == pytest.approx(expected, rel=1e-4)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(X, rows, (3 * X @ rotation).astype(np.float32), rows) == pytest.approx(1, abs=1e-5)
    assert np.isnan(linear_cka(X, rows, np.ones_like(X), rows))


def test_the_better_layer_is_told_on_common_rows_in_any_order() -> None:
    good = archive(300, spread=0.3, images=False)
    noise = archive(300, spread=30.0, images=False)
    order = np.random.default_rng(1).permutation(300)[:250]
    noise.embeddings, noise.labels, noise.keys = noise.embeddings[order], noise.labels[order], noise.keys[order]
    noise.status, noise.layers = noise.status[order], {"penultimate": noise.embeddings}
    found = compare_caches([noise, good], replicates=200)
    assert found.rows == 250
    weak, strong = found.separation.itertuples()
    assert strong.accuracy > 0.95 > 0.7 > weak.accuracy
    assert strong.difference_low > 0.2
    assert weak.difference == weak.difference_low == 0
    pair = found.pairs.iloc[0]
    assert pair["overlap"] < 0.4
    assert pair["cka"] < 0.6


def test_layers_of_one_cache() -> None:
    cache = archive(100, images=False)
    cache.layers = {"penultimate": cache.embeddings, "other": 2 * cache.embeddings, "third": cache.embeddings[:, :4]}
    found = compare_caches([cache], replicates=200)
    assert len(found.pairs) == 3
    assert found.pairs["cka"][0] == pytest.approx(1)
    assert found.pairs["overlap"][0] == 1
    assert len(compare_caches([cache], layers=("other", "third"), replicates=200).separation) == 2
    with pytest.raises(AnalysisError, match="at least 2 embeddings"):
        compare_caches([cache], layers=("other",))
    with pytest.raises(AnalysisError, match="a layer 'thrid': did you mean third"):
        compare_caches([cache], layers=("other", "third", "thrid"))
    with pytest.raises(AnalysisError, match="k of 1 or more, found 0"):
        compare_caches([cache], k=0)


def test_nothing_in_common_is_one_line() -> None:
    other = archive(50, images=False)
    other.keys = np.array([f"x{n}" for n in range(50)])
    with pytest.raises(AnalysisError, match="same key"):
        compare_caches([archive(50, images=False), other])
