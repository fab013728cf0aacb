from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation import conformal


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("rows", [3, 19, 20, 100])
def test_the_threshold_covers_the_next_row_as_often_as_asked(coverage: float, rows: int) -> None:
    # Of n + 1 exchangeable scores the last one is equally often of each rank: count over all ranks.
    scores = np.arange(rows + 1, dtype=np.float64)
    covered = [last <= conformal.threshold(np.delete(scores, last), coverage) for last in range(rows + 1)]
    assert coverage <= np.mean(covered) < coverage + 1 / (rows + 1) + 1e-12
    assert (conformal.threshold(scores[1:], coverage) == math.inf) == (rows < conformal.least_rows(coverage))


def test_groups_of_one_row_change_nothing() -> None:
    scores = np.random.default_rng(0).random(57)
    for coverage in (0.5, 0.9, 0.97):
        alone = conformal.threshold(scores, coverage, np.arange(57))
        assert alone == conformal.threshold(scores, coverage)


def test_a_large_group_counts_once() -> None:
    # 19 groups of one row each below 1, and one of 500 rows above: it is one of twenty.
    scores = np.concatenate([np.linspace(0, 1, 19), np.full(500, 5.0)])
    groups = np.concatenate([np.arange(19), np.full(500, 19)])
    assert conformal.threshold(scores, 0.9, groups) <= 1.0
    assert conformal.threshold(scores, 0.9) == 5.0
    # Twenty groups cannot say what happens in more than 20 of 21 cases.
    assert conformal.threshold(scores, 0.96, groups) == math.inf


def test_coverage_on_fresh_rows_of_the_same_kind() -> None:
    rng = np.random.default_rng(1)
    reached: dict[float, list[float]] = {coverage: [] for coverage in conformal.USUAL_COVERAGES}
    for _ in range(200):
        p = rng.dirichlet(np.full(4, 0.5), 600)
        y = np.array([rng.choice(4, p=row) for row in p])
        scores = conformal.class_scores(p, y)
        for coverage, found in reached.items():
            sets = conformal.label_sets(p[300:], conformal.threshold(scores[:300], coverage))
            found.append(float(sets[np.arange(300), y[300:]].mean()))
    for coverage, found in reached.items():
        assert np.mean(found) == pytest.approx(coverage, abs=0.01)


def test_each_class_has_its_own_threshold() -> None:
    scores = np.concatenate([np.linspace(-1, -0.8, 30), np.linspace(-0.5, -0.1, 30), [-0.7]])
    y = np.repeat([0, 1, 2], [30, 30, 1])
    found = conformal.class_thresholds(scores, y, 4, 0.9)
    assert found[0] == pytest.approx(np.sort(scores[:30])[27])
    assert found[1] == pytest.approx(np.sort(scores[30:60])[27])
    assert found[2:].tolist() == [math.inf, math.inf]
    sets = conformal.label_sets(np.array([[0.85, 0.15, 0.0, 0.0], [0.1, 0.3, 0.6, 0.0]]), found)
    assert sets.tolist() == [[True, True, True, True], [False, True, True, True]]


def test_small_probabilities_are_told_apart() -> None:
    p = np.array([[1.0, 1e-20, 1e-30], [1.0, 1e-25, 1e-18]])
    scores = conformal.class_scores(p, np.array([1, 2]))
    assert conformal.label_sets(p, scores.min()).tolist() == [[True, False, False], [True, False, True]]


def test_the_likely_range_is_that_of_simulated_calibrations() -> None:
    rng = np.random.default_rng(2)
    # Scores uniform in [0, 1]: the coverage of a threshold is the threshold.
    found = [conformal.threshold(rng.random(60), 0.9) for _ in range(4000)]
    assert conformal.likely_range(0.9, 60) == pytest.approx(np.quantile(found, [0.05, 0.95]), abs=0.01)


def test_few_rows_are_said_and_many_are_not() -> None:
    assert "nothing is ruled out" in conformal.few_rows(0.95, 18)
    assert "anything from" in conformal.few_rows(0.95, 19)
    assert conformal.few_rows(0.95, 500) == ""
    assert "12 calibration groups" in conformal.few_rows(0.95, 12, "groups")


def test_an_empty_set_is_counted() -> None:
    sets = np.array([[True, False], [False, False], [True, True], [True, False]])
    found = conformal.measured_sets(sets, np.array([0, 0, 1, 1]))
    assert found["hits"].tolist() == [1, 0, 1, 0]
    assert (found["size"], found["empty"], found["single"]) == (1.0, 0.25, 0.5)
