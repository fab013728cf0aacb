"""Search for the nearest rows and count their votes, in plain numpy.

Axes: n rows asked about, M rows kept, D features, k neighbours, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Data = NDArray[np.float32]

METRICS = ("cosine", "euclidean")
"""Distances: 1 − cosine of the angle, or the length of the difference. Saved heads hold the position."""

WEIGHTS = ("uniform", "distance", "exponential")
"""How votes fall with distance, from the smoothest to the sharpest. Saved heads hold the position."""

DECAY = 10.0
"""Decay of exponential weights: a neighbour further away by a tenth of the mean distance counts exp(−1)."""

TIE_BREAK = 1e-3
"""Share of a vote by which nearer neighbours lead among uniform votes: it decides ties and nothing else."""

_NOISE = 1e-6
"""Relative size of squared differences that float32 cannot distinguish from zero."""

_BLOCK_ELEMENTS = 1 << 24
_GROUP = 32


@dataclass(frozen=True)
class Space:
    """Where distances are measured: features minus ``center``, divided by ``scale``.

    Attributes
    ----------
    center, scale : ndarray of shape (D,), float32
        The shift and the unit of every feature.
    """

    center: Data
    scale: Data

    def place(self, X: NDArray[Any]) -> Data:
        """Return rows (n, D) in this space, as a new array."""
        out: Data = np.subtract(X, self.center, dtype=np.float32)
        out /= self.scale
        return out


def space_of(X: NDArray[Any], scaling: str) -> Space:
    """Return the space of ``"none"``, ``"center"`` or ``"standard"`` scaling that rows (n, D) define."""
    zeros = np.zeros(X.shape[1], dtype=np.float32)
    if scaling == "none":
        return Space(zeros, np.ones_like(zeros))
    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    if scaling == "center":
        return Space(mean, np.ones_like(zeros))
    square = np.zeros(X.shape[1])
    step = max(_BLOCK_ELEMENTS // max(X.shape[1], 1), 1)
    for start in range(0, len(X), step):
        square += ((X[start : start + step] - mean).astype(np.float64) ** 2).sum(axis=0)
    scale = np.sqrt(square / len(X)).astype(np.float32)
    return Space(mean, np.where(scale > _NOISE * np.abs(mean), scale, np.float32(1.0)))


def smallest(cost: NDArray[Any], count: int) -> Ints:
    """Return the columns (n, count) of the smallest values of every row, in ascending order.

    Each of the ``count`` smallest values lies in one of the ``count`` groups of columns with the smallest minima, so
    only these groups are searched.
    """
    n, width = cost.shape
    groups = width // _GROUP
    if groups < 2 * count:
        columns = np.broadcast_to(np.arange(width), (n, width))
        values = cost
    else:
        minima = cost[:, : groups * _GROUP].reshape(n, _GROUP, groups).min(axis=1)
        near = np.argpartition(minima, count - 1, axis=1)[:, :count]
        inside = (near[:, :, None] + groups * np.arange(_GROUP)).reshape(n, -1)
        rest = np.broadcast_to(np.arange(groups * _GROUP, width), (n, width - groups * _GROUP))
        columns = np.concatenate([inside, rest], axis=1)
        values = np.take_along_axis(cost, columns, axis=1)
    part = np.argpartition(values, count - 1, axis=1)[:, :count]
    part = np.take_along_axis(part, np.argsort(np.take_along_axis(values, part, axis=1), axis=1, kind="stable"), axis=1)
    return np.asarray(np.take_along_axis(columns, part, axis=1), dtype=np.int64)


def search(asked: Data, kept: Data, count: int, metrics: tuple[str, ...]) -> Iterator[tuple[slice, str, Floats, Ints]]:
    """Find the nearest rows by one or two metrics from one product, block by block.

    Parameters
    ----------
    asked : ndarray of shape (n, D)
        Rows in the space.
    kept : ndarray of shape (M, D)
        Rows in the same space.
    count : int
        k, at most M.
    metrics : tuple of str
        Some of ``METRICS``.

    Yields
    ------
    tuple
        Which rows asked, the metric, distances (n, k) in ascending order, and positions (n, k) among the rows kept.
    """
    kept_square = np.einsum("ij,ij->i", kept, kept)
    kept_length = np.sqrt(np.where(kept_square > 0, kept_square, 1.0))
    step = max(_BLOCK_ELEMENTS // len(kept), 1)
    for start in range(0, len(asked), step):
        rows = slice(start, start + step)
        block = asked[rows]
        square = np.einsum("ij,ij->i", block, block)[:, None]
        product: NDArray[Any] = block @ kept.T
        for metric in metrics:
            cost: NDArray[Any]
            distance: NDArray[Any]
            if metric == "cosine":
                cost = product / -kept_length
                near = smallest(cost, count)
                cosine = -np.take_along_axis(cost, near, axis=1) / np.sqrt(np.where(square > 0, square, 1.0))
                distance = np.where(cosine < 1.0 - _NOISE, 1.0 - cosine, 0.0)
            else:
                cost = -2 * product
                cost += kept_square
                near = smallest(cost, count)
                squared = np.take_along_axis(cost, near, axis=1) + square
                distance = np.sqrt(np.where(squared > _NOISE * (square + kept_square[near]), squared, 0.0))
            yield rows, metric, distance.astype(np.float64), near


def vote_weights(distance: Floats, weights: str) -> Floats:
    """Return what each neighbour's vote counts (n, k); about 1 for the nearest.

    Parameters
    ----------
    distance : ndarray of shape (n, k)
        In ascending order.
    weights : str
        ``"uniform"``; ``"distance"``, the inverse of the distance; ``"exponential"``, exp(−10 × the distance beyond the
        nearest, in units of the mean distance).
    """
    if weights == "uniform":
        furthest = distance[:, -1:]
        return 1.0 + TIE_BREAK * (1.0 - distance / np.where(furthest > 0, furthest, 1.0))
    mean = distance.mean(axis=1, keepdims=True)
    mean = np.where(mean > 0, mean, 1.0)
    if weights == "distance":
        relative = np.maximum(distance / mean, _NOISE)
        return np.asarray(relative[:, :1] / relative)
    return np.exp(-DECAY * (distance - distance[:, :1]) / mean)


def count_votes(vote: Floats, label: Ints, n_labels: int) -> Floats:
    """Add up votes (n, k) by the labels (n, k) of the neighbours; return (n, n_labels)."""
    n = len(vote)
    place = (label + n_labels * np.arange(n)[:, None]).ravel()
    votes = np.bincount(place, weights=vote.ravel(), minlength=n * n_labels)
    return np.asarray(votes.reshape(n, n_labels), dtype=np.float64)


def log_shares(votes: Floats, n_classes: int, smoothing: float) -> Floats:
    """Return the log of shares of votes, with ``smoothing`` further votes spread evenly over all classes.

    Parameters
    ----------
    votes : ndarray of shape (n, L)
        Votes for L labels that include all that have votes.
    n_classes : int
        K.
    smoothing : float
        Votes added; above 0.
    """
    total = votes.sum(axis=1, keepdims=True) + smoothing
    return np.asarray(np.log((votes + smoothing / n_classes) / total))
