from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from pipeline.errors import HeadError
from pipeline.evaluation.splits import fold_numbers
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import find_head
from pipeline.heads.tuned import Tuned, _sample
from tests.heads.standin import blobs, imbalanced

CS = ({"C": 0.001}, {"C": 0.1}, {"C": 10.0})


def svm(**options: Any) -> Tuned:
    return Tuned(LinearSVC(dual=False), CS, margins=True, **options)


@pytest.mark.parametrize("counts", [(30, 30), (40, 20, 5), (12, 3, 1)])
def test_scores_are_those_of_fits_that_did_not_see_the_rows(counts: tuple[int, ...]) -> None:
    X, y = imbalanced(counts)
    ours = svm().fit(X, y)
    fold = fold_numbers(y, 5, seed=0)
    assert np.isnan(ours.oof_scores_[fold < 0]).all()
    for k in range(5):
        its = fold == k
        theirs = LinearSVC(dual=False, C=ours.chosen_["C"]).fit(X[~its], y[~its]).decision_function(X[its])
        mine = ours.oof_scores_[its][:, 1] if len(counts) == 2 else ours.oof_scores_[its]
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert [entry["C"] for entry in ours.sweep_] == [0.001, 0.1, 10.0]
    np.testing.assert_array_equal(ours.at_chosen().fit(X, y).coef_, ours.best_estimator_.coef_)


def test_whole_groups_are_held_out() -> None:
    X, y = imbalanced((40, 20, 10))
    X, y, groups = np.repeat(X, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(70), 3)
    ours = svm().fit(X, y, groups)
    its = fold_numbers(y, 5, seed=0, groups=groups) == 0
    theirs = LinearSVC(dual=False, C=ours.chosen_["C"]).fit(X[~its], y[~its])
    np.testing.assert_allclose(ours.oof_scores_[its], theirs.decision_function(X[its]), atol=1e-5)


def test_a_value_that_does_not_converge_is_not_taken() -> None:
    X, y = imbalanced((60, 60), spread=0.3)
    candidates = [{"max_iter": 1000, "C": 1e-6}, {"max_iter": 1, "C": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        ours = Tuned(LogisticRegression(), candidates).fit(X, y)
    assert ours.chosen_ == candidates[0]
    assert [entry["converged"] for entry in ours.sweep_] == [True, False]


def test_the_last_fit_says_what_to_type() -> None:
    X, y = imbalanced((60, 60))
    with pytest.warns(ConvergenceWarning, match=r"within 1 iterations: try --set max_iter=4"):
        Tuned(LogisticRegression(max_iter=1), CS).fit(X, y)


@pytest.mark.parametrize("per_group", [1, 4])
def test_many_rows_choose_by_a_sample_and_calibrate_by_a_tenth(per_group: int) -> None:
    X, y = imbalanced((600, 300, 96, 4))
    groups = np.arange(len(y)) // per_group
    some = _sample(y, groups, 200, 0)
    assert 190 <= len(some) <= 210 + 4 * per_group
    assert np.bincount(y[some], minlength=4).min() >= 1 + (per_group == 1)
    assert not np.isin(groups[np.setdiff1d(np.arange(len(y)), some)], groups[some]).any()
    ours = svm(most_rows=200).fit(X, y, groups)
    scored = np.isfinite(ours.oof_scores_).all(axis=1)
    assert 0.05 < scored.mean() < 0.15
    theirs = LinearSVC(dual=False, C=ours.chosen_["C"]).fit(X[~scored], y[~scored])
    np.testing.assert_allclose(ours.oof_scores_[scored], theirs.decision_function(X[scored]), atol=1e-5)


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_the_svm_keeps_the_plain_estimator(scaling: Any) -> None:
    X, y = blobs()
    fitted = find_head("svm")(X, y, None, FitOptions(scaling=scaling))
    assert isinstance(fitted.estimator, LinearSVC if scaling == "none" else Pipeline)
    assert fitted.model.kind == "linear"
    np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), fitted.estimator.predict(X))
    assert fitted.oof_scores is not None


def test_settings_of_the_user_are_kept() -> None:
    X, y = blobs()
    svm = find_head("svm")(X, y, None, FitOptions(params={"C": 3.0})).estimator
    assert svm.C == 3.0
    mlp = find_head("mlp")(X, y, None, FitOptions(params={"hidden_layer_sizes": (8,), "alpha": 0.5})).estimator
    assert isinstance(mlp[1], MLPClassifier)
    assert (mlp[1].hidden_layer_sizes, mlp[1].alpha) == ((8,), 0.5)


@pytest.mark.parametrize(
    ("head", "params"), [("svm", {"C": -1.0}), ("mlp", {"alpha": "much"}), ("mlp", {"hidden_layer_sizes": (0,)})]
)
def test_impossible_settings_are_refused_in_one_line(head: str, params: dict[str, Any]) -> None:
    X, y = blobs()
    with pytest.raises(HeadError, match=r"change it with --set") as refused:
        find_head(head)(X, y, None, FitOptions(params=params))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_mlp_learns_from_few_rows() -> None:
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    some = np.concatenate([rng.permutation(np.flatnonzero(y == k))[:30] for k in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), some)
    scale = StandardScaler().fit(X[some])
    fitted = find_head("mlp")(scale.transform(X[some]).astype(np.float32), y[some], None, FitOptions())
    assert fitted.estimator.score(scale.transform(X[rest]).astype(np.float32), y[rest]) > 0.945
