"""Predicting only where the head is sure: how the error falls as more rows are left out.

Axes: N rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_MOST_POINTS = 200


def risk_coverage(doubt: Floats, errors: Floats) -> dict[str, list[float]]:
    """Return the error among the rows with the least doubt, for every share of rows kept.

    Rows of equal doubt are kept or left out together.

    Parameters
    ----------
    doubt : ndarray of shape (N,)
        Smallest for the rows to keep first.
    errors : ndarray of shape (N,)
        How wrong each row is, 0 to 1.

    Returns
    -------
    dict
        ``coverage``, ascending shares of rows kept; ``risk``, their mean error; ``doubt``, that of the last row kept.
        At most 200 points.

    References
    ----------
    El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11 (2010), section 2.

    Examples
    --------
    >>> found = risk_coverage(np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]))
    >>> found["coverage"], [round(risk, 2) for risk in found["risk"]]
    ([0.25, 0.75, 1.0], [0.0, 0.33, 0.5])
    """
    order = np.argsort(doubt, kind="stable")
    sorted_doubt = doubt[order]
    ends = np.flatnonzero(np.append(sorted_doubt[1:] != sorted_doubt[:-1], True))
    risk = np.cumsum(errors[order]) / np.arange(1, len(order) + 1)
    if len(ends) > _MOST_POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _MOST_POINTS).round().astype(np.int64))]
    return {
        "coverage": ((ends + 1) / len(order)).tolist(),
        "risk": risk[ends].tolist(),
        "doubt": sorted_doubt[ends].tolist(),
    }


def area_under_risk(doubt: Floats, errors: Floats) -> float:
    """Return the mean risk over all shares of rows kept; the smaller, the better doubt finds errors.

    Examples
    --------
    >>> area_under_risk(np.array([0.1, 0.9]), np.array([0.0, 1.0]))
    0.25
    """
    order = np.argsort(doubt, kind="stable")
    return float((np.cumsum(errors[order]) / np.arange(1, len(order) + 1)).mean())
