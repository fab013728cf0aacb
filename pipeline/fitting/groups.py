"""Which rows of a cache stay on one side of every split, and which get one answer together.

Axes: N rows used, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.columns import as_names
from pipeline.errors import HeadError, near_names
from pipeline.evaluation import splits
from pipeline.evaluation.pooling import numbered
from pipeline.evaluation.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings

    Names = NDArray[np.str_]

GROUP = "group"
"""The column whose rows stay together where no other is named."""

_SHOWN = 3


def read_groups(
    cache: Cache, index: NDArray[np.int64], settings: FitSettings, note: Callable[[str], None]
) -> tuple[Names | None, Names | None]:
    """Return what must stay on one side (N,), and what gets one answer (N,); None where there is none.

    Parameters
    ----------
    cache : Cache
        The cache.
    index : ndarray of shape (N,)
        Its rows that are used.
    settings : FitSettings
        ``groups`` and ``per`` count.
    note : callable
        Called with a line about rows without a value.

    Raises
    ------
    HeadError
        There is no such column, or rows of one answer would lie in several groups.
    """
    per = None if settings.per is None else _column(cache, settings.per, "--per", index)
    name = settings.groups or (GROUP if GROUP in cache.columns else settings.per)
    if name is None:
        return None, None
    groups = per if name == settings.per and per is not None else _column(cache, name, "--groups", index)
    _note_missing(per, settings, note)
    if per is None or groups is per:
        return groups, per
    apart = _divided(per, groups)
    if len(apart) and (settings.groups is not None or len(_divided(groups, per))):
        first = per == apart[0]
        inside = [_shown(value) for value in dict.fromkeys(groups[first].tolist())]
        raise HeadError(
            f"--per {settings.per}: expected the rows of each in one group of the column {name!r}, found "
            f"{len(apart)} in several, such as {_shown(apart[0])} in {' and '.join(inside[:_SHOWN])}: correct the "
            f"columns, or keep only {settings.per!r} together with --groups {settings.per}"
        )
    return (per if len(apart) else groups), per


def _column(cache: Cache, name: str, option: str, index: NDArray[np.int64]) -> Names:
    if name not in cache.columns:
        known = near_names(name, cache.columns) if len(cache.columns) else "it has none: give a table with --labels"
        raise HeadError(f"{option} {name}: expected a column of the cache, found none of this name: {known}")
    return splits.groups_of_column(as_names(np.asarray(cache.columns[name])[index]))


def _note_missing(per: Names | None, settings: FitSettings, note: Callable[[str], None]) -> None:
    if per is None:
        return
    alone = sum(name.startswith(splits.ALONE) for name in per.tolist())
    if alone:
        note(f"--per {settings.per}: {alone} of {len(per)} rows have no value, and each is a group of its own")


def _divided(inner: Names, outer: Names) -> Names:
    """Return the inner groups that do not lie in one outer group, in order of their first row."""
    names, code, first = numbered(inner)
    of_first = outer[first][code]
    apart = np.zeros(len(names), dtype=np.bool_)
    apart[code[outer != of_first]] = True
    return np.asarray(names[apart])


def _shown(name: str) -> str:
    return "no value" if name.startswith(splits.ALONE) else repr(name)


def check_groups(rows: Rows) -> None:
    """Refuse rows of one answer that disagree on the label, or that lie on both sides of the split column.

    Raises
    ------
    HeadError
        Names the first of these groups.
    """
    if rows.per is None:
        return
    names, code, first = numbered(rows.per)
    if rows.per_name == rows.target:
        raise HeadError(f"--per {rows.per_name}: expected another column than the target: leave it out")
    differs = rows.y != rows.y[first][code]
    _refuse(
        rows,
        names,
        np.unique(code[differs if differs.ndim == 1 else differs.any(axis=1)]),
        [TASKS[rows.task].label(y, rows.class_names) for y in rows.y] if differs.any() else [],
        "one label for all rows of a group",
        "correct these labels, or leave --per out",
    )
    if rows.split_kind == "column":
        crosses = np.unique(code[rows.split != rows.split[first][code]])
        _refuse(
            rows,
            names,
            crosses,
            rows.split.tolist(),
            "every group on one side of the split column",
            "mark its rows for one split, or hold rows out by --test-share without a split column",
        )


def _refuse(rows: Rows, names: Names, wrong: NDArray[np.int64], values: list[Any], expected: str, way_out: str) -> None:
    """Refuse these groups, the first of them by name and with their values, where there are any."""
    if not len(wrong):
        return
    assert rows.per is not None
    shown = []
    for number in wrong[:_SHOWN].tolist():
        its = dict.fromkeys(values[row] for row in np.flatnonzero(rows.per == names[number]).tolist())
        shown.append(f"{str(names[number])!r} ({', '.join(list(its)[:_SHOWN])})")
    raise HeadError(
        f"--per {rows.per_name}: expected {expected}, found several in {len(wrong)} of {len(names)} groups, such as "
        f"{', '.join(shown)}: {way_out}"
    )
