"""What is to be learned: classes, numbers or label sets out of the labels or a column of a cache.

Axes: N rows of the cache, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.columns import MISSING_WORDS, as_names
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.errors import HeadError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.evaluation.tasks import TaskName
    from pipeline.fitting.settings import FitSettings

LABELS = "label"
SEPARATORS = (SET_SEPARATOR, OTHER_SET_SEPARATOR)
"""What stands between the labels of a set; the first that occurs in the column is taken."""

_MANY_VALUES = 20


@dataclass(frozen=True)
class Target:
    """A target for every row of a cache.

    Attributes
    ----------
    task : str
        What kind it is.
    name : str
        The column, or ``"label"``.
    y : ndarray
        int64 (N,) into ``names``, float64 (N,), or bool (N, L).
    known : ndarray of shape (N,), bool
        Whether the row has one.
    names : tuple of str
        Classes, labels, or the one column of numbers.
    """

    task: TaskName
    name: str
    y: NDArray[Any]
    known: NDArray[np.bool_]
    names: tuple[str, ...]


def read_target(cache: Cache, settings: FitSettings, note: Callable[[str], None]) -> Target:
    """Read the target and settle what kind it is.

    Parameters
    ----------
    cache : Cache
        The cache.
    settings : FitSettings
        ``target`` and ``task`` count.
    note : callable
        Called with a line about what ``task="auto"`` chose, where there was a choice.

    Raises
    ------
    HeadError
        No such column, or one that does not suit the task.
    """
    name = settings.target or LABELS
    if name in cache.columns:
        values = np.asarray(cache.columns[name])
        texts, codes = np.unique(as_names(values), return_inverse=True)
        codes = codes.ravel().astype(np.int64)
    elif name == LABELS:
        values = None
        texts, codes = np.asarray(cache.label_names, dtype=np.str_), np.asarray(cache.labels, dtype=np.int64)
    else:
        raise HeadError(f"the cache has no column {name!r}: {near_names(name, [LABELS, *cache.columns])}")
    task = settings.task if settings.task != "auto" else _likely_task(name, values, texts, note)
    if task == "regression":
        return _numbers(name, values, texts, codes)
    known = codes >= 0
    # Columns, and labels of a table; a class folder may well be called None.
    if values is not None or cache.source.get("kind") not in (None, "folder"):
        known &= ~_empty(name, values, texts, codes, note)[codes]
    if task == "multilabel":
        return _label_sets(name, values, texts, codes, known)
    return Target("classification", name, np.where(known, codes, -1), known, tuple(texts.tolist()))


def _empty(
    name: str,
    values: NDArray[Any] | None,
    texts: NDArray[np.str_],
    codes: NDArray[np.int64],
    note: Callable[[str], None],
) -> NDArray[np.bool_]:
    """Return which texts are no value: empty cells, and words for "missing" in a column that else holds numbers."""
    if values is not None and values.dtype.kind == "f":
        return np.asarray(texts == "")
    empty = np.asarray(texts == "")
    missing = np.asarray([text.strip().lower() in MISSING_WORDS for text in texts.tolist()], dtype=np.bool_)
    others = texts[~missing].tolist()
    if (missing & ~empty).any() and others and all(_is_number(text) for text in others):
        words = texts[missing & ~empty].tolist()
        rows = int(np.isin(codes, np.flatnonzero(missing & ~empty)).sum())
        note(f"column {name!r} holds numbers, so {rows} rows that say {' or '.join(map(repr, words))} have no value")
        return missing
    return empty


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _likely_task(
    name: str, values: NDArray[Any] | None, texts: NDArray[np.str_], note: Callable[[str], None]
) -> TaskName:
    """Treat numbers as numbers only where they are clearly continuous, and report the choice."""
    if values is not None and values.dtype.kind in "fiu":
        finite = values[np.isfinite(values)]
        count = len(np.unique(finite))
        whole = bool((finite == np.round(finite)).all())
        if not whole and count > _MANY_VALUES:
            note(f"column {name!r}: {count} distinct numbers, so the task is regression (--task says otherwise)")
            return "regression"
        what = "whole numbers" if whole else "distinct numbers"
        note(f"column {name!r}: {count} {what}, taken as classes (--task regression takes them as numbers)")
    elif values is None or values.dtype.kind == "U":
        inside = next((s for s in SEPARATORS if (np.char.find(texts, s) >= 0).any()), None) if len(texts) else None
        if inside:
            note(f"{name!r} has {inside!r} inside names, taken as classes (--task multilabel takes them as label sets)")
    return "classification"


def _numbers(name: str, values: NDArray[Any] | None, texts: NDArray[np.str_], codes: NDArray[np.int64]) -> Target:
    if values is not None and values.dtype.kind in "fiub":
        y = values.astype(np.float64)
    else:
        numbers = np.empty(len(texts) + 1)
        numbers[-1] = np.nan
        for i, text in enumerate(texts.tolist()):
            try:
                numbers[i] = np.nan if text.strip().lower() in MISSING_WORDS else float(text)
            except ValueError:
                raise HeadError(
                    f"expected numbers in {name!r} for the task regression, found {text!r}: name another column with "
                    "--target, or another --task"
                ) from None
        y = numbers[codes]
    return Target("regression", name, y, np.isfinite(y), (name,))


def _label_sets(
    name: str,
    values: NDArray[Any] | None,
    texts: NDArray[np.str_],
    codes: NDArray[np.int64],
    known: NDArray[np.bool_],
) -> Target:
    if values is not None and values.dtype.kind != "U":
        raise HeadError(
            f"expected label sets such as 'cat|dog' in {name!r}, found {values.dtype}: name another column with "
            "--target, or another --task"
        )
    separator = next((s for s in SEPARATORS if (np.char.find(texts, s) >= 0).any()), SEPARATORS[0])
    sets = [{part for part in (p.strip() for p in text.split(separator)) if part} for text in texts.tolist()]
    used = np.unique(codes[known])
    names = tuple(sorted(set().union(*(sets[code] for code in used.tolist()))))
    if len(names) < 2:
        raise HeadError(
            f"expected at least 2 labels in the label sets of {name!r}, found {len(names)}: separate the labels of an "
            f"image with {SEPARATORS[0]!r}, or take --task classification"
        )
    place = {label: k for k, label in enumerate(names)}
    has = np.zeros((len(texts) + 1, len(names)), dtype=np.bool_)
    for code in used.tolist():
        has[code, [place[label] for label in sets[code]]] = True
    return Target("multilabel", name, has[np.where(known, codes, -1)], known, names)
