from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis.active_learning import select
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive


def test_k_centre_is_farthest_first() -> None:
    cache = archive(80, images=False)
    cache.labels[10:] = -1
    found = select(cache, 12, "k-centre")
    unit = cache.embeddings / np.linalg.norm(cache.embeddings, axis=1, keepdims=True)
    centres = list(range(10))
    for row, score in zip(found.rows, found.table["score"], strict=True):
        far = (1 - unit @ unit[centres].T).min(axis=1)
        assert row == far.argmax()
        assert score == pytest.approx(far.max(), abs=1e-5)
        centres.append(int(row))


def test_k_centre_without_labels_begins_at_the_middle() -> None:
    cache = archive(80, images=False)
    found = select(cache, 80, "k-centre", among_all=True)
    assert sorted(found.rows.tolist()) == list(range(80))
    unit = cache.embeddings / np.linalg.norm(cache.embeddings, axis=1, keepdims=True)
    assert found.rows[0] == (unit @ unit.mean(axis=0)).argmax()
    assert found.table["score"][1:].is_monotonic_decreasing


def test_typicality_takes_one_of_each_cluster_from_its_midst() -> None:
    cache = archive(300, n_classes=5, spread=0.1, images=False)
    found = select(cache, 5, "typicality", among_all=True)
    assert sorted(cache.labels[found.rows].tolist()) == [0, 1, 2, 3, 4]
    for row in found.rows:
        same = cache.embeddings[cache.labels == cache.labels[row]]
        apart = np.linalg.norm(same - same.mean(axis=0), axis=1)
        assert np.linalg.norm(cache.embeddings[row] - same.mean(axis=0)) < np.quantile(apart, 0.4)
    assert select(cache, 5, "typicality", among_all=True).table.equals(found.table)


def test_only_rows_without_a_label_are_chosen() -> None:
    cache = archive(60, images=False)
    with pytest.raises(AnalysisError, match="--all"):
        select(cache)
    cache.labels[::3] = -1
    with pytest.raises(AnalysisError, match="found 0"):
        select(cache, 0)
    for method in ("k-centre", "typicality"):
        found = select(cache, 100, method)
        assert sorted(found.rows.tolist()) == list(range(0, 60, 3))
        assert found.candidates == 20
