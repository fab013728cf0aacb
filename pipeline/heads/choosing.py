"""What the heads that choose a setting by held-out rows have in common.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.choice import held_out

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from pipeline.evaluation.choice import HeldOut

_MOST_SCORES = 1 << 25
"""Scores kept of all candidates together (128 MB): with thousands of classes a sample of the rows chooses."""

_TEMPERATURE_SCORES = 1 << 18
"""Scores from which the temperature of one candidate is found."""

NOTHING_HELD_OUT = "cross-validation needs a class of at least 2 rows (or groups)"


def scored_rows(rows: NDArray[np.int64], n_classes: int, n_candidates: int) -> NDArray[np.int64]:
    """Return the rows whose scores choose among the candidates: all, or a sample that fits in memory."""
    most = max(_MOST_SCORES // (n_classes * n_candidates), 256)
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def measure(scores: NDArray[Any], y: NDArray[np.integer], *, log_probabilities: bool) -> HeldOut:
    """Measure held-out scores (N, K) of one candidate after a temperature of its own."""
    most = max(_TEMPERATURE_SCORES // scores.shape[1], 256)
    some = np.random.default_rng(0).permutation(len(y))[:most] if len(y) > most else slice(None)
    finite = np.where(np.isfinite(scores).all(axis=1, keepdims=True), scores, 0.0)
    return held_out(scores / fit_temperature(finite[some], y[some], log_probabilities=log_probabilities), y)


def group_numbers(groups: ArrayLike | None, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the groups of some rows as numbers."""
    if groups is None:
        return None
    return np.unique(np.asarray(groups)[rows], return_inverse=True)[1].ravel()


def two_score_columns(scores: NDArray[Any]) -> NDArray[Any]:
    """Return one score a class: for two classes a single column (N, 1) becomes zeros and itself."""
    return np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores
