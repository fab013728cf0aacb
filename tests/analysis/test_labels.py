from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.analysis.labels import check_labels
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive


def test_flipped_labels_come_first() -> None:
    pytest.importorskip("cleanlab")
    cache = archive(600, spread=0.5, images=False)
    rng = np.random.default_rng(0)
    flipped = rng.choice(600, 30, replace=False)
    true = cache.labels.copy()
    cache.labels[flipped] = (cache.labels[flipped] + 1) % 3
    found = check_labels(cache, folds=3)
    assert np.isin(found.rows[:18], flipped).mean() >= 0.8
    first = found.rows[0]
    assert found.table["given"][0] == cache.label_names[cache.labels[first]]
    assert found.table["suggested"][0] == cache.label_names[true[first]]
    assert found.table["quality"].is_monotonic_increasing
    assert np.isin(flipped, found.rows[found.table["is_issue"].to_numpy()]).mean() > 0.8
    assert sorted(found.rows.tolist()) == list(range(600))


def test_rows_without_a_label_take_no_part_and_names_may_have_gaps() -> None:
    pytest.importorskip("cleanlab")
    cache = archive(120, spread=0.5, images=False)
    cache.labels[cache.labels == 1] = -1
    found = check_labels(cache, folds=2)
    assert set(found.table["given"]) == {"ant", "cat"}
    assert len(found.table) == 80


def test_a_class_of_one_row_is_left_out_and_said() -> None:
    pytest.importorskip("cleanlab")
    cache = archive(121, spread=0.5, images=False)
    cache.labels[120] = 2
    cache.labels[:120][cache.labels[:120] == 2] = 0
    said: list[str] = []
    found = check_labels(cache, folds=3, say=said.append)
    assert len(found.table) == 120
    assert said == ["not checked: 1 rows that no fold can hold out, since a class has no other rows (cat)"]


def test_what_cannot_be_checked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab")
    cache = archive(9, images=False)
    cache.labels[:] = 0
    with pytest.raises(AnalysisError, match="at least 2 classes"):
        check_labels(cache)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(AnalysisError, match="pip install 'embedding-pipeline"):
        check_labels(archive(30))
