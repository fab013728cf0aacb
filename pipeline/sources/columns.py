"""Columns of a table as the cache holds them: typed arrays and names, or left out by name."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.columns import whole_numbers
from pipeline.core.items import Skipped
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.errors import SourceError
from pipeline.sources.base import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

NAMES = ("label", "split", "group")
"""Columns of names, which nothing may be lost of; they are kept at any length."""
_LISTS = (list, tuple, np.ndarray)
_WHOLE = (int, np.integer)
_BOOLEAN = (bool, np.bool_)


def left_out(name: object, reason: str) -> Skipped:
    """Return the record of a column that the cache cannot hold; the summary counts reasons, so the name is in it."""
    return Skipped(str(name), f"column {str(name)!r}: {reason}")


def without_unfit(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Skipped]]:
    """Return a table without the columns that a cache cannot hold, and their names.

    A cache's columns are of fixed length: one text above `MAX_TEXT` characters makes every row's as long, and gigabytes
    of a million rows. Labels, splits and groups are names, and stay.
    """
    reasons = {name: _unfit(frame[name]) for name in frame.columns if name not in NAMES}
    unfit = {name: reason for name, reason in reasons.items() if reason}
    return frame.drop(columns=list(unfit)), [left_out(name, reason) for name, reason in unfit.items()]


def _unfit(series: pd.Series[Any]) -> str:
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biufM":
        return ""
    if (plain := _plain_texts(series)) is not None:
        return _unfit_text(plain)
    cells = present_cells(series)
    if any(isinstance(cell, dict) for cell in cells):
        return "values of several fields"
    if any(isinstance(cell, bytes) for cell in cells):
        return "bytes"
    if any(isinstance(cell, _LISTS) and any(map(_is_missing, cell)) for cell in cells):
        return "lists with missing elements"
    return _unfit_text(cell_texts(series))


def _unfit_text(texts: Sequence[str | None]) -> str:
    distinct = set(texts) - {None}
    if any(len(text) > MAX_TEXT for text in distinct if text):
        return f"texts above {MAX_TEXT} characters"
    return "texts with zero bytes" if any("\0" in text for text in distinct if text) else ""


def _plain_texts(series: pd.Series[Any]) -> list[str | None] | None:
    """Return the cells where all are texts or None, as those of CSV are, else None."""
    cells: list[Any] = series.tolist() if series.dtype == object else [0]
    return cells if set(map(type, cells)) <= {str, type(None)} else None


def present_cells(series: pd.Series[Any]) -> list[Any]:
    """Return the cells that are not missing."""
    return [value for value, missing in zip(series, series.isna(), strict=True) if not missing]


def cell_texts(series: pd.Series[Any]) -> list[str | None]:
    """Return cells as text, lists joined by a bar; None where there is nothing.

    Raises
    ------
    SourceError
        A list has a missing or an empty element, or a name with the separator, which would divide it when the label
        sets are read again.
    """
    if (plain := _plain_texts(series)) is not None:
        return plain
    short = isinstance(series.dtype, np.dtype) and series.dtype.kind == "f" and series.dtype.itemsize < 8
    values: Any = series.to_numpy() if short else series  # float32 0.1 is 0.1, not 0.10000000149011612
    cells = list(zip(values, series.isna(), strict=True))
    texts = [None if missing else _text(value) for value, missing in cells]
    lists = [value for value, _ in cells if isinstance(value, _LISTS)]
    if any(_is_missing(name) for value in lists for name in value):
        raise SourceError(f"column {series.name!r} has a list with a missing element: remove it, or name it")
    names = [str(name) for value in lists for name in value]
    joined = any(SET_SEPARATOR in text for text in texts if text is not None)
    for separator in (SET_SEPARATOR, *(() if joined else (OTHER_SET_SEPARATOR,))):
        if cut := next((name for name in names if separator in name), None):
            raise SourceError(
                f"column {series.name!r} lists the name {cut!r}, in which {separator!r} separates labels: rename it"
            )
    return texts


def _is_missing(element: Any) -> bool:
    """Return whether an element of a list is none: without a name it could not be told from no element."""
    return element is None or (isinstance(element, str) and not element)


def _text(value: Any) -> str:
    """Write a cell as text; a list as a label set, which is a lone bar where it is empty."""
    if isinstance(value, _LISTS):
        return SET_SEPARATOR.join(map(str, value)) or SET_SEPARATOR
    return str(value)


def label_texts(series: pd.Series[Any]) -> list[str | None]:
    """Return class names, None also for an empty text, which names no class; see `cell_texts`.

    Raises
    ------
    SourceError
        Also where a cell is no name: bytes, several fields, or a text with a zero byte, which would end it.
    """
    for cell in {*plain} if (plain := _plain_texts(series)) is not None else present_cells(series):
        if isinstance(cell, (dict, bytes)) or (isinstance(cell, str) and "\0" in cell):
            found = "a text with a zero byte" if isinstance(cell, str) else type(cell).__name__
            raise SourceError(f"expected names in column {series.name!r}, found {found}: write names there")
    return [text or None for text in cell_texts(series)]


def empty_cells(series: pd.Series[Any]) -> NDArray[np.int64]:
    """Return the rows of a column of names that hold none: a missing value, or an empty text."""
    return np.flatnonzero((series.isna() | (series == "")).to_numpy(dtype=np.bool_))


def column_values(series: pd.Series[Any], *, text: bool) -> NDArray[Any]:
    """Return the column as bool, int64, uint64, float64 or text (missing values: NaN, or empty text).

    Whole numbers and decimals that float64 cannot hold are text where they stand beside gaps or fractions.
    """
    if not text:
        if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
            return _plain(series.to_numpy())
        plain = _plain_texts(series)
        cells = plain or [None if missing else value for value, missing in zip(series, series.isna(), strict=True)]
        if plain is None and (numbers := _numbers(cells)) is not None:
            return numbers
    return np.array([text or "" for text in cell_texts(series)], dtype=np.str_)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "u" and values.max(initial=0) < 1 << 63:
        return values.astype(np.int64)
    widest: dict[str, Any] = {"b": np.bool_, "i": np.int64, "u": np.uint64, "f": np.float64}
    return values.astype(widest[values.dtype.kind])


def _numbers(cells: Sequence[Any]) -> NDArray[Any] | None:
    """Return truth values or numbers that keep every cell, or None where text has to."""
    present = [cell for cell in cells if cell is not None]
    if not present:
        return None
    if all(isinstance(cell, _BOOLEAN) for cell in present):
        return np.array(cells, dtype=np.bool_) if len(present) == len(cells) else None
    if any(isinstance(cell, _BOOLEAN) for cell in present):
        return None
    if all(isinstance(cell, _WHOLE) for cell in present):
        return whole_numbers([None if cell is None else int(cell) for cell in cells])
    if all(isinstance(cell, (*_WHOLE, float, np.floating, Decimal)) and _fits_float(cell) for cell in present):
        return np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)
    return None


def _fits_float(number: Any) -> bool:
    if isinstance(number, Decimal):
        return number.is_finite() and Decimal(repr(float(number))) == number
    return not isinstance(number, _WHOLE) or int(number) == int(float(number))
