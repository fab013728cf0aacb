"""From scores to probabilities, and how well these match what happens.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.choice import UNSEEN_ROWS
from pipeline.evaluation.shares import share_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def expected_calibration_error(confidence: Floats, correct: Floats | NDArray[np.bool_], *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
        Largest probability of each row.
    correct : ndarray of shape (N,), bool or float
        Whether the class of that probability is the label, or how right the row is where classes tie.
    bins : int
        Number of bins over [0, 1].

    References
    ----------
    Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.

    Examples
    --------
    >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, True]))
    0.1
    """
    return float(calibration_errors(confidence, correct, np.ones((1, len(confidence))), bins=bins)[0])


def calibration_errors(
    confidence: Floats, correct: Floats | NDArray[np.bool_], weights: Floats, *, bins: int = 15
) -> Floats:
    """Return the `expected_calibration_error` (R,) under each row of weights (R, N)."""
    index = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    gap = counts_by(index, weights * (correct - confidence), bins)
    errors = np.abs(gap).sum(axis=1) / weights.sum(axis=1)
    return np.array([round(error, 12) for error in errors.tolist()])


def counts_by(codes: NDArray[np.int64], weights: Floats, count: int) -> Floats:
    """Sum each row of weights (R, N) by the rows' codes 0 … count−1.

    Examples
    --------
    >>> counts_by(np.array([0, 2, 2]), np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 3.0]]), 3).tolist()
    [[1.0, 0.0, 2.0], [0.0, 0.0, 5.0]]
    """
    places = codes + count * np.arange(len(weights))[:, None]
    sums = np.bincount(places.ravel(), weights=weights.ravel(), minlength=count * len(weights))
    return np.asarray(sums.reshape(len(weights), count))


LEAST_ROWS_OF_BIN = 20
"""Rows of a bin of a reliability curve: with fewer, its interval spans most of what is possible."""


def reliability_bins(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 12) -> list[dict[str, float]]:
    """Return mean confidence and accuracy, with its interval, of bins of equal row counts.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
        Largest probability of each row.
    correct : ndarray of shape (N,), bool
        Whether the class of that probability is the label.
    bins : int
        Number of bins; fewer where they would have less than ``LEAST_ROWS_OF_BIN`` rows, and none for fewer rows than
        two of them.

    Examples
    --------
    >>> [bin["rows"] for bin in reliability_bins(np.linspace(0, 1, 50), np.ones(50, dtype=bool))]
    [25, 25]
    """
    count = min(bins, len(confidence) // LEAST_ROWS_OF_BIN)
    if count < 2:
        return []
    out = []
    for rows in np.array_split(np.argsort(confidence, kind="stable"), count):
        accuracy = float(correct[rows].mean())
        low, high = share_interval(accuracy, len(rows))
        mean = float(confidence[rows].mean())
        out.append({"confidence": mean, "accuracy": accuracy, "low": low, "high": high, "rows": len(rows)})
    return out


def softmax(scores: Floats) -> Floats:
    """Return row-wise softmax in float64 without overflow."""
    shifted = np.asarray(scores, dtype=np.float64) - scores.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return np.asarray(shifted)


ROWS_A_CLASS = 20
"""Rows a class below which temperatures above 1 are expected less: held-out scores come from fits on fewer rows, and
look less sure than the head itself where each row is a good part of its class."""

LEAST_ROWS = 10
"""Rows from which the temperature of scores that are log-probabilities is fitted at all."""

PRIOR_WIDTH = 0.5
"""Standard deviation of log T around 0 that is expected of scores that are log-probabilities already."""


def fit_temperature(
    scores: Floats, y: NDArray[np.integer], *, log_probabilities: bool = True, copies: Floats | None = None
) -> float:
    """Find the temperature T that minimises the log loss of ``softmax(scores / T)``, held back where rows are few.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
        Scores of rows that the head was not fitted on.
    y : ndarray of shape (N,), int
        Their classes.
    log_probabilities : bool
        Whether the scores come from a head that models probabilities. Then T is expected near 1, with a standard
        deviation of log T of ``PRIOR_WIDTH``. Margins and distances have no scale of their own, and T is free.
    copies : ndarray of shape (N, K), optional
        How many classes share each score, where one column stands for many; ``y`` then counts columns.

    Returns
    -------
    float
        T in [1e-4, 1e4]; 1 for no rows, and for log-probabilities of fewer than ``LEAST_ROWS``.

    Notes
    -----
    Beside the rows given, half a row of a random label counts (`pipeline.evaluation.choice.UNSEEN_ROWS`): rows that are
    all right, by chance or because classes are easy, would otherwise take T to zero. For two classes it does what the
    smoothed targets of Platt ("Probabilistic outputs for support vector machines", 1999, section 2.2) do.

    References
    ----------
    Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.

    Examples
    --------
    >>> scores, y = np.array([[2.0, -2.0], [-2.0, 2.0]] * 50), np.array([0, 1] * 50)
    >>> fit_temperature(scores, y) < fit_temperature(scores[:10], y[:10])
    True
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if not len(y) or (log_probabilities and len(y) < LEAST_ROWS):
        return 1.0
    at_truth, mean = scores[np.arange(len(y)), y], np.average(scores, axis=1, weights=copies)
    below = PRIOR_WIDTH if log_probabilities else np.inf
    classes = scores.shape[1] if copies is None else float(copies[0].sum())
    above = below * min(1.0, float(len(y) / (ROWS_A_CLASS * classes)) ** 0.5)

    def loss(log_t: float) -> float:
        t, width = np.exp(log_t), above if log_t > 0 else below
        total = logsumexp(scores / t, axis=1, b=copies)
        unseen = UNSEEN_ROWS * (total - mean / t).mean()
        return float((total - at_truth / t).sum() + unseen + 0.5 * (log_t / width) ** 2)

    bound = float(np.log(1e4))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))
