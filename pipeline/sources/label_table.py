"""A side table: labels, splits, groups and more for the items of any source, by key."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.columns import spread
from pipeline.core.items import ItemTable, LeftOut, Skipped
from pipeline.core.text import match_names
from pipeline.errors import SourceError
from pipeline.sources.base import encode_labels, public_names
from pipeline.sources.columns import NAMES, column_values, label_texts, without_unfit
from pipeline.sources.table import columns_of, read_table
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray


def with_labels(items: ItemTable, table: str) -> tuple[ItemTable, list[Skipped]]:
    """Return the items with the columns of a table, and the columns and rows of the table that are left out.

    Items that the table does not name have no label, and missing values (NaN, or empty text) in the other columns.
    Lists become label sets, and columns that a cache cannot hold are left out, as of `pipeline.sources.TableSource`. A
    key fits in another Unicode form too, and as lists and pages show it, where only one item can be meant.

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
    frame, unread = read_table(table)
    shown = public(table)
    if "key" not in frame.columns or len(frame.columns) < 2:
        raise SourceError(
            f"expected a column 'key' and others in {shown}, found {columns_of(frame, unread)}: rename the "
            "column that holds the keys ('pipeline info' and the cache's /keys show them)"
        )
    rows, keys = _rows_of(items, frame, shown)
    known = rows >= 0
    frame, unfit = without_unfit(frame.drop(columns="key"))
    columns = dict(items.columns)
    for name in frame.columns:
        if name != "label":
            columns[str(name)] = spread(column_values(frame[name], text=name in NAMES), rows, known)
    labels, names = items.labels, items.label_names
    if "label" in frame:
        texts = label_texts(frame["label"])
        labels, names = encode_labels(
            [texts[row] if there else None for row, there in zip(rows.tolist(), known.tolist(), strict=True)]
        )
    used = np.zeros(len(keys), dtype=np.bool_)
    used[rows[known]] = True
    unused = [Skipped(os.fsdecode(bytes(key)), "in the table of labels only") for key in keys[~used]]
    return replace(items, labels=labels, label_names=names, columns=columns), [*unread, *unfit, *unused]


def labelled_items(items: ItemTable, table: str, note: Callable[[str], None]) -> ItemTable:
    """Return the items with the columns of a table, as `with_labels`, and pass on what of the table is left out.

    Parameters
    ----------
    items : ItemTable
    table : str
        CSV or Parquet, a path or URL.
    note : callable
        Called with a line, where something is left out.

    Raises
    ------
    SourceError
        As for `with_labels`.
    """
    labelled, left_out = with_labels(items, table)
    if left_out:
        note(str(LeftOut.of(left_out)))
    return labelled


def _rows_of(items: ItemTable, frame: pd.DataFrame, shown: str) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    """Return the table's row of each item, -1 for none, and the table's keys."""
    written = public_names(frame["key"].fillna("").astype(str).tolist())
    keys = np.array([os.fsencode(key) for key in written], dtype=np.bytes_)
    ordered, first, counts = np.unique(keys, return_index=True, return_counts=True)
    if len(ordered) < len(keys):
        twice = os.fsdecode(bytes(ordered[counts > 1][0]))
        raise SourceError(f"expected every key once in {shown}, found {twice!r} more than once: remove the others")
    rows = np.full(len(items), -1, dtype=np.int64)
    if len(ordered):
        at = np.minimum(np.searchsorted(ordered, items.keys), len(ordered) - 1)
        rows = np.where(ordered[at] == items.keys, first[at], -1)
        _match_other_forms(rows, items, keys)
    if not (rows >= 0).any():
        theirs = os.fsdecode(bytes(keys[0])) if len(keys) else "none"
        raise SourceError(
            f"expected keys of the images in {shown}, such as {os.fsdecode(bytes(items.keys[0]))!r}, found {theirs!r}: "
            "write the keys as 'pipeline extract' names the images"
        )
    return rows, keys


def _match_other_forms(rows: NDArray[np.int64], items: ItemTable, keys: NDArray[np.bytes_]) -> None:
    """Find keys in another Unicode form, or as pages and lists show them, for items that have no row yet."""
    unused = np.setdiff1d(np.arange(len(keys)), rows)
    without = np.flatnonzero(rows < 0)
    if len(unused) and len(without):
        wanted, known = ([os.fsdecode(bytes(key)) for key in some] for some in (items.keys[without], keys[unused]))
        found = match_names(wanted, known)
        rows[without] = np.where(found < 0, -1, unused[found])
