"""Columns whose rows stay together, and columns whose rows get one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.fitting.rows import Rows, select_rows
from pipeline.fitting.settings import FitSettings
from pipeline.fitting.target import read_target
from tests.heads.standin import StandIn, blobs

PATIENT = np.repeat([f"p{i}" for i in range(20)], 6)


def cache_of(labels: np.ndarray | None = None, **columns: Any) -> StandIn:
    X, _ = blobs(120)
    y = np.repeat(np.arange(20) % 2, 6) if labels is None else labels
    return StandIn(X, y.astype(np.int32), ("ant", "bee"), columns={"patient": PATIENT, **columns})


def rows_of(cache: Any, notes: list[str] | None = None, **settings: Any) -> Rows:
    fit, note = FitSettings(**settings), (notes if notes is not None else []).append
    return select_rows(cache, read_target(cache, fit, note), cache.embeddings, fit, note)


def test_rows_of_one_answer_are_on_one_side() -> None:
    rows = rows_of(cache_of(), per="patient")
    assert rows.groups is rows.per
    assert rows.per is not None
    for patient in np.unique(rows.per):
        assert len(set(rows.split[rows.per == patient])) == 1
    assert set(rows.split) == {"train", "test"}


def test_a_coarser_column_keeps_more_together() -> None:
    hospital = np.repeat([f"h{i}" for i in range(10)], 12)
    for cache, named in ((cache_of(group=hospital), None), (cache_of(hospital=hospital), "hospital")):
        rows = rows_of(cache, per="patient", groups=named)
        assert rows.groups is not None
        assert rows.per is not None
        assert len(np.unique(rows.groups)) == 10
        assert len(np.unique(rows.per)) == 20
        assert all(len(set(rows.split[hospital[rows.index] == name])) == 1 for name in hospital)


def test_a_finer_column_is_no_conflict() -> None:
    rows = rows_of(cache_of(group=np.repeat(np.arange(40), 3)), per="patient")
    assert rows.groups is rows.per


def test_columns_that_cross_are_refused_by_name() -> None:
    crossing = cache_of(group=np.roll(np.repeat([f"h{i}" for i in range(10)], 12), 3))
    with pytest.raises(HeadError, match=r"column 'group', found 10 in several, such as 'p0' in .*--groups patient"):
        rows_of(crossing, per="patient")
    assert rows_of(crossing, per="patient", groups="patient").groups is not None
    with pytest.raises(HeadError, match="--groups patient"):
        rows_of(cache_of(slide=np.arange(120)), per="patient", groups="slide")


def test_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(HeadError, match=r"--per patent: expected a column.*did you mean patient"):
        rows_of(cache_of(), per="patent")
    with pytest.raises(HeadError, match="--groups site: expected a column"):
        rows_of(cache_of(), groups="site")
    with pytest.raises(HeadError, match="another column than the target"):
        rows_of(cache_of(), per="patient", target="patient")


def test_rows_of_one_answer_that_disagree_are_named() -> None:
    y = np.repeat(np.arange(20) % 2, 6)
    y[[1, 40]] = 1 - y[[1, 40]]
    with pytest.raises(HeadError, match=r"in 2 of 20 groups, such as 'p0' \(ant, bee\), 'p6' \(ant, bee\): correct"):
        rows_of(cache_of(y), per="patient")
    numbers = np.repeat(np.random.default_rng(0).normal(size=20), 6)
    numbers[7] += 1
    with pytest.raises(HeadError, match=r"in 1 of 20 groups, such as 'p1'"):
        rows_of(cache_of(number=numbers), per="patient", target="number", task="regression")


def test_a_group_on_both_sides_of_the_split_column_is_refused() -> None:
    split = np.where(np.arange(120) < 63, "train", "test")
    with pytest.raises(HeadError, match=r"one side of the split column, .*'p10' \(train, test\)"):
        rows_of(cache_of(split=split), per="patient")
    split[60:66] = ""
    assert len(rows_of(cache_of(split=split), per="patient").index) == 114


def test_a_row_without_a_value_is_a_group_of_its_own() -> None:
    notes: list[str] = []
    some = np.where(np.arange(120) < 4, "", PATIENT)
    rows = rows_of(cache_of(patient=some), notes, per="patient")
    assert rows.per is not None
    assert len(np.unique(rows.per)) == 24
    assert notes == ["--per patient: 4 of 120 rows have no value, and each is a group of its own"]
    numbers = np.where(np.arange(120) < 4, np.nan, np.repeat(np.arange(20.0), 6))
    rows = rows_of(cache_of(patient=numbers), per="patient")
    assert rows.per is not None
    assert len(np.unique(rows.per)) == 24
    assert "19" in rows.per
