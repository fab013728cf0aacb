"""Metrics of predicted numbers, with intervals: pure functions on arrays.

Axes: N rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.bootstrap import Interval, bootstrap_intervals, one_by_one
from pipeline.evaluation.shares import share_interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


_ROUNDING = 1e-9
"""Difference of correlations that is none."""


def r2(truth: Floats, predicted: Floats, weight: Floats) -> float:
    """Return 1 − squared error / squared deviation from the weighted mean; NaN where the truth does not vary.

    Examples
    --------
    >>> r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0]), np.ones(3))
    0.5
    """
    around = truth - weight @ truth / weight.sum()
    spread = weight @ around**2
    return float(1 - weight @ (truth - predicted) ** 2 / spread) if spread > 0 else float("nan")


class _Ranks:
    """Mean ranks of values under any row counts, sorted once."""

    def __init__(self, values: Floats) -> None:
        names, self._place = np.unique(values, return_inverse=True)
        self._count = len(names)

    def __call__(self, weight: Floats) -> Floats:
        rows = np.bincount(self._place, weights=weight, minlength=self._count)
        return np.asarray((np.cumsum(rows) - (rows - 1) / 2)[self._place])


def _correlation(a: Floats, b: Floats, weight: Floats) -> float:
    a, b = a - weight @ a / weight.sum(), b - weight @ b / weight.sum()
    scale = np.sqrt((weight @ a**2) * (weight @ b**2))
    return float((weight * a) @ b / scale) if scale > 0 else float("nan")


def regression_metrics(
    truth: Floats,
    predicted: Floats,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Measure predicted numbers, every figure with a percentile bootstrap interval.

    Parameters
    ----------
    truth, predicted : ndarray of shape (N,)
        Numbers.
    seed, replicates, level, groups
        As in `pipeline.evaluation.classification.classification_metrics`.

    Returns
    -------
    dict of str to Interval
        ``r2``, ``mae``, ``rmse`` and ``spearman`` (Pearson's correlation of the mean ranks); NaN where a figure is not
        defined.
    """
    error = predicted - truth
    rank_truth, rank_predicted = _Ranks(truth), _Ranks(predicted)

    def measure(weight: Floats) -> dict[str, float]:
        total = weight.sum()
        return {
            "r2": r2(truth, predicted, weight),
            "mae": float(weight @ np.abs(error) / total),
            "rmse": float(np.sqrt(weight @ error**2 / total)),
            "spearman": _correlation(rank_truth(weight), rank_predicted(weight), weight),
        }

    found = bootstrap_intervals(
        one_by_one(measure), len(truth), seed=seed, replicates=replicates, level=level, groups=groups
    )
    units = len(truth) if groups is None else len(np.unique(np.asarray(groups)))
    return found | {"spearman": _of_ranks(found["spearman"], units, level)}


def _of_ranks(found: Interval, units: int, level: float) -> Interval:
    """Return the interval of a rank correlation; of one that is perfect, by its pairs of rows, all in order.

    The rows are cut into ``units // 2`` pairs that share none. Were a share p of all pairs in order, the correlation
    of Kendall would be 2 p - 1.
    """
    if found.high - found.low > _ROUNDING or not abs(found.value) >= 1 - _ROUNDING or units < 2:
        return found
    end = 2 * share_interval(1.0, units // 2, level)[0] - 1
    return Interval(found.value, *sorted((found.value, float(np.copysign(1.0, found.value)) * end)))


def parts_of_range(truth: Floats, predicted: Floats, *, parts: int = 10) -> list[dict[str, Any]]:
    """Describe the errors from the smallest to the largest true values, in parts of about as many rows.

    Parameters
    ----------
    truth, predicted : ndarray of shape (N,)
        Numbers.
    parts : int
        How many parts; equal values stay in one part, so there may be fewer.

    Returns
    -------
    list of dict
        ``low``, ``high``, ``rows``, mean ``bias`` (predicted − true) and ``mae`` of every part.
    """
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, parts + 1)[1:-1]))
    part = np.searchsorted(edges, truth, side="right")
    out = []
    for number in np.unique(part):
        rows = part == number
        error = predicted[rows] - truth[rows]
        out.append(
            {
                "low": float(truth[rows].min()),
                "high": float(truth[rows].max()),
                "rows": int(rows.sum()),
                "bias": float(error.mean()),
                "mae": float(np.abs(error).mean()),
            }
        )
    return out
