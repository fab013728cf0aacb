"""From scores to probabilities, and how well these match what happens.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def expected_calibration_error(
    confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 15, weight: Floats | None = None
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
        Largest probability of each row.
    correct : ndarray of shape (N,), bool
        Whether the class of that probability is the label.
    bins : int
        Number of bins over [0, 1].
    weight : ndarray of shape (N,), optional
        Weights of the rows.

    References
    ----------
    Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.

    Examples
    --------
    >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, True]))
    0.1
    """
    w = np.ones(len(confidence)) if weight is None else weight
    index = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(index, weights=w * (correct - confidence), minlength=bins)
    return round(float(np.abs(gap).sum() / w.sum()), 12)


def reliability_bins(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 15) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and row count of every bin that has rows."""
    index = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    out = []
    for number in np.unique(index):
        rows = index == number
        out.append(
            {
                "confidence": float(confidence[rows].mean()),
                "accuracy": float(correct[rows].mean()),
                "rows": int(rows.sum()),
            }
        )
    return out


def softmax(scores: Floats) -> Floats:
    """Return row-wise softmax in float64 without overflow."""
    shifted = np.asarray(scores, dtype=np.float64) - scores.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return np.asarray(shifted)


def fit_temperature(scores: Floats, y: NDArray[np.integer]) -> float:
    """Find the temperature T that minimises the log loss of ``softmax(scores / T)``.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
        Scores of rows that the head was not fitted on.
    y : ndarray of shape (N,), int
        Their classes.

    Returns
    -------
    float
        T in [1e-4, 1e4].

    References
    ----------
    Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    at_truth = scores[np.arange(len(y)), y]

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return float((logsumexp(scores / t, axis=1) - at_truth / t).mean())

    bound = float(np.log(1e4))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))
