"""Intervals of shares: of accuracies and similar figures, also where every row is right.

Axes: N rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def share_interval(share: float, rows: float, level: float = 0.95) -> tuple[float, float]:
    """Return the mid-P interval of a share.

    Parameters
    ----------
    share : float
        The share found, in [0, 1].
    rows : float
        Independent rows it was found on; as `effective_rows` counts them it need not be whole.
    level : float
        Coverage.

    Returns
    -------
    tuple of float
        Lower and upper end: the shares at which half the probability of what was found, and all of what lies beyond,
        makes up a tail. Not a point where all rows are right.

    Notes
    -----
    Clopper and Pearson's interval covers too much where rows are few, Wilson's and Jeffreys' too little near 1 (0.90 at
    a true share of 0.95 and 2 rows, or of 0.98 and 5); mid-P stays between 0.93 and 1 there. For shares that are no
    multiple of a row (ties, grouped rows) the binomial tails are continued as incomplete beta functions.

    References
    ----------
    Lancaster, "Significance tests in discrete distributions", J. Am. Stat. Assoc. 56 (1961).
    Agresti and Gottard, "Nonconservative exact small-sample inference for discrete data", Comput. Stat. Data Anal. 51
    (2007).

    Examples
    --------
    >>> [round(end, 3) for end in share_interval(1.0, 10)]
    [0.741, 1.0]
    """
    from scipy.optimize import brentq

    if not (np.isfinite(share) and rows > 0):
        return float("nan"), float("nan")
    tail, right = (1 - level) / 2, min(max(share, 0.0), 1.0) * rows
    wrong = rows - right
    low, high = 0.0, 1.0
    if right > 0:
        low = brentq(lambda p: _upper_tail(p, right, wrong) - tail, 0.0, 1.0)
    if wrong > 0:
        high = brentq(lambda p: _upper_tail(1 - p, wrong, right) - tail, 0.0, 1.0)
    return float(min(low, share)), float(max(high, share))


def _upper_tail(p: float, right: float, wrong: float) -> float:
    """Return P(more than ``right``) + ½ P(``right``) of a binomial with share p."""
    from scipy.special import betainc

    at_least = betainc(right, wrong + 1, p)
    more = betainc(right + 1, wrong, p) if wrong > 0 else 0.0
    return float((at_least + more) / 2)


def effective_rows(hits: Floats, groups: ArrayLike | None = None) -> float:
    """Return how many independent rows are worth as much as these.

    Parameters
    ----------
    hits : ndarray of shape (N,)
        How right each row is, in [0, 1].
    groups : array-like of shape (N,), optional
        Rows of one group are not independent.

    Returns
    -------
    float
        N without groups; else N over the design effect, the variance of the mean when groups are drawn over that when
        rows are, at least 1 and at most N / groups. Where all rows are equally right, the number of groups.

    References
    ----------
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data", Survey Methodology 24 (1998).

    Examples
    --------
    >>> effective_rows(np.ones(6), ["a", "a", "a", "b", "b", "c"])
    3.0
    """
    rows = len(hits)
    if groups is None:
        return float(rows)
    number = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    count = int(number.max()) + 1
    share = float(hits.mean())
    of_rows = share * (1 - share) / rows
    if count < 2 or of_rows <= 0:
        return float(count)
    sums = np.bincount(number, weights=hits - share)
    of_groups = count / (count - 1) * float((sums**2).sum()) / rows**2
    return float(rows / np.clip(of_groups / of_rows, 1.0, rows / count)) if count < rows else float(rows)


def mean_of_classes(counts: ArrayLike) -> float:
    """Return how many rows of one class determine as much as the mean over classes of shares found on these counts.

    Parameters
    ----------
    counts : array-like of shape (K,)
        Rows (or groups) of each class; classes without any do not count.

    Notes
    -----
    The variance of a mean of K shares of equal size p on n_k rows is ``p (1 − p) Σ 1/n_k / K²``.

    Examples
    --------
    >>> mean_of_classes([10, 10]), round(mean_of_classes([100, 2]), 2)
    (20.0, 7.84)
    """
    n = np.asarray(counts, dtype=np.float64)
    n = n[n > 0]
    return float(len(n) ** 2 / (1.0 / n).sum()) if len(n) else 0.0
