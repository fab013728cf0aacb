"""Tables as CSV: what pandas would write, without pandas."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.selection.frames import frame, write_csv, write_table

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS: dict[str, Any] = {
    "key": np.array(["a,b", 'say "x"', "two\nlines", ""], dtype=object),
    "label": ["cat", None, "", "dog"],
    "rank": np.arange(4),
    "is_issue": np.array([True, False, True, False]),
    "float32": np.array([0.1, np.nan, 1e-7, 1], np.float32),
    "float64": np.array([0.1, -np.inf, 1e22, 1 / 3]),
}


def written(table: Any) -> str:
    file = io.StringIO(newline="")
    write_csv(table, file)
    return file.getvalue()


def test_columns_are_written_as_pandas_writes_them() -> None:
    assert written(COLUMNS) == frame(COLUMNS).to_csv(index=False)


def test_parquet_keeps_what_is_missing(tmp_path: Path) -> None:
    write_table({"label": ["cat", None, "", np.nan], "n": np.arange(4)}, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {"label": ["cat", None, "", None], "n": [0, 1, 2, 3]}


def test_a_data_frame_is_written_as_its_columns() -> None:
    assert written(frame(COLUMNS)) == written(COLUMNS)


def test_a_carriage_return_stays_within_its_cell() -> None:
    text = written({"key": ["a\rb"], "n": [1]})
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["key", "n"], ["a\rb", "1"]]


def test_a_table_without_rows_keeps_its_columns() -> None:
    assert written({"key": np.array([], dtype=object), "cosine": np.array([], np.float32)}) == "key,cosine\n"


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        written({"key": ["a", "b"], "n": [1]})


def test_float32_is_read_back_as_it_was() -> None:
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    back = pd.read_csv(io.StringIO(written({"x": values})))["x"].to_numpy(np.float32)
    assert np.array_equal(back, values)
