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
        Whether every class has to be on the training side. A class of a single row or group then stays there; else
        such rows are held out in their share of all of them.

    Returns
    -------
    ndarray of shape (N,), str
        ``"train"`` or ``"test"``.

    Raises
    ------
    HeadError
        Where that leaves nothing to hold out.
    """
    if len(y) < 2:
        raise HeadError(f"a hold-out needs at least 2 rows, found {len(y)}: add images")
    if not 0.0 < share < 1.0:
        raise HeadError(f"the share held out for the test must lie between 0 and 1, got {share}")
    if groups is None:
        held = _held_rows(y, share, seed, every_class=every_class)
    else:
        held = _held_groups(y, groups, share, seed, every_class=every_class)
    return np.where(held, "test", "train").astype("<U5")


def _held_rows(y: NDArray[np.integer], share: float, seed: int, *, every_class: bool) -> NDArray[np.bool_]:
    """Hold out a share of the rows of every class."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), dtype=np.bool_)
    alone: list[int] = []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        # A class of one row is kept for training; a class of two gives one to the test.
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[:count]] = True
        alone += rows.tolist() if len(rows) == 1 else []
    if not every_class and alone:
        count = max(int(share * len(alone)), 0 if held.any() else 1)
        held[rng.permutation(alone)[: min(count, len(y) - int(held.sum()) - 1)]] = True
    return held


def _held_groups(
    y: NDArray[np.integer], groups: ArrayLike, share: float, seed: int, *, every_class: bool
) -> NDArray[np.bool_]:
    """Hold out whole groups."""
    n_groups = len(np.unique(np.asarray(groups)))
    if n_groups < 2:
        raise HeadError(
            f"a hold-out needs at least 2 groups, found {n_groups}: give a split column, or leave the group column out"
        )
    parts, taken = _parts(share, min(n_groups, _MOST_PARTS))
    code, names = (np.unique(np.asarray(each), return_inverse=True)[1].ravel() for each in (y, groups))
    fold = _stratified_group_folds(code, names, parts, seed)
    for shift in range(parts):
        held = ((fold - shift) % parts < taken).astype(np.int64)
        if every_class:
            held = np.where(_with_every_class_trained(held, code, names, only=1) == 1, 1, 0)
        if held.any():
            break
    if not held.any():
        raise HeadError(
            "every group has a class that no other group has, so none can be held out: "
            "give a split column, or leave the group column out"
        )
    return np.asarray(held == 1)


