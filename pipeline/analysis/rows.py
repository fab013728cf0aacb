"""Which rows of a cache a question is asked of, and how the answer becomes a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status, not_finite_error
from pipeline.core.spec import PENULTIMATE
from pipeline.core.text import valid_text
from pipeline.errors import AnalysisError, first_line, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_CHECK_ROWS = 4096


def layer_of(cache: Any, name: str) -> NDArray[Any]:
    """Return the map of a layer.

    Raises
    ------
    AnalysisError
        The cache has no such layer.
    """
    if name == PENULTIMATE:
        return cache.embeddings  # type: ignore[no-any-return]
    if name not in cache.layers:
        raise AnalysisError(f"{cache.path} has no layer {name!r}: {near_names(name, ['penultimate', *cache.layers])}")
    return cache.layers[name]  # type: ignore[no-any-return]


def usable_rows(cache: Any, embeddings: NDArray[Any], *, least: int = 1) -> NDArray[np.int64]:
    """Return the rows that are done.

    Parameters
    ----------
    cache : Cache
    embeddings : (N, D)
        The layer that is going to be read.
    least : int
        How many rows the question needs.

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
        finite = np.isfinite(take(embeddings, some)).all(axis=1)
        if not finite.all():
            raise not_finite_error(AnalysisError, some[~finite][0], cache.path)
    return rows


def take(embeddings: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy rows as float32, (n, D); a run of neighbours is sliced, which is quicker."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (len(rows) < 3 or (np.diff(rows) == 1).all()):
        return np.array(embeddings[rows[0] : rows[-1] + 1], dtype=np.float32)
    return np.asarray(embeddings[rows], dtype=np.float32)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1, in place; a row of zeros stays one."""
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.where(norm > 0, norm, 1)[:, None]
    return rows


def label_texts(cache: Any, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the class name of each row, ``""`` for none."""
    names = np.asarray([*cache.label_names, ""], dtype=object)
    return np.asarray(names[np.asarray(cache.labels)[rows]])


def frame(columns: Mapping[str, Any]) -> Any:
    """Return a `pandas.DataFrame`; texts stay Python strings, since Arrow's refuse file names that are not UTF-8."""
    import pandas as pd

    def column(values: Any) -> Any:
        array = np.asarray(values)
        return pd.Series(array.astype(object), dtype=object) if array.dtype.kind in "UO" else pd.Series(array)

    return pd.DataFrame({name: column(values) for name, values in columns.items()})


def write_table(table: Any, path: str | os.PathLike[str]) -> None:
    """Write a data frame as Parquet where the name ends so, else as CSV; it appears when it is whole.

    Raises
    ------
    AnalysisError
        The file cannot be written.
    """

    def write(unfinished: Path) -> None:
        if Path(path).suffix.lower() == ".parquet":
            texts = [name for name in table.columns if table[name].dtype == object]
            table.assign(**{name: valid_text(table[name]) for name in texts}).to_parquet(unfinished, index=False)
        else:
            with unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table.to_csv(file, index=False, lineterminator="\n")

    write_beside(path, write)


def write_beside(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: nothing half-written is ever seen.

    Raises
    ------
    AnalysisError
        The file cannot be written.
    """
    target = Path(path)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        write(unfinished)
        unfinished.replace(target)
    except OSError as error:
        raise AnalysisError(
            f"cannot write {target} ({error.strerror or first_line(error)}): name a file in a folder that exists"
        ) from None
    finally:
        if unfinished.parent.is_dir():
            unfinished.unlink(missing_ok=True)
