"""A side table: labels, splits, groups and more for the items of any source, by key."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import ItemTable, Skipped
from pipeline.errors import SourceError
from pipeline.sources.base import encode_labels, public_names
from pipeline.sources.table import cell_texts, column_values, read_table, without_long_texts
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from numpy.typing import NDArray


def with_labels(items: ItemTable, table: str) -> tuple[ItemTable, list[Skipped]]:
    """Return the items with the columns of a table, and the columns and rows of the table that are left out.

    Items that the table does not name have no label, and missing values (NaN, or empty text) in the other columns.
    Lists become label sets, and columns of long texts are left out, as of `pipeline.sources.TableSource`.

    Parameters
    ----------
    items : ItemTable
    table : str
        CSV or Parquet, a path or URL, with a column ``key`` and any of ``label``, ``split``, ``group`` and more.

    Raises
    ------
    SourceError
        Not a table with keys, a key occurs twice, or no key is that of an item.
    """
    frame = read_table(table)
    shown = public(table)
    if "key" not in frame.columns or len(frame.columns) < 2:
        raise SourceError(
            f"expected a column 'key' and others in {shown}, found {', '.join(map(repr, frame.columns))}: rename the "
            "column that holds the keys ('pipeline info' and the cache's /keys show them)"
        )
    written = public_names(frame["key"].fillna("").astype(str).tolist())
    keys = np.array([os.fsencode(key) for key in written], dtype=np.bytes_)
    ordered, first, counts = np.unique(keys, return_index=True, return_counts=True)
    if len(ordered) < len(keys):
        twice = os.fsdecode(bytes(ordered[counts > 1][0]))
        raise SourceError(f"expected every key once in {shown}, found {twice!r} more than once: remove the others")
    at = np.minimum(np.searchsorted(ordered, items.keys), max(len(ordered) - 1, 0))
    known = ordered[at] == items.keys if len(ordered) else np.zeros(len(items), dtype=np.bool_)
    if not known.any():
        theirs = os.fsdecode(bytes(keys[0])) if len(keys) else "none"
        raise SourceError(
            f"expected keys of the images in {shown}, such as {os.fsdecode(bytes(items.keys[0]))!r}, found {theirs!r}: "
            "write the keys as 'pipeline extract' names the images"
        )
    frame, long = without_long_texts(frame.drop(columns="key"))
    rows = first[at]
    columns = dict(items.columns)
    for name in frame.columns:
        if name != "label":
            values = column_values(frame[name], text=name in ("split", "group"))
            columns[str(name)] = _spread(values, rows, known)
    labels, names = items.labels, items.label_names
    if "label" in frame:
        texts = cell_texts(frame["label"])
        labels, names = encode_labels(
            [texts[row] if there else None for row, there in zip(rows.tolist(), known.tolist(), strict=True)]
        )
    used = np.zeros(len(keys), dtype=np.bool_)
    used[rows[known]] = True
    without = long + [Skipped(os.fsdecode(bytes(key)), "in the table of labels only") for key in keys[~used]]
    return replace(items, labels=labels, label_names=names, columns=columns), without


def _spread(values: NDArray[Any], rows: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[Any]:
    """Return each item's value, or the missing value where there is none."""
    spread = values[rows]
    if known.all():
        return spread
    if values.dtype.kind == "U":
        return np.where(known, spread, "")
    return np.where(known, spread.astype(np.float64), np.nan)
