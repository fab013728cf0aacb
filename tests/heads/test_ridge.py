from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

from pipeline.evaluation.splits import fold_numbers
from pipeline.heads import CentroidHead, RidgeHead, RidgeRegressionHead, choosing
from tests.heads.standin import blobs, imbalanced, many_classes


def test_ridge_is_scikit_learns_at_the_chosen_strength() -> None:
    X, y = blobs()
    ours = RidgeHead().fit(X, y)
    theirs = RidgeClassifier(alpha=ours.alpha_).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)


def test_ridges_leave_one_out_error_is_that_of_leaving_one_out() -> None:
    X, y = blobs(60)
    ours = RidgeHead(alphas=(0.1, 10.0)).fit(X, y)
    target = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    for alpha, error in zip((0.1, 10.0), ours.loo_error_, strict=True):
        left_out = cross_val_predict(Ridge(alpha=alpha), X.astype(np.float64), target, cv=LeaveOneOut())
        assert error == pytest.approx(((left_out - target) ** 2).mean(), rel=1e-6)


def test_class_weights_are_scikit_learns() -> None:
    X, y = blobs(300)
    kept = (y > 0) | (np.arange(len(y)) % 10 == 0)
    X, y = X[kept], y[kept]
    ours = RidgeHead(class_weight="balanced").fit(X, y)
    theirs = RidgeClassifier(alpha=ours.alpha_, class_weight="balanced").fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)
    # A weight of two is a row given twice; leaving it out is leaving both out.
    twice = RidgeHead(alphas=(1.0,), class_weight={0: 2, 1: 1, 2: 1}).fit(X, y)
    copied = RidgeHead(alphas=(1.0,)).fit(np.concatenate([X, X[y == 0]]), np.concatenate([y, y[y == 0]]))
    np.testing.assert_allclose(twice.coef_, copied.coef_, atol=1e-6)


@pytest.mark.parametrize("targets", [1, 3])
def test_numbers_are_fitted_as_scikit_learn_does(targets: int) -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(60, 12)) + 5).astype(np.float32)
    y = X @ rng.normal(size=(12, targets)) + rng.normal(size=(60, targets)) + 100
    y = y[:, 0] if targets == 1 else y
    alphas = (0.1, 10.0, 1000.0)
    ours = RidgeRegressionHead(alphas=alphas).fit(X, y)
    theirs = Ridge(alpha=ours.alpha_).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6)
    assert ours.predict(X).shape == y.shape
    for alpha, error in zip(alphas, ours.loo_error_, strict=True):
        left_out = cross_val_predict(Ridge(alpha=alpha), X.astype(np.float64), y, cv=LeaveOneOut())
        assert error == pytest.approx(((left_out - y) ** 2).mean(), rel=1e-5)
    assert ours.alpha_ == alphas[int(ours.loo_error_.argmin())]


def test_groups_are_left_out_together() -> None:
    """With copies in the data, leaving one row out shows nothing: its twin is still there."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 60)).astype(np.float32), 3, axis=0)
    y = np.repeat(rng.normal(size=40), 3)
    groups = np.repeat(np.arange(40), 3)
    blind, grouped = RidgeRegressionHead().fit(X, y), RidgeRegressionHead().fit(X, y, groups=groups)
    assert blind.alpha_ < 0.1
    assert grouped.alpha_ > 100
    fold = fold_numbers(y, 5, seed=0, groups=groups, stratify=False)
    for number, alpha in enumerate(grouped.alphas):
        squared = 0.0
        for k in range(5):
            theirs = Ridge(alpha=alpha).fit(X[fold != k].astype(np.float64), y[fold != k])
            squared += ((theirs.predict(X[fold == k].astype(np.float64)) - y[fold == k]) ** 2).sum()
        assert grouped.loo_error_[number] == pytest.approx(squared / len(y), rel=1e-3)


@pytest.mark.parametrize("width", [8, 200])
@pytest.mark.parametrize("counts", [(30, 30), (40, 20, 5), (12, 3, 1)])
def test_scores_of_rows_left_out_are_those_of_leaving_one_out(counts: tuple[int, ...], width: int) -> None:
    X, y = imbalanced(counts, width=width)
    ours = RidgeHead().fit(X, y)
    target = np.where(y == 1, 1.0, -1.0)[:, None] if len(counts) == 2 else np.where(y[:, None] == np.unique(y), 1.0, -1)
    theirs = cross_val_predict(Ridge(alpha=ours.alpha_), X.astype(np.float64), target, cv=LeaveOneOut())
    theirs = theirs.reshape(len(y), -1)
    kept = np.isin(y, np.flatnonzero(np.array(counts) > 1))
    mine = ours.oof_scores_[:, 1:] if len(counts) == 2 else ours.oof_scores_
    np.testing.assert_allclose(mine[kept], theirs[kept], atol=1e-5)
    assert np.isnan(ours.oof_scores_[~kept]).all()
    entry = next(each for each in ours.sweep_ if each["alpha"] == ours.alpha_)
    assert entry["accuracy"] == pytest.approx((ours.oof_scores_[kept].argmax(axis=1) == y[kept]).mean())


def test_the_choice_looks_at_accuracy() -> None:
    """Squared error takes so strong a penalty on imbalanced classes that the small ones are never predicted."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    counts = np.linspace(5, 80, 10).astype(int)
    some = np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k, n in enumerate(counts)])
    rest = np.setdiff1d(np.arange(len(y)), some)
    scale = StandardScaler().fit(X[some])
    train, test = (scale.transform(X[rows]).astype(np.float32) for rows in (some, rest))
    theirs = RidgeClassifierCV(np.logspace(-3, 7, 11), cv=5).fit(train, y[some])
    assert RidgeHead().fit(train, y[some]).score(test, y[rest]) >= theirs.score(test, y[rest]) - 0.02


