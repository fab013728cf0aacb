from __future__ import annotations

import sys
from typing import Literal

import numpy as np
import pytest

from pipeline.analysis.projection import map_cache, principal_components
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive


def test_principal_components_are_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    X = (np.random.default_rng(0).normal(size=(5000, 12)) * np.arange(12, 0, -1) + 7).astype(np.float32)
    rows = np.arange(0, 5000, 2)
    ours, theirs = principal_components(X, rows, 3), PCA(3, svd_solver="full").fit_transform(X[rows])
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=2e-2)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_classes_that_are_apart_stay_apart(method: Literal["pca", "tsne"]) -> None:
    cache = archive(150, spread=0.2, images=False)
    cache.status[4] = 0
    found = map_cache(cache, method)
    assert len(found.table) == 149
    assert "4.png" not in set(found.table["key"])
    places, labels = found.table[["x", "y"]].to_numpy(), found.table["label"].to_numpy()
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.97
    assert map_cache(cache, method).table.equals(found.table)


@pytest.mark.slow
def test_umap_keeps_neighbours_and_repeats() -> None:
    pytest.importorskip("umap")
    cache = archive(150, spread=0.2, images=False)
    found = map_cache(cache, "umap", n_epochs=100)
    places, labels = found.table[["x", "y"]].to_numpy(), found.table["label"].to_numpy()
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.97
    assert map_cache(cache, "umap", n_epochs=100).table.equals(found.table)


@pytest.mark.parametrize("features", [0, 1])
def test_umap_of_rows_that_differ_in_few_directions_is_finite(features: int) -> None:
    pytest.importorskip("umap")
    cache = archive(8, images=False)
    cache.embeddings[:, features:] = 1
    found = map_cache(cache, "umap", n_epochs=5).table
    assert np.isfinite(found[["x", "y"]].to_numpy()).all()


def test_what_cannot_be_laid_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnalysisError, match="at least 3 rows"):
        map_cache(archive(2, n_classes=2, images=False), "pca")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(AnalysisError, match="--method pca"):
        map_cache(archive(9, images=False))
