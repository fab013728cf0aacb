"""Which classes are taken for each other: an order, groups, and the worst pairs of a confusion matrix.

Axes: K classes, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_MOST_ORDERED_BEST = 300
"""Classes whose leaves are put in the best order; of more, as the tree has them, since that takes K³ steps."""


class Pair(NamedTuple):
    """A label that was predicted as another class.

    Attributes
    ----------
    label, predicted : int
        The two classes.
    rows : int
        Rows of ``label`` predicted as ``predicted``.
    back : int
        Rows of ``predicted`` predicted as ``label``.
    """

    label: int
    predicted: int
    rows: int
    back: int


def worst_pairs(confusion: NDArray[np.integer], most: int) -> list[Pair]:
    """Return the confusions with the most rows, at most this many.

    Parameters
    ----------
    confusion : ndarray of shape (K, K), int
        Counts, labels down, predictions across.
    most : int
        How many at most.

    Examples
    --------
    >>> worst_pairs(np.array([[5, 2, 0], [3, 4, 0], [0, 0, 9]]), 9)
    [Pair(label=1, predicted=0, rows=3, back=2), Pair(label=0, predicted=1, rows=2, back=3)]
    """
    label, predicted = np.nonzero(confusion)  # few cells of a large matrix
    off = label != predicted
    label, predicted = label[off], predicted[off]
    order = np.argsort(-confusion[label, predicted], kind="stable")[:most]
    return [
        Pair(i, j, int(confusion[i, j]), int(confusion[j, i]))
        for i, j in zip(label[order].tolist(), predicted[order].tolist(), strict=True)
    ]


def confusion_order(confusion: NDArray[np.integer]) -> Ints:
    """Return the classes (K,) in an order in which those that are taken for each other stand together.

    Parameters
    ----------
    confusion : ndarray of shape (K, K), int
        Counts, labels down, predictions across.

    Notes
    -----
    The leaves of a tree of average linkage, which joins classes by the shares of their rows that are predicted as each
    other (Sokal and Michener 1958); up to 300 classes in the order in which neighbours differ least (Bar-Joseph,
    Gifford and Jaakkola 2001).
    """
    if len(confusion) < 3:
        return np.arange(len(confusion))
    from scipy.cluster import hierarchy  # takes a moment to import

    return np.asarray(hierarchy.leaves_list(_tree(confusion)), dtype=np.int64)


def confusion_groups(confusion: NDArray[np.integer], groups: int) -> list[Ints]:
    """Return groups of classes that are taken for each other, in the order of `confusion_order`.

    Parameters
    ----------
    confusion : ndarray of shape (K, K), int
        Counts, labels down, predictions across.
    groups : int
        About how many. None has more than K / ``groups`` classes, so that there are at most twice as many.

    Notes
    -----
    Branches of the tree are cut where they are small enough; neighbours that fit together are joined again.
    """
    k = len(confusion)
    largest = max(-(-k // groups), 1)
    if k < 3 or largest == 1:
        return [np.array([i]) for i in confusion_order(confusion)]
    from scipy.cluster import hierarchy  # takes a moment to import

    joined: list[list[int]] = []
    for branch in _branches(hierarchy.to_tree(_tree(confusion)), largest):
        if joined and len(joined[-1]) + len(branch) <= largest:
            joined[-1] += branch
        else:
            joined.append(list(branch))
    return [np.array(members) for members in joined]


def merged(confusion: NDArray[np.integer], groups: Sequence[Ints]) -> Ints:
    """Return the counts (G, G) of rows by the groups of their labels and of their predictions."""
    group = np.empty(len(confusion), np.int64)
    for number, members in enumerate(groups):
        group[members] = number
    by_label = np.zeros((len(groups), len(confusion)), np.int64)
    np.add.at(by_label, group, confusion)
    counts = np.zeros((len(groups), len(groups)), np.int64)
    np.add.at(counts.T, group, by_label.T)
    return counts


def _branches(root: object, largest: int) -> list[list[int]]:
    """Return the leaves of the largest branches that have at most this many, from left to right."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        if node.get_count() <= largest:  # type: ignore[attr-defined]
            found.append(node.pre_order())  # type: ignore[attr-defined]
        else:
            pending += [node.get_right(), node.get_left()]  # type: ignore[attr-defined]
    return found


def _tree(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the tree of the classes as SciPy writes it."""
    from scipy.cluster import hierarchy  # takes a moment to import
    from scipy.spatial.distance import squareform

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    distance = 1.0 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return np.asarray(hierarchy.linkage(condensed, "average", optimal_ordering=len(confusion) <= _MOST_ORDERED_BEST))