def test_groups_of_classes_are_left_out_together() -> None:
    X, y = imbalanced((40, 20, 10))
    X, y, groups = np.repeat(X, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(70), 3)
    ours = RidgeHead().fit(X, y, groups=groups)
    fold = fold_numbers(y, 5, seed=0, groups=groups)
    target = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    for k in range(5):
        theirs = Ridge(alpha=ours.alpha_).fit(X[fold != k].astype(np.float64), target[fold != k])
        np.testing.assert_allclose(ours.oof_scores_[fold == k], theirs.predict(X[fold == k]), atol=1e-4)


@pytest.mark.parametrize("head", [RidgeHead(), CentroidHead()], ids=lambda head: type(head).__name__)
def test_two_classes_have_scikit_learns_shapes(head: Any) -> None:
    X, y = imbalanced((30, 40))
    fitted = head.fit(X, y)
    assert (fitted.coef_.shape, fitted.intercept_.shape) == ((1, 8), (1,))
    scores = fitted.decision_function(X)
    np.testing.assert_array_equal(fitted.predict(X), (scores > 0).astype(int))
    np.testing.assert_allclose(scores, X.astype(np.float64) @ fitted.coef_[0] + fitted.intercept_[0])
    # Heads of earlier versions keep a row for each class.
    fitted.coef_ = np.concatenate([-fitted.coef_ / 2, fitted.coef_ / 2])
    fitted.intercept_ = np.concatenate([-fitted.intercept_ / 2, fitted.intercept_ / 2])
    np.testing.assert_allclose(fitted.decision_function(X), scores, rtol=1e-9)


def test_a_fixed_strength_is_fitted_to_other_rows() -> None:
    X, y = imbalanced((40, 20, 5))
    ours = RidgeHead(class_weight="balanced").fit(X, y)
    again = ours.at_chosen().fit(X, y)
    np.testing.assert_array_equal(again.coef_, ours.coef_)
    assert again.chosen_ == ours.chosen_ == {"alpha": ours.alpha_}
    assert ours.at_chosen().fit(X[[0, 40]], y[[0, 40]]).coef_.shape == (1, 8)


@pytest.mark.parametrize("alphas", [(), (0.0, 1.0), (float("nan"),), ("much",), 1.0])
def test_impossible_strengths_are_refused(alphas: Any) -> None:
    X, y = imbalanced((5, 5))
    with pytest.raises(ValueError, match=r"^alphas must be|could not convert"):
        RidgeHead(alphas=alphas).fit(X, y)


def test_rows_of_classes_of_one_leave_nothing_to_choose_by() -> None:
    X, y = imbalanced((1, 1, 1))
    with pytest.raises(ValueError, match="needs a class of at least 2 rows"):
        RidgeHead().fit(X, y)


def test_a_sample_of_the_rows_chooses_where_scores_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = imbalanced((300, 200, 100))
    whole = RidgeHead().fit(X, y)
    monkeypatch.setattr(choosing, "_MOST_SCORES", 1)
    sampled = RidgeHead().fit(X, y)
    assert 0.1 <= sampled.alpha_ / whole.alpha_ <= 10
    again = RidgeHead(alphas=(sampled.alpha_,)).fit(X, y)
    np.testing.assert_allclose(sampled.oof_scores_, again.oof_scores_, atol=1e-5)
    assert np.isfinite(sampled.oof_scores_).all()


@pytest.mark.slow
@pytest.mark.parametrize("head", [RidgeHead(), CentroidHead()], ids=lambda head: type(head).__name__)
def test_two_thousand_classes_take_seconds(head: Any) -> None:
    X, y = many_classes()
    begin = time.process_time()
    head.fit(X, y)
    assert time.process_time() - begin < 60
    assert head.score(X, y) > 0.9
