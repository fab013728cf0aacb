"""The rows of a cache that an analysis uses, and their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status, not_finite_error
from pipeline.errors import AnalysisError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache

_CHECK_ROWS = 4096


def usable_rows(cache: Cache, embeddings: NDArray[Any], *, least: int = 1) -> NDArray[np.int64]:
    """Return the rows that are done.

    Parameters
    ----------
    cache : Cache
    embeddings : (N, D)
        The layer that will be read.
    least : int
        The least number of rows.

    Raises
    ------
    AnalysisError
        Fewer rows than that, or a value that is not finite.
    """
    rows = np.flatnonzero(np.asarray(cache.status) == Status.DONE)
    if len(rows) < least:
        raise AnalysisError(
            f"expected at least {least} rows that are done in {cache.path}, found {len(rows)}: "
            "finish pipeline extract first"
        )
    for start in range(0, len(rows), _CHECK_ROWS):
        some = rows[start : start + _CHECK_ROWS]
        finite = np.isfinite(rows_of(embeddings, some)).all(axis=1)
        if not finite.all():
            raise not_finite_error(AnalysisError, some[~finite][0], cache.path)
    return rows


def rows_of(embeddings: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows as float32, (n, D), to be read only: consecutive float32 rows are not copied."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (len(rows) < 3 or (np.diff(rows) == 1).all()):
        return np.asarray(embeddings[rows[0] : rows[-1] + 1], dtype=np.float32)
    return np.asarray(embeddings[rows], dtype=np.float32)


def take(embeddings: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy rows as float32, (n, D)."""
    found = rows_of(embeddings, rows)
    return found if found.flags.owndata and found.flags.writeable else found.copy()


def label_texts(cache: Cache, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the class name of each row, ``""`` for none."""
    names = np.asarray([*cache.label_names, ""], dtype=object)
    return np.asarray(names[np.asarray(cache.labels)[rows]])
