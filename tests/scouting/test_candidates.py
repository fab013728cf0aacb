"""How good candidates are on the rows that their folds hold out, and against the best."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from pipeline.evaluation.splits import fold_numbers
from pipeline.scouting.candidates import HeldOutScores, score_by_folds, stand
from tests.heads.standin import blobs


def test_accuracy_is_that_of_scikit_learn_on_the_same_folds() -> None:
    X, y = blobs(150)
    score = score_by_folds(X, y, None, folds=3, seed=0, device="cpu")
    fold = fold_numbers(y, 3, seed=0)
    model = LogisticRegression(C=score.C, max_iter=2000, tol=1e-8)
    expected = cross_val_predict(model, X, y, cv=PredefinedSplit(fold))
    assert score.hits.mean() == pytest.approx((expected == y).mean(), abs=0.015)
    assert 0 < score.log_loss < np.log(3)


def test_the_only_row_of_a_class_has_no_score() -> None:
    X, y = blobs(60)
    y[-1] = 3
    score = score_by_folds(X, y, None, folds=3, seed=0, device="cpu")
    assert np.isnan(score.hits).tolist() == [False] * 59 + [True]


def scores(right: np.ndarray, loss: float = 1.0) -> HeldOutScores:
    return HeldOutScores(right.astype(np.float64), loss, 1.0)


def test_a_candidate_is_held_against_the_best_on_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    best = rng.random(1000) < 0.9
    near = best.copy()
    near[np.flatnonzero(best)[:2]] = False
    near[np.flatnonzero(~best)[:1]] = True
    worse = best & (rng.random(1000) < 0.9)
    found = stand([scores(worse), scores(best), scores(near)], None, seed=0, replicates=300)
    assert [each.is_best for each in found] == [False, True, False]
    assert [each.is_as_good for each in found] == [False, True, True]
    for each, right in zip(found, (worse, best, near), strict=True):
        assert each.accuracy.value == pytest.approx(right.mean())
        assert each.difference.value == pytest.approx(right.mean() - best.mean())
    # In pairs the difference is known far better than either accuracy.
    assert found[2].difference.high - found[2].difference.low < 0.01
    assert found[2].accuracy.high - found[2].accuracy.low > 0.03


def test_of_equal_accuracies_the_least_log_loss_is_the_best() -> None:
    right = np.arange(100) % 4 > 0
    found = stand([scores(right, 0.7), scores(right, 0.6)], None, seed=0, replicates=200)
    assert [each.is_best for each in found] == [False, True]
    assert found[0].difference.low < 0 < found[0].difference.high  # even equal rows do not prove that there is none


def test_few_groups_cannot_tell_what_their_rows_could() -> None:
    best = np.ones(200, np.bool_)
    other = np.repeat(np.arange(10) >= 1, 20)  # one group of ten is wrong
    alone = stand([scores(best), scores(other)], None, seed=0, replicates=300)
    grouped = stand([scores(best), scores(other)], np.repeat(np.arange(10), 20), seed=0, replicates=300)
    assert not alone[1].is_as_good
    assert grouped[1].is_as_good
