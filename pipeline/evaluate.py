"""Splits, metrics and intervals: pure functions on arrays.

Axes: N rows, K classes, B bootstrap replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "hold-out": "test",
}
"""Spellings of the three splits that tables in the wild use."""

UNUSED_SPLITS = {"", "none", "nan", "unused", "ignore"}
"""Values of a split column that leave the row out."""

_BOOTSTRAP_WORK = 200_000_000
_LEAST_REPLICATES = 200


# --- splits --------------------------------------------------------------------------------------------------


def named_split(column: ArrayLike) -> NDArray[np.str_]:
    """Read a user's split column.

    Parameters
    ----------
    column : array-like of shape (N,)
        One word a row, in any of the spellings of ``SPLIT_NAMES``, upper or lower case. Empty leaves a row out.

    Returns
    -------
    ndarray of shape (N,), str
        ``"train"``, ``"val"``, ``"test"`` or ``""``.

    Raises
    ------
    HeadError
        For a word that is none of these.

    Examples
    --------
    >>> named_split(["Training", "valid", "test", ""]).tolist()
    ['train', 'val', 'test', '']
    """
    words = np.char.lower(np.char.strip(np.asarray(column).astype(str)))
    names, inverse = np.unique(words, return_inverse=True)
    meaning = []
    for name in names.tolist():
        if name not in SPLIT_NAMES and name not in UNUSED_SPLITS:
            raise HeadError(
                f"the split column must say train, val or test; it also says {name!r} "
                f"({int((words == name).sum())} rows): {near_names(name, SPLIT_NAMES)} "
                "Rename it, or leave it empty to keep those rows out"
            )
        meaning.append(SPLIT_NAMES.get(name, ""))
    return np.asarray(meaning, dtype="<U5")[inverse.ravel()]


def hold_out(
    y: NDArray[np.integer],
    *,
    share: float,
    seed: int,
    groups: ArrayLike | None = None,
    every_class: bool = True,
) -> NDArray[np.str_]:
    """Hold rows out for the test, with the classes' shares kept and no group on both sides.

    Parameters
    ----------
    y : ndarray of shape (N,), int
        Classes, or other strata.
    share : float
        Share of the rows to hold out, in (0, 1). With groups it is met as nearly as whole groups allow.
    seed : int
        Seed of the shuffle.
    groups : array-like of shape (N,), optional
        Rows of one group stay together.
    every_class : bool
        Whether every class has to be on the training side.

    Returns
    -------
    ndarray of shape (N,), str
        ``"train"`` or ``"test"``.

    Raises
    ------
    HeadError
        Where a class would be missing on the training side.
    """
    if not 0.0 < share < 1.0:
        raise HeadError(f"the share held out for the test must lie between 0 and 1, got {share}")
    rng = np.random.default_rng(seed)
    split = np.full(len(y), "train", dtype="<U5")
    if groups is None:
        for label in np.unique(y):
            rows = rng.permutation(np.flatnonzero(y == label))
            # A class of one row is kept for training; a class of two gives one to the test.
            count = min(max(round(share * len(rows)), 1), len(rows) - 1)
            split[rows[:count]] = "test"
        return split
    n_groups = len(np.unique(np.asarray(groups)))
    if n_groups < 2:
        raise HeadError(
            f"a hold-out needs at least 2 groups, found {n_groups}: give a split column, or leave the group column out"
        )
    parts, taken = _parts(share, min(n_groups, _MOST_PARTS))
    split[_stratified_group_folds(y, np.asarray(groups), parts, seed) < taken] = "test"
    missing = np.setdiff1d(y, y[split == "train"])
    if every_class and len(missing):
        raise HeadError(
            f"{len(missing)} of the classes lie in a single group, so that group cannot be held out: "
            "give a split column, or leave the group column out"
        )
    return split


def groups_of_column(column: ArrayLike) -> NDArray[np.str_]:
    """Return groups in which every row without one is a group of its own.

    Examples
    --------
    >>> groups = groups_of_column(["a", "", "a", ""])
    >>> len(set(groups.tolist())), groups[0] == groups[2]
    (3, True)
    """
    groups = np.asarray(column).astype(np.str_)
    alone = np.flatnonzero(groups == "")
    if not len(alone):
        return groups
    filled = groups.astype(f"<U{max(groups.dtype.itemsize // 4, 24)}")
    filled[alone] = np.char.add("\0", alone.astype(np.str_))  # no name from a table holds a zero
    return filled


_MOST_PARTS = 20


def _parts(share: float, most: int) -> tuple[int, int]:
    """Return into how many parts to cut groups, and how many of these come nearest to a share; few parts first.

    Examples
    --------
    >>> _parts(0.2, 20), _parts(0.4, 20), _parts(0.7, 20), _parts(0.2, 3)
    ((5, 1), (5, 2), (10, 7), (3, 1))
    """
    counts = [(parts, min(max(round(share * parts), 1), parts - 1)) for parts in range(2, most + 1)]
    return min(counts, key=lambda count: (round(abs(count[1] / count[0] - share), 9), count[0]))


def fold_numbers(
    y: NDArray[Any], n_folds: int, *, seed: int, groups: ArrayLike | None = None, stratify: bool = True
) -> Ints:
    """Give every row the number of the fold that holds it out.

    Parameters
    ----------
    y : ndarray of shape (N,)
        Classes, or any targets where ``stratify`` is false.
    n_folds : int
        How many folds; at most ``largest_fold_count(y, groups)``.
    seed : int
        Seed of the shuffle.
    groups : array-like of shape (N,), optional
        Rows of one group share a fold.
    stratify : bool
        Keep the classes' shares equal over the folds.

    Returns
    -------
    ndarray of shape (N,), int64
        0 … n_folds − 1.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    if groups is not None:
        strata = y if stratify else np.zeros(len(y), dtype=np.int64)
        return _stratified_group_folds(strata, np.asarray(groups), n_folds, seed)
    kind = StratifiedKFold if stratify else KFold
    parts = kind(n_folds, shuffle=True, random_state=seed).split(np.zeros(len(y)), y)
    fold = np.full(len(y), -1, dtype=np.int64)
    for number, (_, held_out) in enumerate(parts):
        fold[held_out] = number
    return fold


