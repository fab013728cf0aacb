from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import HeadError
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers, hold_out
from pipeline.evaluation.tasks import TASKS

CLASSES = st.lists(st.integers(0, 5), min_size=4, max_size=60).map(np.asarray)


@settings(max_examples=80, deadline=None)
@given(y=CLASSES, wanted=st.integers(2, 6), seed=st.integers(0, 99), grouped=st.booleans())
def test_every_class_trains_in_every_fold(y: np.ndarray, wanted: int, seed: int, grouped: bool) -> None:
    groups = np.random.default_rng(seed).integers(0, max(len(y) // 2, 2), len(y)) if grouped else None
    n_folds = fold_count(y, wanted, groups)
    if n_folds < 2:
        return
    fold = fold_numbers(y, n_folds, seed=seed, groups=groups)
    assert set(np.unique(fold)) <= {ALWAYS_TRAINS, *range(n_folds)}
    for number in range(n_folds):
        assert set(y[fold != number]) == set(y)
    if groups is not None:
        assert all(len(set(fold[groups == group])) == 1 for group in set(groups.tolist()))
        return
    alone = [label for label, count in Counter(y.tolist()).items() if count == 1]
    assert set(y[fold == ALWAYS_TRAINS].tolist()) == set(alone)
    sizes = np.bincount(fold[fold >= 0], minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1
    for label in set(y.tolist()) - set(alone):
        of_class = np.bincount(fold[y == label], minlength=n_folds)
        assert of_class.max() - of_class.min() <= 1


@settings(max_examples=50, deadline=None)
@given(y=CLASSES, seed=st.integers(0, 99))
def test_a_class_of_one_group_stays_in_training(y: np.ndarray, seed: int) -> None:
    y = np.tile(y, 3)
    groups = np.append(np.arange(len(y)), 0)
    y = np.append(y, 9)  # one mistyped label in the group of the first row
    split = hold_out(y, share=0.3, seed=seed, groups=groups)
    assert set(y[split == "train"]) == set(y)
    assert split[-1] == split[0] == "train"


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 10, 11, 19, 20, 30, 50, 60])
def test_a_hold_out_of_numbers_has_its_share_of_few_rows(count: int, share: float) -> None:
    y = np.random.default_rng(count).normal(size=count)
    split = hold_out(TASKS["regression"].strata(y, share * count), share=share, seed=0, every_class=False)
    held = (split == "test").sum()
    assert 1 <= held < count
    assert abs(held - share * count) <= max(2, count / 6)  # every part of the range rounds its rows
    # The hold-out spans the range where it has rows for both halves of it.
    if held >= 4:
        assert 0 < (y[split == "test"] > np.median(y)).sum() < held


def test_rows_with_a_label_of_their_own_are_held_out_too() -> None:
    own = np.hstack([np.eye(40, dtype=bool), np.arange(40)[:, None] % 2 == 0])  # such as the name of each image
    split = hold_out(TASKS["multilabel"].strata(own), share=0.2, seed=0, every_class=False)
    assert (split == "test").sum() == 8
    few = np.where(np.arange(50) < 3, np.arange(50) + 1, 0)  # a long tail of three rows changes nothing
    split = hold_out(few, share=0.2, seed=0, every_class=False)
    assert set(np.flatnonzero(split == "test")) <= set(range(3, 50))


def test_a_single_row_has_no_hold_out() -> None:
    with pytest.raises(HeadError, match="at least 2 rows, found 1"):
        hold_out(np.zeros(1, dtype=int), share=0.2, seed=0, every_class=False)
