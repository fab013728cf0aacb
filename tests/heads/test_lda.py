from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.class_weight import compute_class_weight

from pipeline.evaluation.splits import fold_numbers
from pipeline.heads import LdaHead, choosing
from tests.heads.standin import blobs, imbalanced, many_classes


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    width=st.integers(1, 60),
    shrinkage=st.sampled_from([1e-3, 0.1, 0.5, 1.0]),
    shift=st.floats(-20, 20),
    seed=st.integers(0, 100),
)
def test_one_shrinkage_is_scikit_learns(
    counts: list[int], width: int, shrinkage: float, shift: float, seed: int
) -> None:
    X, y = imbalanced(tuple(counts), width=width, seed=seed)
    X = (X + shift).astype(np.float32)
    ours = LdaHead(shrinkage=shrinkage).fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X.astype(np.float64), y)
    expected = theirs.decision_function(X.astype(np.float64))
    # Scores may differ by what all classes share.
    if expected.ndim == 2:
        expected = expected - expected.mean(axis=1, keepdims=True)
    found = ours.decision_function(X)
    found = found - found.mean(axis=1, keepdims=True) if found.ndim == 2 else found
    np.testing.assert_allclose(found, expected, atol=1e-4 * (1 + np.abs(expected).max()))
    assert ours.coef_.shape == theirs.coef_.shape


@pytest.mark.filterwarnings("ignore:Only one sample available")
@pytest.mark.parametrize("width", [8, 120])
@pytest.mark.parametrize("counts", [(30, 30), (40, 20, 5), (12, 3, 1)])
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_of_held_out_rows_are_those_of_scikit_learns_fits(
    counts: tuple[int, ...], width: int, grouped: bool
) -> None:
    X, y = imbalanced(counts, width=width)
    groups = np.arange(len(y)) // 2 if grouped else None
    ours = LdaHead().fit(X, y, groups=groups)
    fold = fold_numbers(y, 5, seed=0, groups=groups)
    assert np.isnan(ours.oof_scores_[fold < 0]).all()
    for k in range(5):
        its = fold == k
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ours.shrinkage_)
        theirs.fit(X[~its].astype(np.float64), y[~its])
        expected = theirs.predict_proba(X[its].astype(np.float64))
        found = ours.oof_scores_[its] - ours.oof_scores_[its].max(axis=1, keepdims=True)
        found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    entry = next(each for each in ours.sweep_ if each["shrinkage"] == ours.shrinkage_)
    right = ours.oof_scores_[fold >= 0].argmax(axis=1) == y[fold >= 0]
    assert entry["accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize("weight", ["balanced", {0: 1.0, 1: 5.0, 2: 1.0}])
def test_class_weights_are_priors(weight: Any) -> None:
    X, y = imbalanced((60, 20, 5))
    ours = LdaHead(shrinkage=0.1, class_weight=weight).fit(X, y)
    plain = LdaHead(shrinkage=0.1).fit(X, y)
    np.testing.assert_array_equal(ours.coef_, plain.coef_)
    factors = np.log(compute_class_weight(weight, classes=np.arange(3), y=y))
    moved = ours.intercept_ - plain.intercept_
    np.testing.assert_allclose(moved - moved[0], factors - factors[0], atol=1e-9)


def test_the_shrinkage_follows_the_number_of_rows() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(40, 40)) * np.logspace(0, -1.5, 40)

    def chosen(rows: int) -> float:
        X, y = blobs(rows, 40, 3, spread=1.0)
        return float(LdaHead().fit((X @ mix).astype(np.float32), y).shrinkage_)

    assert chosen(3000) < 0.1
    assert chosen(3000) <= chosen(30)


def test_a_fixed_shrinkage_is_fitted_to_other_rows() -> None:
    X, y = imbalanced((40, 20, 5))
    ours = LdaHead(class_weight="balanced").fit(X, y)
    again = ours.at_chosen().fit(X, y)
    np.testing.assert_allclose(again.coef_, ours.coef_, rtol=1e-9)
    assert again.chosen_ == ours.chosen_ == {"shrinkage": ours.shrinkage_}
    one_each = ours.at_chosen().fit(X[[0, 40, 60]], y[[0, 40, 60]])
    assert one_each.score(X[[0, 40, 60]], y[[0, 40, 60]]) == 1.0


def test_no_shrinkage_leaves_out_directions_without_spread() -> None:
    X, y = imbalanced((20, 20, 20))
    wide = np.concatenate([X, np.ones((60, 2), np.float32), X[:, :2]], axis=1)
    ours = LdaHead(shrinkage=0).fit(wide, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.predict_proba(wide), theirs.predict_proba(X.astype(np.float64)), atol=1e-4)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, float("nan"), "much"])
def test_impossible_shrinkages_are_refused(shrinkage: Any) -> None:
    X, y = imbalanced((5, 5))
    with pytest.raises(ValueError, match=r"^shrinkage must be 'auto' or a number from 0 to 1, got"):
        LdaHead(shrinkage=shrinkage).fit(X, y)


def test_rows_of_classes_of_one_leave_nothing_to_choose_by() -> None:
    X, y = imbalanced((1, 1, 1))
    with pytest.raises(ValueError, match="needs a class of at least 2 rows"):
        LdaHead().fit(X, y)
    assert np.isnan(LdaHead(shrinkage=0.5).fit(X, y).oof_scores_).all()


def test_a_sample_of_the_rows_chooses_where_scores_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = imbalanced((300, 200, 100))
    monkeypatch.setattr(choosing, "_MOST_SCORES", 1)
    sampled = LdaHead().fit(X, y)
    again = LdaHead(shrinkage=sampled.shrinkage_).fit(X, y)
    np.testing.assert_allclose(sampled.oof_scores_, again.oof_scores_, atol=1e-4)


@pytest.mark.slow
def test_two_thousand_classes_take_seconds() -> None:
    X, y = many_classes()
    begin = time.process_time()
    head = LdaHead().fit(X, y)
    assert time.process_time() - begin < 60
    assert head.score(X, y) > 0.9
