"""What is to be learned: classes, numbers or label sets out of the labels or a column of a cache.

Axes: N rows of the cache, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.columns import MISSING_WORDS, as_names, number_of
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR, counted
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
    # Columns, and labels of a table: a class folder may well be called None, or 0.5.
    from_table = values is not None or cache.source.get("kind") not in (None, "folder")
    used = texts[np.unique(codes[codes >= 0])] if from_table else texts[:0]
    task = settings.task if settings.task != "auto" else _likely_task(name, values, used, note)
    if task == "regression":
        return _numbers(name, values, texts, codes)
    known = codes >= 0
    if from_table:
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
    blank = np.asarray([not text.strip() for text in texts.tolist()], dtype=np.bool_)
    if values is not None and values.dtype.kind == "f":
        return blank
    missing = np.asarray([text.strip().lower() in MISSING_WORDS for text in texts.tolist()], dtype=np.bool_)
    numeric = (~missing).any() and all(number_of(text) is not None for text in texts[~missing].tolist())
    said = missing & (texts != "") if numeric else missing & ~blank
    count = int(np.isin(codes, np.flatnonzero(said)).sum())
    if count:
        rows, verb = counted(count, "row"), "says" if count == 1 else "say"
        words = " or ".join(map(repr, texts[said].tolist()))
        if numeric:
            have = "has" if count == 1 else "have"
            note(f"column {name!r} holds numbers, so {rows} that {verb} {words} {have} no value")
        else:
            note(f"{name!r}: {rows} {verb} {words}, taken as a name: leave such cells empty where there is none")
    return missing if numeric else blank


def _likely_task(
    name: str, values: NDArray[Any] | None, texts: NDArray[np.str_], note: Callable[[str], None]
) -> TaskName:
    """Treat numbers as numbers only where they are clearly continuous, and report the choice."""
    in_texts = values is None or values.dtype.kind == "U"
    numbers = _numbers_of(texts) if in_texts else values if values is not None and values.dtype.kind in "fiu" else None
    if numbers is not None:
        finite = numbers[np.isfinite(numbers)]
        count = len(np.unique(finite))
        whole = bool((finite == np.round(finite)).all())
        if not whole and count > _MANY_VALUES:
            note(f"column {name!r}: {count} distinct numbers, so the task is regression (--task says otherwise)")
            return "regression"
        what = "whole numbers" if whole else "distinct numbers"
        if count > _MANY_VALUES or not in_texts:
            note(f"column {name!r}: {count} {what}, taken as classes (--task regression takes them as numbers)")
    elif in_texts:
        inside = next((s for s in SEPARATORS if (np.char.find(texts, s) >= 0).any()), None) if len(texts) else None
        if inside:
            note(f"{name!r} has {inside!r} inside names, taken as classes (--task multilabel takes them as label sets)")
    return "classification"


def _numbers_of(texts: NDArray[np.str_]) -> NDArray[np.float64] | None:
    """Return texts that are numbers or say that there is none (NaN); None where one is another text."""
    known = [text for text in texts.tolist() if text.strip().lower() not in MISSING_WORDS]
    numbers = [number_of(text) for text in known]
    return np.array(numbers, dtype=np.float64) if known and None not in numbers else None


def _numbers(name: str, values: NDArray[Any] | None, texts: NDArray[np.str_], codes: NDArray[np.int64]) -> Target:
    if values is not None and values.dtype.kind in "fiub":
        y = values.astype(np.float64)
    else:
        numbers = np.empty(len(texts) + 1)
        numbers[-1] = np.nan
        for i, text in enumerate(texts.tolist()):
            number = np.nan if text.strip().lower() in MISSING_WORDS else number_of(text)
            if number is None:
                raise HeadError(
                    f"expected numbers in {name!r} for the task regression, found {text!r}: name another column with "
                    "--target, or another --task"
                )
            numbers[i] = number
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
