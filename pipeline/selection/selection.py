"""Rows of a cache as analyses want them: the done ones, chosen by split or label, joined with a table.

`pipeline.open` is the entry point for scripts. A selection has the properties of a cache and converts to the types of
other libraries (`pipeline.selection.convert`). Imports neither torch nor pandas before they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.cache import open_cache
from pipeline.cache.reader import LazyArrays
from pipeline.core.callbacks import Say, ignore
from pipeline.core.items import ALL, DONE, FAILED, TODO, Status
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import PipelineError, near_names
from pipeline.selection.convert import Convertible
from pipeline.selection.join import (
    KEY,
    aligned_columns,
    as_frame,
    check_names_free,
    choose_columns,
    key_column,
    match_rows,
)
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from pipeline.cache import Cache

TAKEN = (KEY, "label", "embedding")
"""Names that are reserved in tables of a selection."""
BLOCK_BYTES = 64 << 20


class Unmatched(NamedTuple):
    """The unmatched rest of a join: rows of the selection without a line in the table, and lines without a row."""

    rows: int
    lines: int


class Selection(Convertible):
    """Selected rows of a cache, in an order. `pipeline.open` returns one, and each of its methods a new one.

    Parameters
    ----------
    cache : Cache
    status : str
        ``done``, ``failed``, ``todo``, ``all``, or one kind of failure, such as ``corrupt``.

    Attributes
    ----------
    cache : Cache
        The file, with every row and its status.
    rows : (n,) int64
        Row numbers in the file.
    wanted_status : str
        The selected outcomes.
    unmatched : Unmatched or None
        The unmatched rest of the last `join`.

    Notes
    -----
    Data are read on first use. Consecutive rows of the file, such as those of a complete cache, are a slice of the
    memory map, without a copy. Other rows are copied into memory at the first use of a property, and kept. `blocks`
    iterates over selections that are larger than memory.
    """

    def __init__(self, cache: Cache, status: str = DONE) -> None:
        self.cache = cache
        self.unmatched: Unmatched | None = None
        self._candidates = np.arange(len(cache), dtype=np.int64)
        self._joined: dict[str, NDArray[Any]] = {}
        self._choose(status)

    def _choose(self, status: str) -> None:
        """Set which outcomes count: of the candidates, those become the rows."""
        fitting = _has_status(self.cache.status[_span(self._candidates)], status)
        self.wanted_status = status
        self._shown = None if fitting.all() else np.flatnonzero(fitting)
        self.rows = self._candidates if self._shown is None else self._candidates[self._shown]
        self._span = _span(self.rows)
        self.layers: Mapping[str, NDArray[Any]] = LazyArrays(self.cache.layers, self._layer)
        self.columns: Mapping[str, NDArray[Any]] = LazyArrays([*self.cache.columns, *self._joined], self._column)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        unmatched = "" if self.unmatched is None else f", joined but for {self.unmatched.rows} rows"
        return (
            f"<Selection of {self.cache.path}: {len(self)} of {len(self.cache)} rows × {self.width}, "
            f"{self.wanted_status}{unmatched}, {self.spec.get('backbone')}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the row numbers, not the data."""
        return _rebuild, (self.cache, self.wanted_status, self._candidates, self._joined, self.unmatched)

    def __getitem__(self, index: slice | ArrayLike) -> Selection:
        """Choose by position, as NumPy does: a slice, an array of booleans or of integers."""
        if isinstance(index, slice):
            return self._narrowed(np.arange(*index.indices(len(self))))
        wanted = np.asarray(index)
        if wanted.size == 0 and wanted.dtype != np.bool_:  # of an empty list NumPy makes floats
            wanted = wanted.astype(np.int64)
        return self._narrowed(np.atleast_1d(np.arange(len(self))[wanted]))

    @property
    def path(self) -> Path:
        """The file."""
        return self.cache.path

    @property
    def width(self) -> int:
        """Embedding width D of the penultimate layer."""
        return self.cache.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the embeddings."""
        return self.cache.dtype

    @property
    def embeddings(self) -> NDArray[Any]:
        """(n, D) of the penultimate layer; other layers are in ``layers``."""
        return self.layers[PENULTIMATE]

    @property
    def keys(self) -> NDArray[np.str_]:
        """(n,) keys as text; bytes that are not UTF-8 come as surrogate escapes."""
        return self.cache.keys_of(self._span)

    @property
    def labels(self) -> NDArray[np.int32]:
        """(n,) index into ``label_names``; -1 for none."""
        return self.cache.labels[self._span]

    @property
    def status(self) -> NDArray[np.uint8]:
        """(n,) outcomes; see `pipeline.core.items.Status`."""
        return self.cache.status[self._span]

    @property
    def content_hash(self) -> NDArray[np.uint8]:
        """(n, 16): BLAKE2b of the bytes handed to the decoder."""
        return self.cache.content_hash[self._span]

    def image_bytes(self, position: int) -> bytes | None:
        """Return the bytes of an image file, or None where it is missing or cannot be read."""
        return image_bytes(self.cache, int(self.rows[position]))

    def select(
        self,
        *,
        split: str | Iterable[str] | None = None,
        label: str | Iterable[str] | None = None,
        status: str | None = None,
        rows: ArrayLike | None = None,
    ) -> Selection:
        """Choose rows by their properties; arguments left out do not restrict.

        Parameters
        ----------
        split : str or several
            Values of the column ``split``.
        label : str or several
            Class names.
        status : str
            Replaces the outcome chosen so far: ``open(path).select(status="failed")`` has the failed rows;
            see `Selection`.
        rows : (m,) int
            Row numbers in the file, in this order.

        Raises
        ------
        PipelineError
            There is no such split, label, outcome or row.
        """
        chosen = self._narrowed(np.arange(len(self._candidates)), of_candidates=True)
        if rows is not None:
            chosen = chosen._narrowed(_positions(chosen._candidates, rows, len(self.cache)), of_candidates=True)
        if label is not None:
            wanted = _known([label] if isinstance(label, str) else list(label), self.label_names, "label")
            codes = [self.label_names.index(name) for name in wanted]
            fitting = np.isin(self.cache.labels[_span(chosen._candidates)], codes)
            chosen = chosen._narrowed(np.flatnonzero(fitting), of_candidates=True)
        if split is not None:
            if "split" not in self.columns:
                raise PipelineError(
                    f"expected a column 'split' in {self.path}, found {', '.join(self.columns) or 'no columns'}: "
                    "extract from train/ and test/ folders or a table with that column, or join one"
                )
            values = chosen._values("split", np.arange(len(chosen._candidates)))
            wanted = _known([split] if isinstance(split, str) else list(split), np.unique(values).tolist(), "split")
            chosen = chosen._narrowed(np.flatnonzero(np.isin(values, wanted)), of_candidates=True)
        chosen._choose(self.wanted_status if status is None else status)
        return chosen

    def join(
        self,
        table: pd.DataFrame | pa.Table | str | os.PathLike[str],
        on: str = KEY,
        *,
        columns: Sequence[str] | None = None,
        say: Say = ignore,
    ) -> Selection:
        """Add a table's columns, matched by key; every row stays, with missing values where the table has no line.

        Parameters
        ----------
        table : pandas or Arrow table, or path of a CSV or Parquet file
        on : str
            The table's column of keys, or a column that both have, such as ``group``.
        columns : sequence of str, optional
            Which columns of the table to add; all by default.
        say : callable
            Called with the numbers of rows and lines without a match (also in `unmatched` of the result), and with the
            columns that were left out, such as those of long texts.

        Returns
        -------
        Selection
            Whose ``columns`` hold the table's as well: text (empty where missing), float64 (NaN where missing), int64,
            uint64 or bool.

        Raises
        ------
        SourceError
            The table has no such column, holds a key twice, a name that is taken, no key of any row, or long texts in a
            column that was asked for.
        """
        frame, unread = as_frame(table, on)
        frame, on = key_column(frame, on, self.columns)
        if columns is not None:
            frame = choose_columns(frame, on, columns)
        check_names_free(frame, on, {*TAKEN, *self.columns})
        match = match_rows(frame, on, self._candidate_values(on), self.path)
        values, unfit = aligned_columns(match, asked=columns is not None)
        left_out = [*([] if columns is not None else unread), *unfit]
        joined = self._narrowed(np.arange(len(self._candidates)), of_candidates=True)
        joined._joined |= values
        joined._choose(self.wanted_status)
        joined.unmatched = Unmatched(*match.unmatched(self._shown))
        if left_out:
            say(f"left out: {'; '.join(left_out)}")
        say(
            f"{joined.unmatched.rows} of {len(self)} rows have no line in the table, {joined.unmatched.lines} of its "
            f"{len(match.frame)} lines no row"
        )
        return joined

    def blocks(self, layer: str = PENULTIMATE) -> Iterator[Selection]:
        """Yield the selection in pieces of a few thousand rows, about 64 MB each."""
        size = max(1, BLOCK_BYTES // (self.layer_width(layer) * self.dtype.itemsize))
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def layer_width(self, layer: str) -> int:
        """Return the embedding width of a layer.

        Raises
        ------
        PipelineError
            The cache has no such layer.
        """
        return int(self.cache.layer(layer).shape[1])

    def _layer(self, name: str) -> NDArray[Any]:
        return self.cache.layers[name][self._span]

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._joined:
            return self.cache.column(name, self._span)
        return self._joined[name] if self._shown is None else self._joined[name][self._shown]

    def _candidate_values(self, on: str) -> NDArray[Any]:
        """Return the keys, or a column, of all candidates."""
        if on == KEY:
            return self.cache.keys_of(_span(self._candidates))
        return self._values(on, np.arange(len(self._candidates)))

    def _values(self, name: str, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return a column at positions among the candidates."""
        if name in self._joined:
            return self._joined[name][positions]
        return self.cache.column(name, _span(self._candidates[positions]))

    def _narrowed(self, positions: NDArray[np.int64], *, of_candidates: bool = False) -> Selection:
        """Return the selection of some positions, among the rows or among the candidates."""
        if not of_candidates and self._shown is not None:
            positions = self._shown[positions]
        joined = {name: values[positions] for name, values in self._joined.items()}
        return _rebuild(self.cache, self.wanted_status, self._candidates[positions], joined, self.unmatched)


