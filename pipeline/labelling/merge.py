"""Labels of another table: merged with those of a session, and how far the two agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.text import match_names
from pipeline.errors import few_names
from pipeline.labelling.journal import LabelError
from pipeline.labelling.state import NUMBERS, SETS
from pipeline.labelling.table import read_labels, value_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.labelling.session import Session
    from pipeline.labelling.state import Value


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes
    ----------
    added : int
        Labels that only the other table had.
    both : int
        Images with a label in both.
    conflicts : list of (str, str, str)
        Key, own label and other label where they differ. The own label stays.
    unknown : int
        Lines of the table whose key is none of the cache.
    kappa : float
        Cohen's kappa on the images that both have labelled: of label sets the mean of their labels; NaN for numbers,
        and where it is not defined.
    difference : float
        Mean absolute difference of numbers; NaN else.
    """

    added: int
    both: int
    conflicts: list[tuple[str, str, str]]
    unknown: int
    kappa: float
    difference: float

    def lines(self) -> list[str]:
        """Return the result for people."""
        found = [f"{self.added} labels added; {self.both} images have a label in both, {len(self.conflicts)} differ"]
        if np.isfinite(self.kappa):
            found.append(f"agreement: Cohen's kappa {self.kappa:.3f} on {self.both} images")
        elif np.isfinite(self.difference):
            found.append(f"agreement: mean absolute difference {self.difference:.4g} on {self.both} images")
        if self.conflicts:
            shown = [f"{key}: {own} here, {other} there" for key, own, other in self.conflicts]
            found.append(f"kept as they are here: {few_names(shown)}")
        if self.unknown:
            found.append(f"{self.unknown} lines are of images that are not in the cache: left out")
        return found


def merge_labels(session: Session, path: str) -> Merged:
    """Add the labels of a table to a session, as one action; where both have a label, the session's stays.

    Raises
    ------
    SourceError, LabelError
        The table cannot be read, or no key of it is one of the cache.
    """
    other = _by_own_keys(session, read_labels(path, session.task))
    if not other.labels:
        raise LabelError(
            f"expected keys of the cache in {path}, such as {str(session.keys[0])!r}, found none: correct the column "
            "'key'"
        )
    own = session.labels.values
    both = [key for key in other.labels if key in own]
    new = {key: value for key, value in other.labels.items() if key not in own}
    conflicts = [
        (key, value_text(own[key]), value_text(other.labels[key])) for key in both if own[key] != other.labels[key]
    ]
    kappa, difference = agreement(session.task, [own[key] for key in both], [other.labels[key] for key in both])
    if new:
        give(session, new)
    return Merged(len(new), len(both), conflicts, other.unknown, kappa, difference)


def give(session: Session, values: Mapping[str, Value]) -> None:
    """Add labels by key to a session, as one action."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    session.act({"do": "labels", "values": plain}, seen=session.labels.actions)


def labels_of_cache(session: Session) -> dict[str, Value]:
    """Return the labels that the cache holds, of images that have none in the session.

    Raises
    ------
    LabelError
        It holds none, or numbers are labelled.
    """
    cache, rows = session.cache, session.features.rows
    if session.task == NUMBERS:
        raise LabelError("--keep-labels takes classes, and --task is regression: add a table of numbers with --merge")
    codes = np.asarray(cache.labels)[rows]
    if not (codes >= 0).any():
        raise LabelError(f"{cache.path} holds no labels to keep: leave --keep-labels out")
    names: list[Value] = [
        tuple(sorted({part.strip() for part in name.split("|")} - {""})) if session.task == SETS else name
        for name in cache.label_names
    ]
    found = {session.keys[n]: names[codes[n]] for n in np.flatnonzero(codes >= 0).tolist()}
    return {key: value for key, value in found.items() if key not in session.labels.values}


def agreement(task: str, own: Sequence[Value], other: Sequence[Value]) -> tuple[float, float]:
    """Return Cohen's kappa and the mean absolute difference of two people's labels; NaN where one is not defined.

    References
    ----------
    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20, 1960.

    Examples
    --------
    >>> kappa, _ = agreement("classification", ["a", "a", "b", "b"], ["a", "a", "b", "a"])
    >>> round(kappa, 3)
    0.5
    """
    if not own:
        return float("nan"), float("nan")
    if task == NUMBERS:
        return float("nan"), float(np.mean(np.abs(np.asarray(own, dtype=float) - np.asarray(other, dtype=float))))
    if task != SETS:
        return _kappa([str(value) for value in own], [str(value) for value in other]), float("nan")
    names = sorted({name for value in (*own, *other) if isinstance(value, tuple) for name in value})
    each = [_kappa([name in _set(value) for value in own], [name in _set(value) for value in other]) for name in names]
    defined = [kappa for kappa in each if np.isfinite(kappa)]
    return (float(np.mean(defined)) if defined else float("nan")), float("nan")


def _set(value: Value) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


def _kappa(own: Sequence[object], other: Sequence[object]) -> float:
    """Return (observed − expected) / (1 − expected) agreement; NaN where both always say the same one thing."""
    values = {value: n for n, value in enumerate(dict.fromkeys((*own, *other)))}
    table = np.zeros((len(values), len(values)))
    np.add.at(table, ([values[v] for v in own], [values[v] for v in other]), 1)
    table /= table.sum()
    expected = float(table.sum(axis=1) @ table.sum(axis=0))
    return (float(np.trace(table)) - expected) / (1 - expected) if expected < 1 else float("nan")


@dataclass(frozen=True)
class _Found:
    labels: dict[str, Value]
    unknown: int


def _by_own_keys(session: Session, labels: Mapping[str, Value]) -> _Found:
    """Return labels by the keys of the session: a key may stand in another Unicode form, or as pages show it."""
    keys = list(labels)
    place = np.array([session.position.get(key, -1) for key in keys], dtype=np.int64)
    if (place < 0).any():
        place = match_names(keys, session.keys)
    found = {session.keys[n]: labels[key] for key, n in zip(keys, place.tolist(), strict=True) if n >= 0}
    return _Found(found, int((place < 0).sum()))
