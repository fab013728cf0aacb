from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from pipeline.evaluation.splits import fold_numbers
from pipeline.heads import RidgeHead, RidgeRegressionHead
from tests.heads.standin import blobs


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
