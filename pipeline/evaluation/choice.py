"""Which of several candidates to take, by its scores on rows that it has not seen.

Axes: A candidates, N rows held out, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

UNSEEN_ROWS = 0.5
"""Rows with a label drawn at random that every mean log loss counts besides those it has seen.

Without them a few rows that are all correct favour scores without bound: no loss ever shows that the next row may be
wrong. Half a row is Jeffreys' prior of a share (Krichevsky and Trofimov, "The performance of universal encoding", IEEE
Trans. Inf. Theory 27, 1981)."""

ACCURACY_ERRORS, LOSS_ERRORS = 0.75, 0.5
"""Differences to the best candidate up to so many standard errors do not distinguish two candidates."""


@dataclass(frozen=True)
class HeldOut:
    """The scores of one candidate on the rows held out.

    Attributes
    ----------
    losses : ndarray of shape (N,)
        Log loss of each row.
    mean_losses : ndarray of shape (N,)
        Mean log loss over all labels that the row could have had.
    hits : ndarray of shape (N,)
        1 where the row is right, 0 where it is wrong, a share where classes tie.
    """

    losses: Floats
    mean_losses: Floats
    hits: Floats

    @property
    def accuracy(self) -> float:
        """Mean of the hits."""
        return float(self.hits.mean())

    @property
    def log_loss(self) -> float:
        """Mean log loss of the rows."""
        return float(self.losses.mean())

    def guarded_losses(self) -> Floats:
        """Return losses (N,) whose mean is that of the rows and of ``UNSEEN_ROWS`` more of any label."""
        return np.asarray(self.losses + UNSEEN_ROWS / len(self.losses) * self.mean_losses)


def hits(scores: Floats, y: NDArray[np.integer]) -> Floats:
    """Return how right the largest score of every row is.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
        Scores or probabilities.
    y : ndarray of shape (N,), int
        Classes 0 … K−1.

    Returns
    -------
    ndarray of shape (N,)
        1, 0, or 1 / n where n classes with the label's among them tie. A row with a score that is not finite is wrong.

    Examples
    --------
    >>> hits(np.array([[0.2, 0.8], [0.5, 0.5], [np.nan, 1.0]]), np.array([1, 1, 1])).tolist()
    [1.0, 0.5, 0.0]
    """
    best = scores == scores.max(axis=1, keepdims=True)
    right = best[np.arange(len(y)), y] & np.isfinite(scores).all(axis=1)
    return np.asarray(right / np.maximum(best.sum(axis=1), 1))


def held_out(scores: Floats, y: NDArray[np.integer]) -> HeldOut:
    """Measure scores (N, K) of a softmax on the classes (N,) of their rows."""
    from scipy.special import logsumexp

    total = logsumexp(scores, axis=1)
    return HeldOut(total - scores[np.arange(len(y)), y], total - scores.mean(axis=1), hits(scores, y))


def choose(
    candidates: Sequence[HeldOut],
    *,
    usable: Sequence[bool] | None = None,
    by: Literal["accuracy", "log_loss"] = "accuracy",
    groups: NDArray[np.integer] | None = None,
) -> int:
    """Choose the strongest regularisation that cannot be distinguished from the best.

    Parameters
    ----------
    candidates : sequence of HeldOut
        From the strongest regularisation to the weakest, all on the same rows.
    usable : sequence of bool, optional
        Candidates that may be taken; where none may, all may.
    by : {"accuracy", "log_loss"}
        Whether only candidates count whose accuracy cannot be distinguished from the best.
    groups : ndarray of shape (N,), int, optional
        Rows of one group are not independent: their differences count together.

    Returns
    -------
    int
        Position of the choice. It is an end of the range only where no candidate inside is as good.

    Notes
    -----
    The one-standard-error rule (Breiman, Friedman, Olshen and Stone, "Classification and regression trees", 1984,
    section 3.4.3) on differences that are paired row by row, which makes them far smaller than those of means, and with
    less than one standard error. The least log loss bounds the regularisation from below, since the accuracy of few
    rows says little about weaker ones. Among the others accuracy decides first, then log loss among those left;
    ``docs/heads.md`` has the trials.

    Examples
    --------
    >>> y = np.arange(40) % 2
    >>> sharp = [held_out(np.outer(2 * y - 1, [-s, s]).astype(float), y) for s in (0.0, 1.0, 50.0)]
    >>> choose(sharp)
    1
    """
    allowed = [i for i in range(len(candidates)) if usable is None or usable[i]] or list(range(len(candidates)))
    loss = {i: candidates[i].guarded_losses() for i in allowed}
    best = min(allowed, key=lambda i: loss[i].mean())
    if by == "accuracy":
        allowed = [i for i in allowed if i <= best]
        top = max(allowed, key=lambda i: (candidates[i].accuracy, -loss[i].mean()))
        lost = {i: candidates[top].hits - candidates[i].hits for i in allowed}
        allowed = [i for i in allowed if not _is_worse(lost[i], groups, ACCURACY_ERRORS)]
        best = min(allowed, key=lambda i: loss[i].mean())
    ties = [i for i in allowed if i <= best and not _is_worse(loss[i] - loss[best], groups, LOSS_ERRORS)]
    inside = [i for i in ties if 0 < i < len(candidates) - 1]
    return (inside or ties)[0]


def _is_worse(excess: Floats, groups: NDArray[np.integer] | None, errors: float) -> bool:
    """Return whether a mean excess is larger than so many of its standard errors."""
    mean = float(excess.mean())
    parts: Floats = excess - mean
    if groups is not None:
        parts = np.bincount(groups, weights=parts)[np.unique(groups)].astype(np.float64)
    count = len(parts)
    error = float(np.sqrt((parts**2).sum() * count / max(count - 1, 1))) / len(excess)
    return not mean <= errors * error + 1e-12