def _stratified_group_folds(y: NDArray[Any], groups: NDArray[Any], n_folds: int, seed: int) -> Ints:
    """Give whole groups to folds, the largest first, each where it leaves the classes' shares most even.

    scikit-learn's `StratifiedGroupKFold` weighs every group against every fold and class, 35 s for 60 000 rows of which
    few have company. Here the change of Σ (share of class k in fold f)² is one product, and rows without company fill
    up what is missing class by class.
    """
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    classes, code = np.unique(y, return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    code, group = code.ravel(), group.ravel()
    size = np.bincount(group)
    held = np.zeros((n_folds, len(classes)))
    fold_of = np.full(len(size), -1, dtype=np.int64)
    tally = csr_array((np.ones(len(y)), (group, code)), shape=(len(size), len(classes)))
    weight = 1.0 / np.bincount(code).astype(np.float64) ** 2
    order = rng.permutation(len(size))
    for number in order[np.argsort(-size[order], kind="stable")]:
        if size[number] == 1:
            break
        at = slice(tally.indptr[number], tally.indptr[number + 1])
        its, count = tally.indices[at], tally.data[at]
        worse = held[:, its] @ (count * weight[its])
        fold = int(np.lexsort((held.sum(axis=1), worse))[0])
        held[fold, its] += count
        fold_of[number] = fold
    alone = rng.permutation(np.flatnonzero(size[group] == 1))
    for k in range(len(classes)):
        rows = alone[code[alone] == k]
        # Of the places a fold can offer, the n lowest: folds with fewer rows of this class come first.
        places = (held[:, k, None] + np.arange(len(rows))).ravel()
        total = np.repeat(held.sum(axis=1), len(rows))
        taken = np.lexsort((total, places))[: len(rows)] // max(len(rows), 1)
        fold_of[group[rows]] = taken
        held[:, k] += np.bincount(taken, minlength=n_folds)
    return np.asarray(fold_of[group])


def largest_fold_count(y: NDArray[np.integer], groups: ArrayLike | None = None) -> int:
    """Count the folds that leave every class on both sides: the size of the smallest class, in rows or groups.

    Examples
    --------
    >>> largest_fold_count(np.array([0, 0, 0, 1, 1]))
    2
    """
    if groups is None:
        return int(np.unique(y, return_counts=True)[1].min())
    names = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    return min(len(np.unique(names[y == label])) for label in np.unique(y))


# --- metrics -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Return the figure with its interval."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def replicates_for(n_rows: int, wanted: int = 1000) -> int:
    """Return how many bootstrap replicates ``n_rows`` can afford: ``wanted``, fewer from 200 000 rows on."""
    return int(np.clip(_BOOTSTRAP_WORK // max(n_rows, 1), _LEAST_REPLICATES, wanted))


def bootstrap_weights(
    n_rows: int, *, seed: int, replicates: int, groups: ArrayLike | None = None
) -> Callable[[int], Floats]:
    """Return a function from replicate number to the rows' counts in that resample.

    Whole groups are drawn where groups are given, because their rows are not independent. Every replicate has a
    generator of its own, so that replicate b is the same draw whoever asks, which is what pairs two heads.

    Parameters
    ----------
    n_rows : int
        N.
    seed : int
        Seed of all draws.
    replicates : int
        B; used to spawn the generators.
    groups : array-like of shape (N,), optional
        Group of every row.
    """
    seeds = np.random.SeedSequence(seed).spawn(replicates)
    if groups is None:
        unit, n_units = None, n_rows
    else:
        names, inverse = np.unique(np.asarray(groups), return_inverse=True)
        unit, n_units = inverse.ravel(), len(names)

    def draw(replicate: int) -> Floats:
        rng = np.random.default_rng(seeds[replicate])
        counts = np.bincount(rng.integers(0, n_units, n_units), minlength=n_units).astype(np.float64)
        return counts if unit is None else counts[unit]

    return draw


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


def _classification(
    y: Ints, predicted: Ints, loss: Floats, brier: Floats, confidence: Floats, n_classes: int, weight: Floats
) -> dict[str, float]:
    hit = y == predicted
    right = np.bincount(y, weights=weight * hit, minlength=n_classes)
    support = np.bincount(y, weights=weight, minlength=n_classes)
    said = np.bincount(predicted, weights=weight, minlength=n_classes)
    present, seen = support > 0, (support + said) > 0
    total = weight.sum()
    return {
        "accuracy": float(right.sum() / total),
        "balanced_accuracy": float((right[present] / support[present]).mean()),
        "macro_f1": float((2 * right[seen] / (support + said)[seen]).mean()),
        "log_loss": float(weight @ loss / total),
        "brier": float(weight @ brier / total),
        "ece": expected_calibration_error(confidence, hit, weight=weight),
    }


def row_losses(y: Ints, probabilities: Floats) -> Floats:
    """Return ``−log p`` of every row's label, with p clipped at the smallest float32 as scikit-learn does."""
    eps = float(np.finfo(np.float32).eps)
    at_truth = probabilities[np.arange(len(y)), y]
    return np.asarray(-np.log(np.clip(at_truth, eps, 1.0)))


def classification_metrics(
    y: NDArray[np.integer],
    probabilities: Floats,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Measure class probabilities, every figure with a percentile bootstrap interval.

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
    predicted = probabilities.argmax(1).astype(np.int64)
    loss = row_losses(truth, probabilities)
    square = (probabilities**2).sum(1) - 2 * probabilities[np.arange(n_rows), truth] + 1
    confidence = probabilities.max(1)

    def measure(weight: Floats) -> dict[str, float]:
        return _classification(truth, predicted, loss, square, confidence, n_classes, weight)

    return bootstrap_intervals(measure, n_rows, seed=seed, replicates=replicates, level=level, groups=groups)


def bootstrap_intervals(
    measure: Callable[[Floats], dict[str, float]],
    n_rows: int,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Turn a function of row weights into figures with percentile bootstrap intervals.

    Parameters
    ----------
    measure : callable
        From weights of shape (N,) to figures by name.
    n_rows : int
        N.
    seed, replicates, level, groups
        As in ``classification_metrics``.
    """
    value = measure(np.ones(n_rows))
    count = replicates_for(n_rows, replicates)
    draw = bootstrap_weights(n_rows, seed=seed, replicates=count, groups=groups)
    drawn = [measure(draw(b)) for b in range(count)]
    tails = [50 * (1 - level), 50 * (1 + level)]
    out = {}
    for name, at in value.items():
        values = np.asarray([d[name] for d in drawn])
        low, high = np.nanpercentile(values, tails) if np.isfinite(values).any() else (np.nan, np.nan)
        out[name] = Interval(float(at), float(low), float(high))
    return out


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


# --- calibration ---------------------------------------------------------------------------------------------


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
