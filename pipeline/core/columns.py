"""Columns of values for a cache: joined and spread over rows without changing a value.

A column is an array of bool, int64, uint64, float64 or text. Where a value is missing, text is empty and a number is
NaN. Whole numbers that float64 cannot hold exactly, and truth values, become text beside a gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

EXACT = 1 << 53
"""Whole numbers up to this size are exact in float64."""

MISSING_WORDS = frozenset(
    {"", "na", "n/a", "nan", "null", "none", "nil", "missing", "unknown", "-", "--", "?", ".", "#n/a"}
)
"""What programs and people write into a column of numbers where there is none, in lower case."""


def number_of(text: str) -> float | None:
    """Return the number that a text is; None of another text, also of one that only Python reads as a number.

    Examples
    --------
    >>> number_of(" 1e3 "), number_of("1_000"), number_of("cat")
    (1000.0, None, None)
    """
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def whole_numbers(cells: Sequence[int | None]) -> NDArray[Any]:
    """Return whole numbers, None for missing, in the narrowest type that keeps each: int64, uint64, float64 or text.

    Examples
    --------
    >>> whole_numbers([1, 2**63]).dtype, whole_numbers([1, None]).tolist(), whole_numbers([2**60 + 1, None]).tolist()
    (dtype('uint64'), [1.0, nan], ['1152921504606846977', ''])
    """
    present = [cell for cell in cells if cell is not None]
    least, most = min(present, default=0), max(present, default=0)
    if len(present) == len(cells):
        if least >= -(1 << 63) and most < 1 << 63:
            return np.array(cells, dtype=np.int64)
        if least >= 0 and most < 1 << 64:
            return np.array(cells, dtype=np.uint64)
    elif max(-least, most) <= EXACT:
        return np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)
    return np.array(["" if cell is None else str(cell) for cell in cells], dtype=np.str_)


def spread(values: NDArray[Any], rows: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[Any]:
    """Return ``values[rows]``, and the missing value where ``known`` is false.

    Examples
    --------
    >>> spread(np.array([7, 8]), np.array([1, 0]), np.array([True, False])).tolist()
    [8.0, nan]
    """
    if known.all():
        return values[rows]
    return _as(values[rows], _common_type([values], gaps=True), missing=~known)


def concatenated(parts: Sequence[NDArray[Any] | None], lengths: Sequence[int]) -> NDArray[Any]:
    """Join a column that some parts may lack.

    Examples
    --------
    >>> concatenated([np.array([2**60 + 1]), None], [1, 1]).tolist()
    ['1152921504606846977', '']
    """
    filled = [part for part in parts if part is not None and len(part)]
    gaps = any(part is None and length for part, length in zip(parts, lengths, strict=True))
    kind = _common_type(filled or [part for part in parts if part is not None], gaps=gaps)
    return np.concatenate(
        [
            np.full(length, _missing(kind), dtype=kind) if part is None else _as(part, kind)
            for part, length in zip(parts, lengths, strict=True)
        ]
    )


def as_text(values: NDArray[Any]) -> NDArray[np.str_]:
    """Return values as text, NaN as empty text."""
    texts = values.astype(np.str_)
    return np.where(np.isnan(values), "", texts) if values.dtype.kind == "f" else texts


def as_names(values: NDArray[Any]) -> NDArray[np.str_]:
    """Return values as names, missing ones as empty text.

    Whole numbers are written as such, also where an empty cell made floats of them.

    Examples
    --------
    >>> as_names(np.array([3.0, np.nan])).tolist(), as_names(np.array([0.5, np.nan])).tolist()
    (['3', ''], ['0.5', ''])
    """
    if values.dtype.kind == "f":
        known = ~np.isnan(values)
        numbers = values[known]
        if len(numbers) and (numbers == np.round(numbers)).all() and np.abs(numbers).max() < EXACT:
            names = np.full(len(values), "", dtype="<U20")
            names[known] = numbers.astype(np.int64).astype(str)
            return names
    return as_text(values)


def _missing(kind: np.dtype[Any]) -> Any:
    return "" if kind.kind == "U" else np.nan


def _common_type(columns: Iterable[NDArray[Any]], *, gaps: bool) -> np.dtype[Any]:
    """Return the type that keeps every value of the columns, with or without missing values among them."""
    columns = list(columns)
    kinds = {column.dtype.kind for column in columns}
    text, wide = np.dtype(np.str_), np.dtype(np.float64)
    if kinds & {"U", "S"} or (gaps and "b" in kinds):
        return text
    if kinds <= {"b"}:
        return np.dtype(np.bool_) if kinds else wide
    if "b" in kinds:
        return text
    if "f" in kinds or gaps:
        return wide if all(_fits_float(column) for column in columns) else text
    if all(column.dtype.kind == "i" or column.max(initial=0) < 1 << 63 for column in columns):
        return np.dtype(np.int64)
    return np.dtype(np.uint64) if all(column.min(initial=0) >= 0 for column in columns) else text


def _fits_float(column: NDArray[Any]) -> bool:
    if column.dtype.kind == "f":
        return True
    return int(column.max(initial=0)) <= EXACT and int(column.min(initial=0)) >= -EXACT


def _as(values: NDArray[Any], kind: np.dtype[Any], *, missing: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    converted = as_text(values) if kind.kind == "U" else values.astype(kind, copy=False)
    return converted if missing is None else np.where(missing, _missing(kind), converted)