def open_selection(path: str | bytes | os.PathLike[str], status: str = DONE) -> Selection:
    """Open a cache for analysis: `pipeline.open`.

    Parameters
    ----------
    path : path
        The cache.
    status : str
        Which rows: ``done``, or see `Selection`.

    Raises
    ------
    CacheError
        The file is not a cache.
    PipelineError
        There is no such outcome.

    See Also
    --------
    pipeline.open_cache : the file as it is, with every row.
    """
    return Selection(open_cache(path), status)


def _rebuild(
    cache: Cache,
    status: str,
    candidates: NDArray[np.int64],
    joined: dict[str, NDArray[Any]],
    unmatched: Unmatched | None,
) -> Selection:
    selection = Selection.__new__(Selection)
    selection.cache, selection.unmatched = cache, unmatched
    selection._candidates, selection._joined = candidates, joined
    selection._choose(status)
    return selection


def _span(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return consecutive rows as a slice, which needs no copy of a map."""
    if len(rows) == 0:
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and (len(rows) == 1 or bool((np.diff(rows) == 1).all())):
        return slice(first, last + 1)
    return rows


def _has_status(status: NDArray[np.uint8], wanted: str) -> NDArray[np.bool_]:
    if wanted == ALL:
        return np.ones(len(status), dtype=np.bool_)
    if wanted == FAILED:
        return status > Status.DONE
    codes = {code.name.lower(): code for code in Status}
    name = _known([wanted], dict.fromkeys([DONE, TODO, FAILED, ALL, *codes]), "status")[0]
    return np.asarray(status == codes[name], dtype=np.bool_)


def _known(wanted: list[str], known: Iterable[str], what: str) -> list[str]:
    names = list(known)
    for name in wanted:
        if name not in names:
            raise PipelineError(
                f"expected a {what} of the cache, found {name!r}: "
                f"{near_names(str(name), names) if names else f'it has no {what}s'}"
            )
    return wanted


def _positions(candidates: NDArray[np.int64], rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return where rows are among the candidates, in their order; those that are not there are left out."""
    wanted = np.asarray(rows)
    if wanted.size == 0:
        return np.empty(0, dtype=np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= count:
        raise PipelineError(
            f"expected row numbers from 0 to {count - 1} in one dimension, found {wanted.dtype} of shape {wanted.shape}"
            f"{'' if wanted.dtype.kind not in 'iu' else f', from {wanted.min()} to {wanted.max()}'}: "
            "index the selection itself for positions and truth values"
        )
    order = np.argsort(candidates, kind="stable")
    found = np.searchsorted(candidates, wanted, sorter=order)
    found = np.minimum(found, len(candidates) - 1) if len(candidates) else found[:0]
    positions = order[found]
    there = candidates[positions] == wanted[: len(positions)]
    return np.asarray(positions[there], dtype=np.int64)
