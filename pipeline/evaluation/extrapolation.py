"""What twice the training rows would bring: the power law of a learning curve, and how far it can be trusted.

Axes: P points of the curve, R resamples of the measured rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.shares import share_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_POINTS = 3
"""Points that give the slope, the last ones: errors fall more slowly where rows are many."""
_STEEPEST = 1.0
"""Errors fall at most as 1/rows, and rise at most as fast: what lies beyond is noise of few measured rows."""
_DRAW, _FORM = 0.5, 0.25
"""How far the truth lies from the law: in standard deviations of a share on as many rows as are trained on, since
another draw of them gives another head, and as a share of the gain. Found with ``scripts/extrapolation_check.py``."""
_NORMAL = 1.959964
"""Standard deviations on either side that hold 95 %."""


@dataclass(frozen=True)
class Doubling:
    """What is expected of twice the training rows.

    Attributes
    ----------
    rows : int
        Twice the training rows.
    score : Interval
        The accuracy then, within [0, 1].
    gain : Interval
        How much higher it is than now.
    """

    rows: int
    score: Interval
    gain: Interval

    @property
    def is_measurable(self) -> bool:
        """Whether a gain is expected: its interval lies above zero."""
        return self.gain.low > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return {
            "rows": self.rows,
            "score": self.score.as_dict(),
            "gain": self.gain.as_dict(),
            "measurable": self.is_measurable,
        }


def gain_of_doubling(rows: Floats, scores: Floats, measured: float) -> Floats:
    """Return the gain that the power law of the last points gives for twice the rows of the last one.

    Parameters
    ----------
    rows : ndarray of shape (P,)
        Training rows, ascending; at least two points.
    scores : ndarray of shape (P, R)
        Accuracies.
    measured : float
        Independent rows that the accuracies were measured on; half an error is added to each, so that none is zero.

    Returns
    -------
    ndarray of shape (R,)
        ``e (1 − 2^−b)``: the error e of the last point falls with the rows to the power of b, which the points before
        it give by least squares.

    References
    ----------
    Cortes, Jackel, Solla, Vapnik and Denker, "Learning curves: asymptotic values and rate of convergence", NeurIPS 6
    (1993); without its limit for unlimited rows, which so few points do not determine.

    Examples
    --------
    >>> error = 0.5 * np.array([100, 400, 1600]) ** -0.5
    >>> gain_of_doubling(np.array([100.0, 400, 1600]), 1 - error[:, None], 1e9).round(5).tolist()
    [0.00366]
    """
    error = ((1.0 - scores) * measured + 0.5) / (measured + 1.0)
    last = slice(max(len(rows) - _POINTS, 0), -1)
    x = np.log(rows[last] / rows[-1])
    y = np.log(error[last]) - np.log(error[-1])
    power = np.clip(-(x @ y) / (x @ x), -_STEEPEST, _STEEPEST)
    return np.asarray((1.0 - scores[-1]) * (1.0 - 2.0**-power))


def doubled(rows: Floats, scores: Floats, resampled: Floats, measured: float) -> Doubling | None:
    """Extrapolate the accuracies of a learning curve to twice the rows of its last point.

    Parameters
    ----------
    rows : ndarray of shape (P,)
        Training rows, ascending.
    scores : ndarray of shape (P,)
        Accuracies.
    resampled : ndarray of shape (P, R)
        Those on resamples of the measured rows, the same for all points.
    measured : float
        Independent rows that they were measured on.

    Returns
    -------
    Doubling or None
        With 95 % intervals; None where there are fewer than two points.

    Notes
    -----
    The interval of the gain adds the variances of three sources: the measured rows (by the resamples), the draw of the
    training rows, and the form of the curve. That of the score has the width of a share on the measured rows, or of the
    resamples where that is more, in place of the first.
    """
    if len(rows) < 2:
        return None
    gain = float(gain_of_doubling(rows, scores[:, None], measured)[0])
    gains = gain_of_doubling(rows, resampled, measured)
    wrong = ((1.0 - scores[-1]) * measured + 1.0) / (measured + 2.0)
    law = np.hypot(_DRAW * np.sqrt(wrong * (1.0 - wrong) / rows[-1]), _FORM * gain)
    half = _NORMAL * float(np.hypot(gains.std(), law))
    score = float(np.clip(scores[-1] + gain, 0.0, 1.0))
    spread = _NORMAL * float((resampled[-1] + gains).std())
    low, high = share_interval(score, measured)
    below, above = np.hypot([max(score - low, spread), max(high - score, spread)], _NORMAL * law)
    return Doubling(
        rows=2 * int(rows[-1]),
        score=Interval(score, float(max(score - below, 0.0)), float(min(score + above, 1.0))),
        gain=Interval(gain, gain - half, gain + half),
    )
