from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.evaluation.confusions import confusion_groups, confusion_order, merged, worst_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def in_families(families: int, size: int, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a confusion matrix of classes that are taken for others of their family, and the family of each."""
    rng = np.random.default_rng(seed)
    family = rng.permutation(np.repeat(np.arange(families), size))
    confusion = np.where(family[:, None] == family, rng.integers(1, 6, (len(family),) * 2), 0)
    np.fill_diagonal(confusion, 40)
    return confusion, family


def test_classes_that_are_confused_stand_together() -> None:
    confusion, family = in_families(8, 5)
    order = confusion_order(confusion)
    assert sorted(order) == list(range(40))
    assert np.count_nonzero(np.diff(family[order])) == 7  # one change between neighbours a family


def test_two_hundred_classes_make_groups_of_those_that_are_confused() -> None:
    confusion, family = in_families(20, 10)
    groups = confusion_groups(confusion, 20)
    assert sorted(np.concatenate(groups)) == list(range(200))
    assert len(groups) == 20
    assert all(len(set(family[members])) == 1 for members in groups)
    counts = merged(confusion, groups)
    assert counts.sum() == confusion.sum()
    assert counts.trace() == counts.sum()  # no family is taken for another


@pytest.mark.parametrize("k", [31, 64, 200, 333])
def test_groups_are_few_and_small_also_without_errors(k: int) -> None:
    groups = confusion_groups(np.diag(np.arange(k)), 15)
    assert sorted(np.concatenate(groups)) == list(range(k))
    assert max(map(len, groups)) <= -(-k // 15)
    assert len(groups) <= 30


def test_groups_are_those_of_labels_down_and_predictions_across() -> None:
    confusion = np.array([[5, 0, 2], [0, 7, 0], [0, 1, 9]])
    assert merged(confusion, [np.array([0, 1]), np.array([2])]).tolist() == [[12, 2], [1, 9]]


def test_few_classes_keep_their_order_and_one_has_no_pairs() -> None:
    assert confusion_order(np.array([[3, 1], [1, 3]])).tolist() == [0, 1]
    assert [group.tolist() for group in confusion_groups(np.array([[3]]), 15)] == [[0]]
    assert worst_pairs(np.array([[3]]), 5) == []


def test_the_worst_pairs_come_with_the_way_back() -> None:
    confusion = np.array([[5, 2, 0], [3, 4, 1], [0, 0, 9]])
    pairs = worst_pairs(confusion, 2)
    assert [tuple(pair) for pair in pairs] == [(1, 0, 3, 2), (0, 1, 2, 3)]
