"""Columns of a cache as features of a head: which are taken, and as what; and rows of embeddings with them.

Axes: N rows used, E encoded columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError, near_names
from pipeline.fitting.groups import GROUP
from pipeline.fitting.rows import read_rows
from pipeline.fitting.target import LABELS
from pipeline.heads.blocks import Blocks, block_scale
from pipeline.heads.columns import (
    CATEGORY,
    KINDS,
    NUMBER,
    CategoryColumn,
    ColumnEncoder,
    EncodedColumns,
    kind_of,
    levels_of,
    plain_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.columns import Kind

MOST_LEVELS = 1000
"""Levels of a category: each is a feature."""

_ALONE = 0.5
"""Share of the levels' rows that have a level of their own, from which a column is taken for names of the rows."""

SPLIT = "split"


class ColumnBlocks(Blocks):
    """Embeddings and encoded columns side by side, each divided by its scale.

    Parameters
    ----------
    arrays, scales
        As of `pipeline.heads.blocks.Blocks`, without the columns.
    columns : EncodedColumns
        Fitted on the rows ``train``.
    train : ndarray of int
        Rows of the cache that the encoder and the scale of the columns come from.
    weight : float
        What the scaled columns are multiplied by: a smaller one penalises their weights more.
    """

    def __init__(
        self, arrays: Any, scales: Any, columns: EncodedColumns, train: NDArray[np.int64], weight: float = 1.0
    ) -> None:
        super().__init__([*arrays, columns], [*scales, block_scale(columns[train]) / weight])
        self.columns, self.weight, self._train = columns, weight, train

    def refitted(self, rows: NDArray[np.int64]) -> ColumnBlocks:
        """Return the same with columns as these rows alone encode them."""
        return ColumnBlocks(self._arrays[:-1], self._scales[:-1], self.columns.refitted(rows), rows, self.weight)

    def weighted(self, weight: float) -> ColumnBlocks:
        """Return the same with another weight of the columns."""
        return ColumnBlocks(self._arrays[:-1], self._scales[:-1], self.columns, self._train, weight)


def beside_embeddings(embeddings: Any, columns: EncodedColumns, train: NDArray[np.int64]) -> ColumnBlocks:
    """Return embeddings (rows of the cache, D) with columns beside them; both are scaled by the training rows."""
    if isinstance(embeddings, Blocks):
        return ColumnBlocks(*embeddings.parts, columns, train)
    return ColumnBlocks([embeddings], [block_scale(read_rows(embeddings, train))], columns, train)


def read_columns(cache: Cache, rows: Rows, settings: FitSettings, note: Callable[[str], None]) -> EncodedColumns | None:
    """Return the columns of ``settings.features``, encoded as the training rows say; None where none is named.

    Parameters
    ----------
    cache : Cache
    rows : Rows
        The rows used.
    settings : FitSettings
        ``features``, ``groups`` and ``per`` count.
    note : callable
        Called with a line about what each column is taken as.

    Raises
    ------
    HeadError
        There is no such column, or it is the target, groups or split, does not vary, or has a value for each row.
    """
    if not settings.features:
        return None
    kinds: dict[str, Kind] = {}
    values: dict[str, NDArray[Any]] = {}
    for asked in settings.features:
        name, kind = _named(cache, asked)
        if name in kinds:
            raise HeadError(f"--features: expected each column once, found {name!r} twice: leave one out")
        _check_role(cache, name, rows, settings)
        found = np.asarray(cache.columns[name])
        kinds[name] = kind or kind_of(found[rows.index])
        values[name] = _plain(found, name, kinds[name], rows)
        _check_values(name, values[name], rows)
    train = rows.index[rows.of("train")]
    encoder = ColumnEncoder.fit({name: each[train] for name, each in values.items()}, kinds)
    note(f"--features: {'; '.join(_described(column) for column in encoder.columns)}")
    return EncodedColumns(encoder, values)


def _named(cache: Cache, asked: str) -> tuple[str, Kind | None]:
    """Return the column that was asked for, and as what where that was said."""
    if asked in cache.columns:
        return asked, None
    name, colon, kind = asked.rpartition(":")
    if colon and name in cache.columns:
        for known in KINDS:
            if kind == known:
                return name, known
        raise HeadError(f"--features {asked}: expected {' or '.join(KINDS)} behind the colon, found {kind!r}")
    if asked == LABELS:
        raise HeadError(f"--features {asked}: expected a column, found the labels, which are none: leave it out")
    known_names = near_names(asked, cache.columns) if len(cache.columns) else "it has none: give a table with --labels"
    raise HeadError(f"--features {asked}: expected a column of the cache, found none of this name: {known_names}")


def _check_role(cache: Cache, name: str, rows: Rows, settings: FitSettings) -> None:
    """Refuse columns that say what is learned, or which rows belong together."""
    roles = {rows.target: "the target", SPLIT: "the split"}
    if settings.per:
        roles[settings.per] = "what --per names"
    groups = settings.groups or (GROUP if GROUP in cache.columns else None)
    if groups is not None:
        roles[groups] = "the group"
    if name in roles:
        raise HeadError(f"--features {name}: expected another column than {roles[name]}: leave it out")


def _plain(found: NDArray[Any], name: str, kind: Kind, rows: Rows) -> NDArray[Any]:
    """Return the values of a column at the rows used; others may hold anything, and are missing."""
    try:
        of_rows = plain_values(found[rows.index], name, kind)
    except HeadError as error:
        raise HeadError(f"--features {name}: {error}") from None
    out = np.full(len(found), np.nan if kind == NUMBER else "", dtype=of_rows.dtype)
    out[rows.index] = of_rows
    return out


def _check_values(name: str, values: NDArray[Any], rows: Rows) -> None:
    """Refuse a column that holds the labels, says nothing, or names the rows."""
    used, train = values[rows.index], values[rows.index[rows.of("train")]]
    if _is_target(used, rows):
        raise HeadError(
            f"--features {name}: its values are those of {rows.target!r}, which is learned: leave the column out"
        )
    levels, counts = np.unique(train, return_counts=True)
    if len(levels) < 2:
        raise HeadError(
            f"--features {name}: expected values that differ, found {_shown(levels[0])} in all {len(train)} training "
            "rows: leave the column out"
        )
    if values.dtype.kind != "U":
        return
    known = counts[levels != ""]
    alone = int((known == 1).sum())
    if alone > _ALONE * known.sum():
        raise HeadError(
            f"--features {name}: expected categories that several rows share, found {alone} values of a single row in "
            f"{int(known.sum())} training rows, as of a name or number of each row: leave the column out, or take "
            f"another"
        )
    if len(known) > MOST_LEVELS:
        raise HeadError(
            f"--features {name}: expected at most {MOST_LEVELS} categories, found {len(known)}: join rare ones"
        )


def _is_target(values: NDArray[Any], rows: Rows) -> bool:
    """Return whether a column holds the very labels or numbers that are learned."""
    if rows.task == "classification":
        return bool((levels_of(values) == np.asarray(rows.class_names)[rows.y]).all())
    if rows.task == "regression" and values.dtype.kind == "f":
        return bool((values == rows.y).all())
    return False


def _shown(value: Any) -> str:
    missing = value == "" or (isinstance(value, float) and np.isnan(value))
    return "no value" if missing else repr(value.item())


def _described(column: Any) -> str:
    gaps = ", some missing" if column.gaps else ""
    if isinstance(column, CategoryColumn):
        return f"{column.name} as {CATEGORY}, {len(column.levels)} levels{gaps}"
    return f"{column.name} as {NUMBER}{gaps}"
