"""Pooling of rows to one prediction per group."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from pipeline.evaluation.pooling import Pooling, group_maxima, group_means, numbered
from pipeline.evaluation.splits import groups_of_column
from pipeline.evaluation.tasks import TASKS

RNG = np.random.default_rng(3)
GROUP = np.array([2, 0, 1, 0, 2, 2, 1])


def by_hand(values: np.ndarray, how: str) -> np.ndarray:
    pool = np.mean if how == "mean" else np.max
    return np.stack([pool(values[g == GROUP], axis=0) for g in range(3)])


@pytest.mark.parametrize("how", ["mean", "max"])
def test_classes_are_pooled_by_their_log_probabilities(how: str) -> None:
    scores = RNG.normal(size=(7, 4))
    found = Pooling("p", how, 1.7).predictions(TASKS["classification"], softmax(scores, axis=1), GROUP, 3)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, softmax(by_hand(log_softmax(scores, axis=1), how) / 1.7, axis=1))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_labels_are_pooled_by_their_log_odds(how: str) -> None:
    chances = RNG.uniform(0.05, 0.95, size=(7, 2))
    found = Pooling("p", how, 0.6).predictions(TASKS["multilabel"], chances, GROUP, 3)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expit(by_hand(logit(chances), how) / 0.6))


def test_numbers_are_averaged() -> None:
    numbers = RNG.normal(size=(7, 1))
    found = Pooling("p", "mean", 5.0).predictions(TASKS["regression"], numbers, GROUP, 3)
    np.testing.assert_allclose(found, by_hand(numbers, "mean"))


def test_one_row_does_not_exclude_a_class() -> None:
    rows = np.array([[0.0, 1.0], [0.999999999, 0.000000001], [0.999999999, 0.000000001]])
    found = Pooling("p").predictions(TASKS["classification"], rows, np.zeros(3, np.int64), 1)
    assert found[0, 0] > 0.9


def test_means_and_maxima_of_groups() -> None:
    values = RNG.normal(size=(7, 3))
    np.testing.assert_allclose(group_means(values, GROUP, 3), by_hand(values, "mean"))
    np.testing.assert_allclose(group_maxima(values, GROUP, 3), by_hand(values, "max"))


def test_groups_are_numbered_as_they_come() -> None:
    names, code, first = numbered(groups_of_column(["x", "", "a", "x", ""]))
    assert (code.tolist(), first.tolist()) == ([0, 1, 2, 0, 3], [0, 1, 2, 4])
    assert names[[0, 2]].tolist() == ["x", "a"]


def test_a_row_without_a_group_shares_none_that_is_named_by_a_number() -> None:
    groups = groups_of_column(["1", "", "1", "3", ""])
    assert len(set(groups.tolist())) == 4


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_costs_are_those_of_the_cells(task: str) -> None:
    """Runs are compared by their tables, groups by their predictions: both count the same costs."""
    names = ("a", "b", "c") if task != "regression" else ("n",)
    predictions = RNG.uniform(0.01, 0.99, size=(20, len(names)))
    y = {
        "classification": RNG.integers(0, 3, 20),
        "multilabel": RNG.random((20, 3)) < 0.5,
        "regression": RNG.normal(size=20),
    }[task]
    labels = [TASKS[task].label(value, names) for value in y]
    predicted = [TASKS[task].cells(row, names)[0] for row in predictions]
    hits = [float(label == said) for label, said in zip(labels, predicted, strict=True)]
    np.testing.assert_allclose(TASKS[task].costs(y, predictions), TASKS[task].cost(labels, predicted, hits), rtol=1e-6)
