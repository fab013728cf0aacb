"""Rows as directions, which cosines compare."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = TypeVar("Rows", NDArray[np.float32], NDArray[np.float64])


def row_lengths(rows: Rows) -> Rows:
    """Return the length of each row, (n,), 1 for a row of zeros."""
    length: Rows = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    length[length == 0] = 1
    return length


def unit_rows(rows: Rows) -> Rows:
    """Divide rows by their lengths, in place; a row of zeros stays.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    rows /= row_lengths(rows)[:, None]
    return rows