def stratified_order(y: NDArray[np.integer], seed: int) -> Ints:
    """Order rows so that every beginning of the order has the classes in their shares, and each at least once early.

    Parameters
    ----------
    y : ndarray of shape (N,), int
        Classes, or other strata.
    seed : int
        Seed of the shuffle.

    Examples
    --------
    >>> y = np.repeat([0, 1], [6, 3])
    >>> [np.bincount(y[stratified_order(y, 0)[:count]]).tolist() for count in (3, 6)]
    [[2, 1], [4, 2]]
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        place[rows] = np.arange(len(rows)) / len(rows)
    return np.lexsort((rng.random(len(y)), place))


ALONE = "\0"
"""What the name of a group begins with that is a row without a group; no name from a table holds a zero byte."""
_SHOWN_ALONE = "\N{SYMBOL FOR NULL}"


def groups_of_column(column: ArrayLike) -> NDArray[np.str_]:
    """Return groups in which every row without one (empty text) is a group of its own.

    Examples
    --------
    >>> groups = groups_of_column(["a", "", "a", ""])
    >>> len(set(groups.tolist())), bool(groups[0] == groups[2])
    (3, True)
    >>> len(set(groups_of_column(["1", ""]).tolist()))
    2
    """
    groups = np.asarray(column).astype(np.str_)
    alone = np.flatnonzero(groups == "")
    if not len(alone):
        return groups
    filled = groups.astype(f"<U{max(groups.dtype.itemsize // 4, 24)}")
    filled[alone] = [f"{ALONE}{row}" for row in alone.tolist()]  # numpy's own addition would lose the zero
    return filled


def given_group(name: object) -> str:
    """Return the name of a group as the column gives it: empty of a row that is a group of its own.

    Examples
    --------
    >>> [given_group(name) for name in groups_of_column(["b", ""])]
    ['b', '']
    """
    text = str(name)
    return "" if text.startswith(ALONE) else text


def shown_group(name: object) -> str:
    """Return the name of a group as tables show it: without a zero byte, at which some readers stop.

    Examples
    --------
    >>> shown_group("a"), [shown_group(name) for name in groups_of_column(["b", ""])]
    ('a', ['b', '␀1'])
    """
    return str(name).replace(ALONE, _SHOWN_ALONE)


_MOST_PARTS = 20

ALWAYS_TRAINS = -2
"""Fold number of a row that no fold holds out."""


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

    Every class trains in every fold. So a class of a single row (or group) is held out by none, and neither is one
    group of a class that would otherwise lie in one fold as a whole.

    Parameters
    ----------
    y : ndarray of shape (N,)
        Classes, or any targets where ``stratify`` is false.
    n_folds : int
        How many folds; at most ``fold_count(y, n_folds, groups)``.
    seed : int
        Seed of the shuffle.
    groups : array-like of shape (N,), optional
        Rows of one group share a fold.
    stratify : bool
        Keep the classes' shares equal over the folds: the counts of a class, and of all rows, differ by one at most
        where there are no groups. A class may have fewer rows than there are folds.

    Returns
    -------
    ndarray of shape (N,), int64
        0 … n_folds − 1, or ``ALWAYS_TRAINS``.

    Examples
    --------
    >>> fold_numbers(np.array([0, 0, 1, 1, 2]), 2, seed=0).tolist()
    [1, 0, 0, 1, -2]
    """
    strata = np.asarray(y) if stratify else np.zeros(len(y), dtype=np.int64)
    code = np.unique(strata, return_inverse=True)[1].ravel()
    if groups is None:
        return _stratified_folds(code, n_folds, seed, every_class=stratify)
    names = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    fold = _stratified_group_folds(code, names, n_folds, seed)
    return _with_every_class_trained(fold, code, names) if stratify else fold


def _stratified_folds(code: Ints, n_folds: int, seed: int, *, every_class: bool) -> Ints:
    """Deal the rows of one class after the other to the folds, round robin."""
    rng = np.random.default_rng(seed)
    fold = np.full(len(code), ALWAYS_TRAINS, dtype=np.int64)
    dealt = 0
    for label in rng.permutation(int(code.max()) + 1):
        rows = rng.permutation(np.flatnonzero(code == label))
        if len(rows) == 1 and every_class:
            continue
        fold[rows] = (dealt + np.arange(len(rows))) % n_folds
        dealt += len(rows)
    return fold


def _with_every_class_trained(fold: Ints, code: Ints, group: Ints, only: int | None = None) -> Ints:
    """Take a group out of the folds wherever one fold (or only this one) holds a whole class out, its smallest."""
    size = np.bincount(group)
    first, last = (np.full(int(code.max()) + 1, start) for start in (len(code), -len(code)))
    np.minimum.at(first, code, fold)
    np.maximum.at(last, code, fold)
    fold = fold.copy()
    for label in np.flatnonzero((first == last) if only is None else (first == last) & (first == only)):
        its = np.unique(group[code == label])
        fold[group == its[size[its].argmin()]] = ALWAYS_TRAINS
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


def fold_count(y: NDArray[np.integer], wanted: int, groups: ArrayLike | None = None) -> int:
    """Return into how many folds the rows can be cut, at most ``wanted``; below 2 they cannot be.

    A row (or group) is held out only where its class has another one.

    Examples
    --------
    >>> fold_count(np.array([0, 0, 0, 1, 1, 2]), 10), fold_count(np.array([0, 1, 2]), 5)
    (5, 0)
    """
    code = np.unique(np.asarray(y), return_inverse=True)[1].ravel()
    unit = np.arange(len(code)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    pairs = np.unique(np.stack([code, unit]), axis=1)
    alone = np.bincount(pairs[0], minlength=int(code.max()) + 1) < 2
    stays = np.unique(unit[alone[code]])
    return int(min(wanted, len(np.setdiff1d(unit, stays))))
