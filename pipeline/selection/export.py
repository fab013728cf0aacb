"""A cache as another kind of file: Parquet, NumPy, CSV, AnnData. Streams, except for AnnData; writes atomically."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.cache.format import write_hdf5
from pipeline.core.files import replacing
from pipeline.core.outputs import check_file
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import PipelineError
from pipeline.selection.selection import open_selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pyarrow as pa

    from pipeline.selection.selection import Selection

KINDS = ("parquet", "npy", "csv", "h5ad")


def export(
    cache: str | os.PathLike[str] | Selection,
    output: str | os.PathLike[str],
    kind: str,
    *,
    split: str | Iterable[str] | None = None,
    label: str | Iterable[str] | None = None,
    layer: str = PENULTIMATE,
    progress: Callable[[int, int, int], None] = lambda ready, failed, total: None,
) -> list[Path]:
    """Write embeddings, keys, labels and columns of the done rows.

    Parameters
    ----------
    cache : path or Selection
        A selection is written as it is, further narrowed by ``split`` and ``label``.
    output : path
        Replaced where it is empty or an export.
    kind : {"parquet", "npy", "csv", "h5ad"}
        ``npy`` writes two files: the (n, D) array, and beside it ``OUTPUT.csv`` with a line for each row.
    split, label : str or several
        See `Selection.select`.
    layer : str
        Whose embeddings.
    progress : callable
        Called with (rows written, 0, rows in all).

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    PipelineError
        The cache, the selection or the output cannot be used; the output is unchanged.
    """
    selection = open_selection(cache) if isinstance(cache, (str, os.PathLike)) else cache
    selection = selection.select(split=split, label=label)
    selection.layer_width(layer)
    if kind not in _WRITERS:
        raise PipelineError(f"expected a kind of {', '.join(KINDS)}, found {kind!r}: choose one of them")
    if not len(selection):
        raise PipelineError(f"expected rows to export, found none among the {len(selection.cache)} of {selection.path}")
    check_file(output)
    path = Path(output)
    outputs = [path]
    if kind == "npy":
        outputs.insert(0, path.with_name(path.name + ".csv"))
        check_file(outputs[0])
    with ExitStack() as stack:
        parts = [stack.enter_context(replacing(file)) for file in outputs]
        _WRITERS[kind](selection, layer, parts, progress)
    return outputs[::-1]


class _Sink(Protocol):
    """The common interface of Arrow's writers of CSV and Parquet."""

    def write_table(self, table: pa.Table) -> None: ...


def _write_parquet(selection: Selection, layer: str, parts: list[Path], progress: Callable[..., None]) -> None:
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        file = stack.enter_context(parts[0].open("wb"))  # Arrow takes no names that are not UTF-8
        writer: _Sink | None = None
        for table, ready in _tables(selection, layer, progress):
            if writer is None:
                # Embeddings hardly repeat: a dictionary of them would only cost time.
                names = [name for name in table.column_names if name != "embedding"]
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, use_dictionary=names))
            writer.write_table(table)
            progress(ready, 0, len(selection))


def _write_csv(selection: Selection, layer: str | None, parts: list[Path], progress: Callable[..., None]) -> None:
    import pyarrow.csv as pc

    with ExitStack() as stack:
        file = stack.enter_context(parts[0].open("wb"))  # as above
        writer: _Sink | None = None
        for table, ready in _tables(selection, layer, progress):
            flat = _flat(table, 0 if layer is None else selection.layer_width(layer))
            if writer is None:
                writer = stack.enter_context(pc.CSVWriter(file, flat.schema))
            writer.write_table(flat)
            progress(ready, 0, len(selection))


def _write_npy(selection: Selection, layer: str, parts: list[Path], progress: Callable[..., None]) -> None:
    _write_csv(selection, None, parts[:1], lambda *counts: None)
    header = {
        "descr": np.lib.format.dtype_to_descr(selection.dtype),
        "fortran_order": False,
        "shape": (len(selection), selection.layer_width(layer)),
    }
    ready = 0
    with parts[1].open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in selection.blocks(layer):
            file.write(np.ascontiguousarray(block.layers[layer]).data)
            ready += len(block)
            progress(ready, 0, len(selection))


def _write_h5ad(selection: Selection, layer: str, parts: list[Path], progress: Callable[..., None]) -> None:
    table = selection.to_anndata(layer)
    table.strings_to_categoricals()
    from anndata.io import write_elem  # an extra

    write_hdf5(parts[0], lambda file: write_elem(file, "/", table))
    progress(len(selection), 0, len(selection))


_WRITERS: dict[str, Callable[[Selection, Any, list[Path], Callable[..., None]], None]] = {
    "parquet": _write_parquet,
    "npy": _write_npy,
    "csv": _write_csv,
    "h5ad": _write_h5ad,
}


def _tables(selection: Selection, layer: str | None, progress: Callable[..., None]) -> Iterable[tuple[pa.Table, int]]:
    """Yield the selection in tables that fit in memory, with how many rows there have been."""
    progress(0, 0, len(selection))
    ready = 0
    for block in selection.blocks(layer or PENULTIMATE):
        ready += len(block)
        yield block.to_arrow(layer), ready


def _flat(table: pa.Table, width: int) -> pa.Table:
    """Return the table with text instead of dictionaries, and a column ``e0``, ``e1``, … for each dimension."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        if name == "embedding":
            values = column.combine_chunks().flatten().to_numpy().reshape(-1, width).astype(np.float32, copy=False)
            columns |= {f"e{i}": pa.array(np.ascontiguousarray(values[:, i])) for i in range(width)}
        else:
            columns[name] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    return pa.table(columns)
