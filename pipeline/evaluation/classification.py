"""Metrics of predicted class probabilities, with intervals.

Axes: N rows, K classes, R replicates of the bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.bootstrap import Interval, bootstrap_intervals, weighted_means
from pipeline.evaluation.calibration import calibration_errors, counts_by
from pipeline.evaluation.choice import hits
from pipeline.evaluation.shares import effective_rows, mean_of_classes, share_interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Measured:
    """What is needed of class probabilities to measure any resample of their rows.

    Rows whose largest probability several classes share predict each of them in equal parts: ``said_row`` and
    ``said_class`` list these predictions, ``said_part`` is the part.
    """

    y: Ints
    hit: Floats
    said_row: Ints
    said_class: Ints
    said_part: Floats
    loss: Floats
    brier: Floats
    confidence: Floats

    @classmethod
    def of(cls, y: Ints, probabilities: Floats) -> _Measured:
        best = probabilities == probabilities.max(axis=1, keepdims=True)
        said_row, said_class = np.nonzero(best)
        brier = (probabilities**2).sum(1) - 2 * probabilities[np.arange(len(y)), y] + 1
        return cls(
            y,
            hits(probabilities, y),
            said_row,
            said_class,
            1.0 / best.sum(axis=1)[said_row],
            row_losses(y, probabilities),
            brier,
            probabilities.max(1),
        )


def _classification(m: _Measured, n_classes: int, weights: Floats) -> dict[str, Floats]:
    """Return the figures (R,) under weights (R, N)."""
    right = counts_by(m.y, weights * m.hit, n_classes)
    support = counts_by(m.y, weights, n_classes)
    said = counts_by(m.said_class, weights[:, m.said_row] * m.said_part, n_classes)
    return {
        "accuracy": right.sum(axis=1) / weights.sum(axis=1),
        "balanced_accuracy": _mean_ratio(right, support),
        "macro_f1": _mean_ratio(2 * right, support + said),
        "log_loss": weighted_means(weights, m.loss),
        "brier": weighted_means(weights, m.brier),
        "ece": calibration_errors(m.confidence, m.hit, weights),
    }


def _mean_ratio(parts: Floats, wholes: Floats) -> Floats:
    """Return the mean ratio (R,) over the classes whose whole (R, K) is not empty."""
    there = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros_like(wholes), where=there)
    means = ratios.mean(axis=1)
    for replicate in np.flatnonzero(~there.all(axis=1)):
        means[replicate] = ratios[replicate, there[replicate]].mean()
    return np.asarray(means)


def row_losses(y: Ints, probabilities: Floats) -> Floats:
    """Return ``−log p`` of every row's label, with p clipped at the smallest float32 as scikit-learn does."""
    eps = float(np.finfo(np.float32).eps)
    at_truth = probabilities[np.arange(len(y)), y]
    return np.asarray(-np.log(np.clip(np.nan_to_num(at_truth), eps, 1.0)))


def classification_metrics(
    y: NDArray[np.integer],
    probabilities: Floats,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Measure class probabilities, every figure with its interval.

    That of the accuracy is `pipeline.evaluation.shares.share_interval`'s; the others are percentile bootstrap
    intervals, but for shares where every resample gives the same value.

    Parameters
    ----------
    y : ndarray of shape (N,), int
        Classes 0 … K−1.
    probabilities : ndarray of shape (N, K)
        Rows sum to one.
    seed : int
        Seed of the resamples.
    replicates : int
        Resamples; fewer are taken from 200 000 rows on.
    level : float
        Coverage of the interval.
    groups : array-like of shape (N,), optional
        Whole groups are resampled.

    Returns
    -------
    dict of str to Interval
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``log_loss``, ``brier``, ``ece``.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    truth = np.asarray(y, dtype=np.int64)
    n_rows, n_classes = probabilities.shape
    measured = _Measured.of(truth, probabilities)

    def measure(weights: Floats) -> dict[str, Floats]:
        return _classification(measured, n_classes, weights)

    by_class = mean_of_classes(_units_by_class(truth, n_classes, groups))
    figures = bootstrap_intervals(
        measure, n_rows, seed=seed, replicates=replicates, level=level, groups=groups,
        shares={"balanced_accuracy": by_class, "macro_f1": by_class},
    )  # fmt: skip
    accuracy = figures["accuracy"].value
    ends = share_interval(accuracy, effective_rows(measured.hit, groups), level)
    return figures | {"accuracy": Interval(accuracy, *ends)}


def _units_by_class(y: Ints, n_classes: int, groups: ArrayLike | None) -> Ints:
    """Count the rows, or groups, of each class."""
    if groups is None:
        return np.bincount(y, minlength=n_classes)
    number = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    pairs = np.unique(np.stack([y, number]), axis=1)
    return np.bincount(pairs[0], minlength=n_classes)


def confusion_matrix(y: NDArray[np.integer], predicted: NDArray[np.integer], n_classes: int) -> Ints:
    """Count rows by label (first axis) and prediction (second axis)."""
    cell = np.asarray(y, dtype=np.int64) * n_classes + predicted
    return np.bincount(cell, minlength=n_classes**2).reshape(n_classes, n_classes)


def per_class_table(confusion: Ints, names: tuple[str, ...]) -> list[dict[str, float | int | str]]:
    """Return precision, recall, F1 and row count of every class, with the class it is most often taken for."""
    right, support, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    off = confusion - np.diag(right)
    table: list[dict[str, float | int | str]] = []
    for k, name in enumerate(names):
        most = int(off[k].argmax())
        table.append(
            {
                "class": name,
                "rows": int(support[k]),
                "precision": float(right[k] / said[k]) if said[k] else float("nan"),
                "recall": float(right[k] / support[k]) if support[k] else float("nan"),
                "f1": float(2 * right[k] / (support[k] + said[k])) if support[k] + said[k] else float("nan"),
                "taken_for": names[most] if off[k, most] else "",
                "taken_for_rows": int(off[k, most]),
            }
        )
    return table
