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
    from pipeline.fitting.settings import FitSettings
    from pipeline.fitting.target import Target

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
    alone = sum(not splits.given_group(name) for name in per.tolist())
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
    given = splits.given_group(name)
    return repr(given) if given else "no value"


def check_groups(per: Names, name: str, target: Target, y: NDArray[Any], split: Names | None) -> None:
    """Refuse rows of one answer that disagree on the label, or that lie on both sides of the split column.

    Parameters
    ----------
    per : ndarray of shape (N,), str
        What gets one answer.
    name : str
        Its column.
    target : Target
        What is learned.
    y : ndarray
        The targets of the rows.
    split : ndarray of shape (N,), str, or None
        Their split, where a column gives it.

    Raises
    ------
    HeadError
        Names the first of these groups.
    """
    if name == target.name:
        raise HeadError(f"--per {name}: expected another column than the target: leave it out")
    _, code, first = numbered(per)
    differs = y != y[first][code]
    wrong = np.unique(code[differs if differs.ndim == 1 else differs.any(axis=1)])
    if len(wrong):
        labels = [TASKS[target.task].label(value, target.names) for value in y]
        raise HeadError(
            f"--per {name}: expected one label for all rows of a group, {_found(per, wrong, labels)}: correct these "
            "labels, or leave --per out"
        )
    if split is None:
        return
    crosses = np.unique(code[split != split[first][code]])
    if len(crosses):
        raise HeadError(
            f"--per {name}: expected every group on one side of the split column, "
            f"{_found(per, crosses, split.tolist())}: mark its rows for one split, or give no split column"
        )


def _found(per: Names, wrong: NDArray[np.int64], values: list[Any]) -> str:
    """Return how many groups are wrong, and the first of them with their values."""
    names = numbered(per)[0]
    shown = []
    for number in wrong[:_SHOWN].tolist():
        its = dict.fromkeys(values[row] for row in np.flatnonzero(per == names[number]).tolist())
        shown.append(f"{str(names[number])!r} ({', '.join(list(its)[:_SHOWN])})")
    return f"found several in {len(wrong)} of {len(names)} groups, such as {', '.join(shown)}"
