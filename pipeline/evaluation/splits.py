"""Which rows train, which are held out, and in which fold.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError, near_names

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

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
