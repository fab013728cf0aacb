"""What a session shows next: views are lists of rows, most useful first.

Axes: n rows, d directions, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labelling.model import doubt
from pipeline.labelling.state import CLASSES, SETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_CANDIDATES = 12
"""Times as many doubtful rows are looked at as are shown, to take different ones."""
_REFERENCE = 1000
_NEIGHBOURS = 5
_BLOCK = 8192


def unsure(task: str, outputs: Floats, points: Floats, left: Bools, count: int) -> Ints:
    """Return the rows to ask for next: those of which the head is unsure, and no two alike.

    Parameters
    ----------
    task : str
    outputs : (n, K) float32
        Of the head.
    points : (n, d) float32
    left : (n,) bool
        Rows that may be shown.
    count : int
        How many.

    Notes
    -----
    Of the most doubtful rows, the next is always the one with the largest product of doubt and distance to those
    chosen before.
    """
    rows = np.flatnonzero(left)
    of = doubt(task, outputs[rows])
    first = np.argsort(-of, kind="stable")[: count * _CANDIDATES]
    return diverse(rows[first], of[first], points, count)


def diverse(rows: Ints, weight: Floats, points: Floats, count: int) -> Ints:
    """Choose rows of large weight that are far from each other."""
    if len(rows) <= 1:
        return rows
    some = points[rows]
    apart = np.full(len(rows), np.inf, np.float32)
    weight = np.maximum(weight, np.float32(1e-6))
    chosen = [0]
    for _ in range(min(count, len(rows)) - 1):
        rest = some - some[chosen[-1]]
        apart = np.minimum(apart, np.sqrt(np.einsum("nd,nd->n", rest, rest)))
        score = apart * weight
        score[chosen] = -1
        chosen.append(int(score.argmax()))
    return np.asarray(rows[chosen])


def of_class(task: str, outputs: Floats, k: int, left: Bools) -> Ints:
    """Return the rows that the head takes for class ``k``, the most certain first."""
    is_it = outputs[:, k] >= 0.5 if task == SETS else outputs.argmax(axis=1) == k
    rows = np.flatnonzero(left & is_it)
    return rows[np.argsort(-outputs[rows, k], kind="stable")]


def disagreements(task: str, outputs: Floats, y: NDArray[Any], rows: Ints) -> Ints:
    """Return the labelled rows whose label the head does not give, the clearest contradiction first.

    Parameters
    ----------
    outputs : (m, K) float32
        For the labelled rows, of heads that were fitted without them.
    y : (m,) or (m, K)
        Their labels.
    rows : (m,) int64
    """
    if task == CLASSES:
        given = outputs[np.arange(len(y)), y]
        gap = outputs.max(axis=1) - given
        wrong = outputs.argmax(axis=1) != y
    elif task == SETS:
        gap = np.where(y, 1 - outputs, outputs).max(axis=1)
        wrong = gap > 0.5
    else:
        gap = np.abs(outputs[:, 0] - y)
        wrong = gap > 2 * max(float(np.sqrt(np.mean(np.square(gap)))), 1e-12)
    order = np.argsort(-gap, kind="stable")
    return np.asarray(rows[order[wrong[order]]])


def like(row: int, points: Floats, left: Bools, count: int) -> Ints:
    """Return the rows nearest to one by cosine, itself first."""
    rows = np.flatnonzero(left)
    length = np.sqrt(np.einsum("nd,nd->n", points[rows], points[rows]))
    cosine = points[rows] @ points[row] / np.maximum(length, 1e-12)
    near = rows[np.argsort(-cosine, kind="stable")[: count + 1]]
    return np.concatenate([[row], near[near != row][:count]]).astype(np.int64)


def strangeness(points: Floats, seed: int = 0) -> Floats:
    """Return how far each row is from everything else: its distance to the nearest of a thousand rows, (n,)."""
    sample = np.random.default_rng(seed).permutation(len(points))[:_REFERENCE]
    reference = points[sample]
    length = np.einsum("nd,nd->n", reference, reference)
    k = min(_NEIGHBOURS, len(sample) - 1)
    out = np.empty(len(points), np.float32)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        square = length - 2 * block @ reference.T + np.einsum("nd,nd->n", block, block)[:, None]
        # One more than asked for: a row of the sample is its own nearest.
        nearest = np.partition(square, k, axis=1)[:, : k + 1]
        out[start : start + len(block)] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    return out
