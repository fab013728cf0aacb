"""One prediction for each group of rows, pooled from those of its rows.

Axes: N rows, G groups, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.evaluation.tasks import Task

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

MEAN, MAX, EMBEDDINGS = "mean", "max", "embeddings"
How = Literal["mean", "max", "embeddings"]
POOLINGS: tuple[How, ...] = ("mean", "max", "embeddings")
"""From the simplest to the costliest: of poolings that cannot be distinguished, the first is taken."""


@dataclass(frozen=True)
class Pooling:
    """How the rows of a group become one prediction.

    Attributes
    ----------
    per : str
        The column that names the groups.
    how : {"mean", "max", "embeddings"}
        The mean, or the largest, of the rows' log-probabilities (log-odds of labels, numbers); or a head of its own on
        the mean embeddings of groups.
    temperature : float
        What pooled logarithms are divided by.
    """

    per: str
    how: How = "mean"
    temperature: float = 1.0

    def predictions(self, task: Task, rows: Floats, group: Ints, count: int) -> Floats:
        """Return the predictions (G, K) of groups from those of their rows (N, K).

        Parameters
        ----------
        task : Task
            What is predicted.
        rows : ndarray of shape (N, K)
            Predictions of the rows.
        group : ndarray of shape (N,), int
            Number of each row's group, 0 … G−1, each at least once.
        count : int
            G.

        Examples
        --------
        >>> from pipeline.evaluation.tasks import TASKS
        >>> rows = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
        >>> found = Pooling("patient").predictions(TASKS["classification"], rows, np.array([0, 0, 1]), 2)
        >>> found.round(2).tolist()
        [[0.75, 0.25], [0.2, 0.8]]
        """
        evidence = task.evidence(np.asarray(rows, dtype=np.float64))
        pooled = group_maxima(evidence, group, count) if self.how == MAX else group_means(evidence, group, count)
        return task.of_evidence(pooled, self.temperature)


def numbered(names: NDArray[np.str_]) -> tuple[NDArray[np.str_], Ints, Ints]:
    """Give groups numbers in the order in which they first occur.

    Returns
    -------
    ndarray of shape (G,), str
        Their names.
    ndarray of shape (N,), int
        The number of each row's group.
    ndarray of shape (G,), int
        The first row of each.

    Examples
    --------
    >>> [each.tolist() for each in numbered(np.array(["b", "a", "b"]))]
    [['b', 'a'], [0, 1, 0], [0, 1]]
    """
    found, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(found), dtype=np.int64)
    place[order] = np.arange(len(found))
    return found[order], place[inverse.ravel()], first[order].astype(np.int64)


def group_sums(values: NDArray[Any], group: Ints, count: int) -> Floats:
    """Return the sum (G, D) of the rows (N, D) of each group."""
    from scipy.sparse import csr_array

    member = csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(count, len(group)))
    return np.asarray(member @ values)


def group_means(values: NDArray[Any], group: Ints, count: int) -> Floats:
    """Return the mean (G, D) of the rows (N, D) of each group."""
    return np.asarray(group_sums(values, group, count) / np.bincount(group, minlength=count)[:, None])


def group_maxima(values: Floats, group: Ints, count: int) -> Floats:
    """Return the maximum (G, D) over the rows (N, D) of each group."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(count))
    return np.asarray(np.maximum.reduceat(values[order], starts, axis=0))
