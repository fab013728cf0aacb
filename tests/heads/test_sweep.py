"""The sweep over C against scikit-learn on the same folds, for every C."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count
from pipeline.heads import LogisticSweep
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import MULTILABEL_HEADS

CS = (0.003, 0.1, 3.0)


def drawn(seed: int, n_classes: int, balanced: bool) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    counts = np.full(n_classes, 5) if balanced else rng.integers(2, 12, n_classes)
    y = rng.permutation(np.repeat(np.arange(n_classes), counts))
    X = rng.normal(size=(n_classes, 6))[y] * 1.5 + rng.normal(size=(len(y), 6))
    return X.astype(np.float32), y


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")  # scikit-learn's log_loss, of `labels`
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 10_000),
    n_classes=st.sampled_from([2, 3, 5, 10, 50]),
    balanced=st.booleans(),
    weighted=st.booleans(),
    grouped=st.booleans(),
)
def test_accuracy_and_log_loss_are_scikit_learns(
    seed: int, n_classes: int, balanced: bool, weighted: bool, grouped: bool
) -> None:
    X, y = drawn(seed, n_classes, balanced)
    groups = np.random.default_rng(seed).integers(0, len(y) // 2, len(y)) if grouped else None
    assume(fold_count(y, 3, groups) >= 2)
    sweep = LogisticSweep(Cs=CS, cv=3, tol=1e-9, class_weight="balanced" if weighted else None, max_passes=2000)
    sweep.fit(X, y, groups)
    weight = len(y) / (n_classes * np.bincount(y)[y]) if weighted else np.ones(len(y))
    folds = [fold for fold in range(sweep.n_folds_) if (sweep.fold_ == fold).any()]
    for entry in sweep.sweep_:
        right = loss = 0.0
        for fold in folds:
            out = sweep.fold_ == fold
            theirs = LogisticRegression(C=entry["C"], tol=1e-10, max_iter=20_000)
            theirs.fit(X[~out].astype(np.float64), y[~out], sample_weight=weight[~out])
            share = theirs.predict_proba(X[out].astype(np.float64))
            right += float((share.argmax(axis=1) == y[out]).sum())
            loss += log_loss(y[out], share, labels=np.arange(n_classes)) * out.sum()
        rows = (sweep.fold_ != ALWAYS_TRAINS).sum()
        assert entry["converged"]
        # One row may lie so near a border that rounding decides.
        assert entry["accuracy"] == pytest.approx(right / rows, abs=1.5 / rows)
        assert entry["log_loss"] == pytest.approx(loss / rows, rel=5e-3)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_scores_that_tie_are_right_by_chance(n_classes: int) -> None:
    y = np.tile(np.arange(n_classes), 10)
    sweep = LogisticSweep().fit(np.zeros((len(y), 4), dtype=np.float32), y)
    for entry in sweep.sweep_:
        assert entry["accuracy"] == pytest.approx(1 / n_classes)
        assert entry["log_loss"] == pytest.approx(np.log(n_classes))


def test_label_sets_are_scored_label_by_label() -> None:
    X, y = drawn(3, 4, balanced=False)
    sets = np.stack([y == 0, y != 2, X[:, 0] > 0], axis=1)
    fitted = MULTILABEL_HEADS["logistic"](X, sets, None, FitOptions(Cs=CS, folds=3))
    for label, sweep in enumerate(fitted.estimator.estimators_):
        alone = LogisticSweep(Cs=CS, cv=3).fit(X, sets[:, label].astype(int))
        assert [e["accuracy"] for e in sweep.sweep_] == [e["accuracy"] for e in alone.sweep_]


def test_few_separable_rows_take_a_moderate_c_that_converged() -> None:
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(3), 20)
    X = (rng.normal(size=(3, 8))[y] * 6 + rng.normal(size=(60, 8))).astype(np.float32)
    sweep = LogisticSweep().fit(X, y)
    assert sweep.converged_
    assert 1e-3 < sweep.C_ < 100
    assert all(entry["converged"] for entry in sweep.sweep_)


def test_classes_of_one_row_train_and_are_held_out_by_no_fold() -> None:
    X, y = drawn(1, 3, balanced=True)
    X, y = np.concatenate([X, X[:1] + 9]), np.append(y, 3)
    sweep = LogisticSweep().fit(X, y)
    assert sweep.classes_.tolist() == [0, 1, 2, 3]
    assert sweep.fold_[-1] == ALWAYS_TRAINS
    assert np.isnan(sweep.oof_scores_[-1]).all()
    assert np.isfinite(sweep.oof_scores_[:-1]).all()
    with pytest.raises(ValueError, match="class of at least 2 rows"):
        LogisticSweep().fit(X[:4], np.arange(4))


@pytest.mark.parametrize(
    "wrong", [{"cv": 1}, {"tol": 0}, {"max_passes": 0}, {"Cs": ()}, {"Cs": (-1.0,)}, {"Cs": "all"}, {"scoring": "f1"}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    X, y = drawn(1, 3, balanced=True)
    with pytest.raises(ValueError, match=r"expected .* for "):
        LogisticSweep(**wrong).fit(X, y)


def test_very_many_classes_choose_c_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.heads.logistic.MOST_CLASS_DIRECTIONS", 20)
    monkeypatch.setattr("pipeline.heads.logistic._LEAST_CLASSES", 10)
    monkeypatch.setattr("pipeline.heads.logistic._CHOICE_WORK", 1000)
    X, y = drawn(2, 40, balanced=True)
    sweep = LogisticSweep().fit(X, y)
    assert sweep.chosen_on_ == 10
    assert sweep.coef_.shape == (40, 6)
    assert np.isfinite(sweep.oof_scores_).all(axis=1).sum() == (sweep.fold_ == 0).sum()
    assert sweep.score(X, y) > 0.3


@pytest.mark.filterwarnings("error")
def test_a_fold_that_large_groups_leave_empty_is_not_measured() -> None:
    X, y = drawn(0, 3, balanced=True)
    groups = np.zeros(len(y), dtype=int)
    groups[np.flatnonzero(y == 1)[:2]] = 1, 2  # all else is one group, and trains always
    sweep = LogisticSweep(cv=3).fit(X, y, groups)
    assert min(np.bincount(sweep.fold_[sweep.fold_ >= 0], minlength=sweep.n_folds_)) == 0
    assert np.isfinite([entry["accuracy_folds"] for entry in sweep.sweep_]).all()
    assert np.isfinite([entry["log_loss_folds"] for entry in sweep.sweep_]).all()
