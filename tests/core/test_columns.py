"""Columns are joined and spread without changing a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.columns import as_names, as_text, concatenated, spread, whole_numbers

ANY = st.one_of(
    st.lists(st.booleans(), min_size=1).map(np.array),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1).map(lambda v: np.array(v, dtype=np.int64)),
    st.lists(st.integers(0, 2**64 - 1), min_size=1).map(lambda v: np.array(v, dtype=np.uint64)),
    st.lists(st.floats(allow_nan=False), min_size=1).map(lambda v: np.array(v, dtype=np.float64)),
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1).map(
        lambda v: np.array(v, dtype=np.str_)
    ),
)


def same(value: Any, found: Any) -> bool:
    """Return whether two values say the same: equal numbers, or the same text."""
    if isinstance(value, str) or isinstance(found, str):
        return str(value) == str(found)
    return (type(value) is bool and type(found) is bool and value == found) or (
        type(value) is not bool and value == found
    )


@given(
    st.lists(st.one_of(st.none(), ANY), min_size=1, max_size=4).filter(lambda parts: any(p is not None for p in parts))
)
def test_every_value_comes_through_a_concatenation(parts: list[Any]) -> None:
    lengths = [2 if part is None else len(part) for part in parts]
    found = concatenated(parts, lengths).tolist()
    start = 0
    for part, length in zip(parts, lengths, strict=True):
        values = found[start : start + length]
        start += length
        if part is None:
            assert all(value == "" or value != value for value in values)  # NaN
        else:
            assert all(map(same, part.tolist(), values)), (part.dtype, values)


@given(ANY)
def test_every_value_comes_through_a_spread(column: Any) -> None:
    rows = np.arange(len(column))[::-1]
    assert np.array_equal(spread(column, rows, rows >= 0), column[::-1])
    known = rows != 0
    found = spread(column, rows, known).tolist()
    assert all(same(column[row].item(), value) for row, value in zip(rows[known].tolist(), found, strict=False))
    assert found[-1] == "" or found[-1] != found[-1]  # NaN


@pytest.mark.parametrize(
    ("cells", "kind"),
    [([], "i"), ([-(2**63), 1], "i"), ([2**64 - 1, 0], "u"), ([2**63, -1], "U"), ([2**64], "U"), ([2**53, None], "f"),
     ([2**53 + 1, None], "U")],
)  # fmt: skip
def test_whole_numbers_take_the_narrowest_type_that_keeps_them(cells: list[int | None], kind: str) -> None:
    found = whole_numbers(cells)
    assert found.dtype.kind == kind
    assert [
        value
        for value, cell in zip(found.tolist(), cells, strict=True)
        if cell is not None and str(cell) != str(value) and cell != value
    ] == []


def test_a_missing_number_is_no_text() -> None:
    assert as_text(np.array([1.5, np.nan])).tolist() == ["1.5", ""]


def test_infinity_is_a_name_among_whole_numbers() -> None:
    assert as_names(np.array([3.0, np.inf, np.nan])).tolist() == ["3.0", "inf", ""]
