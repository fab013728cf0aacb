"""The steps of joining a selection with a table; each checks one thing and raises its own error.

Axes: n candidate rows of the selection, m lines of the table.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.columns import spread
from pipeline.core.text import match_names
from pipeline.errors import SourceError, few_names, near_names
from pipeline.sources.arrow_table import class_names, frame_of
from pipeline.sources.base import MAX_TEXT
from pipeline.sources.columns import cell_texts, column_values, empty_cells, without_unfit
from pipeline.sources.table import TEXT_COLUMNS, read_table

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

KEY = "key"


@dataclass(frozen=True)
class Match:
    """Which line of a table belongs to each row.

    Attributes
    ----------
    frame : DataFrame
    on : str
        The column that rows and lines share.
    line_of : (n,) int64
        The line of each row; -1 for none.
    """

    frame: pd.DataFrame
    on: str
    line_of: NDArray[np.int64]

    def unmatched(self, shown: NDArray[np.int64] | None) -> tuple[int, int]:
        """Count the rows without a line, among those shown, and the lines without a row."""
        found = self.line_of if shown is None else self.line_of[shown]
        return int((found < 0).sum()), len(self.frame) - len(np.unique(self.line_of[self.line_of >= 0]))


def as_frame(table: pd.DataFrame | pa.Table | str | os.PathLike[str], on: str) -> tuple[pd.DataFrame, list[str]]:
    """Return a table, or the file at a path, as a data frame with ``on`` among its columns, and what it leaves out.

    Raises
    ------
    SourceError
        It cannot be read, has no such column, or two columns of one name.
    """
    import pandas as pd  # takes half a second: only where tables are joined

    unread: list[str] = []
    if isinstance(table, (str, os.PathLike)):
        frame, skipped = read_table(os.fspath(table), text=(on, *TEXT_COLUMNS))
        unread = [skip.reason for skip in skipped]
    else:
        _check_names_differ(table.columns if isinstance(table, pd.DataFrame) else table.column_names)
        frame = table if isinstance(table, pd.DataFrame) else frame_of(table, class_names(table.schema))
    frame = frame.reset_index() if on not in frame.columns and frame.index.name == on else frame
    if on not in frame.columns:
        raise SourceError(
            f"expected a column {on!r} in the table to join, found {few_names(list(map(str, frame.columns)))}: "
            "name the column that holds the keys with on=, or rename it"
        )
    return frame, unread


def _check_names_differ(columns: Iterable[object]) -> None:
    names = list(map(str, columns))  # a cache's names are texts: the number 1 would take the place of the text
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SourceError(
            f"expected columns of different names in the table to join, found {twice!r} twice: rename one"
        )


def key_column(frame: pd.DataFrame, on: str, columns: Container[str]) -> tuple[pd.DataFrame, str]:
    """Return the table and the column to match by: ``on`` where the selection has it too, else its keys.

    Raises
    ------
    SourceError
        The table has another column of the keys' name.
    """
    if on != KEY and on not in columns:
        if KEY in frame.columns:
            raise SourceError(f"the table to join has {KEY!r} besides {on!r}: leave on= out, or rename {KEY!r}")
        return frame.rename(columns={on: KEY}), KEY
    return frame, on


def choose_columns(frame: pd.DataFrame, on: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table with the columns asked for.

    Raises
    ------
    SourceError
        It lacks one.
    """
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        known = near_names(absent[0], map(str, frame.columns))
        raise SourceError(f"the table to join has no column {absent[0]!r}: {known}")
    return frame[list(dict.fromkeys([on, *columns]))]


def check_names_free(frame: pd.DataFrame, on: str, taken: set[str]) -> None:
    """Refuse a table with a column that the selection has already.

    Raises
    ------
    SourceError
        Names the column.
    """
    clash = taken & set(map(str, frame.columns)) - {on}
    if clash:
        raise SourceError(
            f"the table to join has {min(clash)!r}, which is taken: rename it, or name others with columns="
        )


def match_rows(frame: pd.DataFrame, on: str, own: NDArray[Any], path: Path) -> Match:
    """Find the line of each row; a missing value is none that a row and a line could share.

    Raises
    ------
    SourceError
        A value occurs twice in the table, or not one row has a line.
    """
    import pandas as pd  # as above

    named = np.setdiff1d(np.arange(len(frame)), empty_cells(frame[on]))
    # As Python objects, which compare exactly: of int64 and float64 pandas would round one to the other.
    cells = frame[on].iloc[named]
    values = cells.tolist()
    if any(isinstance(value, (list, dict, np.ndarray)) for value in values):  # label sets, which a cache holds as text
        values = cell_texts(cells)
    lines = pd.Index(values, dtype=object)
    if lines.has_duplicates:
        twice = lines[lines.duplicated()]
        raise SourceError(
            f"expected every {on} once in the table to join, found {str(twice[0])!r} more than once "
            f"({twice.nunique()} such): remove the duplicates"
        )
    found = lines.get_indexer(pd.Index(own.tolist(), dtype=object))
    if on == KEY and (found < 0).any():
        found = match_names(own.tolist(), list(map(str, lines)))
    if not (found >= 0).any():
        raise SourceError(
            f"no {on} of the table to join is one of {path}, where they look like {str(own[0])!r} and in the "
            f"table like {str(lines[0])!r}: correct the column"
            if len(own) and len(lines)
            else "expected rows on both sides of a join, found none"
        )
    return Match(frame, on, np.append(named, -1)[found])


def aligned_columns(match: Match, *, asked: bool) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the table's columns, a value for each row, and which were left out and why.

    Raises
    ------
    SourceError
        A column that a cache cannot hold was asked for.
    """
    fit, unfit = without_unfit(match.frame.drop(columns=match.on))
    if unfit and asked:
        raise SourceError(
            f"expected columns that a cache can hold, such as texts of {MAX_TEXT} characters at most, found "
            f"{unfit[0].reason} of the table to join: shorten them, or name others with columns="
        )
    known = match.line_of >= 0
    values = {
        str(name): spread(column_values(fit[name], text=name == "split"), match.line_of, known) for name in fit.columns
    }
    return values, [skip.reason for skip in unfit]
