"""Label sets and intervals that hold the truth as often as asked for: split conformal prediction.

A *nonconformity score* says how badly a prediction fits a label: minus the probability of the class, or the distance of
the number. The scores of calibration rows, which the head was not fitted on, say which scores are usual. All labels
whose score is usual make up the set of a new row.

Axes: n calibration rows, N new rows, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

USUAL_COVERAGES = (0.8, 0.9, 0.95)
"""What a report shows."""
WIDEST_RANGE = 0.05
"""How far below what was asked the coverage may lie by chance of the calibration rows before that is said."""
_RANGE_LEVEL = 0.9


def class_scores(probabilities: Floats, y: Ints) -> Floats:
    """Return the nonconformity scores (n,) of class probabilities (n, K): minus the probability of the label.

    One minus the probability would order labels alike, but round all small probabilities to one score.

    References
    ----------
    Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with bounded error levels", JASA 114 (2019):
    among sets of one coverage, those by this score are the smallest on average.
    """
    return np.asarray(-probabilities[np.arange(len(y)), y])


def number_scores(predicted: Floats, y: Floats) -> Floats:
    """Return the nonconformity scores (n,) of numbers: how far they are off."""
    return np.abs(y - predicted)


def least_rows(coverage: float) -> int:
    """Return from how many calibration rows (or groups) on a set can leave a label out.

    The threshold is the ⌈(n + 1) · coverage⌉-th smallest of n scores; there is one only where that is at most n, which
    is n ≥ coverage / (1 − coverage).

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, Springer 2005, section 2.2; Angelopoulos and
    Bates, "Conformal prediction: a gentle introduction", Found. Trends Mach. Learn. 16 (2023), section 1.1.

    Examples
    --------
    >>> least_rows(0.8), least_rows(0.9), least_rows(0.95)
    (4, 9, 19)
    """
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def threshold(scores: Floats, coverage: float, groups: Ints | None = None) -> float:
    """Return the largest score that is usual.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of the calibration rows.
    coverage : float
        How often the set of a new row is to hold its label, in (0, 1).
    groups : ndarray of shape (n,), optional
        Rows of one group are not independent. Every group then counts as one row, shared evenly by its rows, and the
        coverage is that of a row of a new group.

    Returns
    -------
    float
        Infinite where the rows are too few; see `least_rows`.

    References
    ----------
    Lee, Barber and Willett, "Distribution-free inference with hierarchical data", arXiv:2306.06342 (2023), section 3.1:
    the weights of groups.

    Examples
    --------
    >>> threshold(np.arange(9.0), 0.9), threshold(np.arange(9.0), 0.8), threshold(np.arange(8.0), 0.9)
    (8.0, 7.0, inf)
    """
    if groups is None:
        rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
        return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf
    number = np.unique(groups, return_inverse=True)[1].ravel()
    size = np.bincount(number)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1.0 / size[number[order]]) / (len(size) + 1)
    place = int(np.searchsorted(reached, coverage - 1e-9))
    return float(scores[order[place]]) if place < len(order) else math.inf


def class_thresholds(scores: Floats, y: Ints, n_classes: int, coverage: float, groups: Ints | None = None) -> Floats:
    """Return a threshold for each class (K,), from the calibration rows of that class alone.

    Each class is then covered as often as asked for, and not only all rows together.

    References
    ----------
    Vovk, "Conditional validity of inductive conformal predictors", Mach. Learn. 92 (2013), section 3: label-conditional
    predictors.
    """
    return np.array(
        [
            threshold(scores[y == k], coverage, None if groups is None else groups[y == k])
            if (y == k).any()
            else np.inf
            for k in range(n_classes)
        ]
    )


def label_sets(probabilities: Floats, thresholds: float | Floats) -> NDArray[np.bool_]:
    """Return which classes the set of each row holds (N, K).

    A set is empty where no class is usual: the row is unlike the calibration rows, or between classes.
    """
    return np.asarray(-probabilities <= thresholds)


def likely_range(coverage: float, rows: int) -> tuple[float, float]:
    """Return between which values the coverage lies with probability 0.9, by the chance of the calibration rows.

    Given n rows, the coverage of later rows has the distribution Beta(k, n + 1 − k) with k = ⌈(n + 1) · coverage⌉.

    References
    ----------
    Vovk, "Conditional validity of inductive conformal predictors", Mach. Learn. 92 (2013), section 2.

    Examples
    --------
    >>> [round(end, 2) for end in likely_range(0.9, 100)], likely_range(0.9, 8)
    ([0.85, 0.94], (1.0, 1.0))
    """
    from scipy.stats import beta

    k = math.ceil((rows + 1) * coverage - 1e-9)
    if k > rows:
        return 1.0, 1.0
    tails = (1 - _RANGE_LEVEL) / 2, (1 + _RANGE_LEVEL) / 2
    low, high = beta.ppf(tails, k, rows + 1 - k)
    return float(low), float(high)


def few_rows(coverage: float, rows: int, what: str = "rows") -> str:
    """Return the sentence that says that calibration rows are few; empty where they are not.

    Examples
    --------
    >>> few_rows(0.9, 5)
    '5 calibration rows are too few for a coverage of 0.9, which takes 9: nothing is ruled out'
    >>> few_rows(0.9, 40)
    'with 40 calibration rows, a coverage of 0.9 may by chance be anything from 0.82 to 0.97'
    >>> few_rows(0.9, 1000)
    ''
    """
    if rows < least_rows(coverage):
        return (
            f"{rows} calibration {what} are too few for a coverage of {coverage:g}, which takes "
            f"{least_rows(coverage)}: nothing is ruled out"
        )
    low, high = likely_range(coverage, rows)
    if coverage - low > WIDEST_RANGE:
        return (
            f"with {rows} calibration {what}, a coverage of {coverage:g} may by chance be anything from {low:.2f} to "
            f"{high:.2f}"
        )
    return ""


def measured_sets(sets: NDArray[np.bool_], y: Ints) -> dict[str, Any]:
    """Return how right sets (N, K) are: ``hits`` (N,), the mean ``size``, and the shares that hold none or one."""
    size = sets.sum(axis=1)
    return {
        "hits": sets[np.arange(len(y)), y].astype(np.float64),
        "size": float(size.mean()),
        "empty": float((size == 0).mean()),
        "single": float((size == 1).mean()),
    }
