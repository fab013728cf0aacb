from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import check_estimator

from pipeline.errors import HeadError
from pipeline.evaluation.calibration import fit_temperature, softmax
from pipeline.evaluation.choice import held_out, hits
from pipeline.evaluation.splits import fold_numbers
from pipeline.heads import LinearHead, LogisticHead
from pipeline.heads import linear as module
from pipeline.heads.fit import FitOptions
from pipeline.heads.linear import fit_linear
from pipeline.heads.streamed_rows import StreamedRows
from tests.heads.standin import blobs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def always_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat any number of rows as many."""
    monkeypatch.setattr(module, "_plan", lambda *_: None)


def mapped(path: Path, array: NDArray[Any]) -> np.memmap:
    path.write_bytes(array.tobytes())
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


@pytest.mark.usefixtures("always_streamed")
def test_it_reaches_the_exact_optimum_of_its_own_objective() -> None:
    X, y = blobs(4000, 20, 4, spread=2.0)
    head = LinearHead(learning_rates=(0.03,), weight_decays=(3e-3,), patience=40).fit(X, y)
    train = np.delete(np.arange(len(y)), head.validation_rows_)
    exact = LogisticHead(C=head.C_, tol=1e-7).fit(X[train], y[train])

    def objective(coef: NDArray[Any], intercept: NDArray[Any]) -> float:
        loss = -log_softmax(X[train] @ coef.T + intercept, axis=1)[np.arange(len(train)), y[train]].sum()
        return float(head.C_ * loss + 0.5 * (coef**2).sum())

    best = objective(exact.coef_, exact.intercept_)
    assert best <= objective(head.coef_, head.intercept_) < 1.005 * best
    assert (head.predict(X) == exact.predict(X)).mean() > 0.98


@pytest.mark.usefixtures("always_streamed")
def test_the_scale_of_the_features_does_not_matter() -> None:
    X, y = blobs(1500, 8, 3)
    mixed = X @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32) * np.float32(100) + np.float32(1000)
    plain, other = LinearHead().fit(X, y), LinearHead().fit(mixed, y)
    assert other.score(mixed, y) == pytest.approx(plain.score(X, y), abs=0.01)


@pytest.mark.usefixtures("always_streamed")
def test_rows_sorted_by_class_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(3000, 12, 3)
    order = np.argsort(y, kind="stable")
    X, y = X[order], y[order]
    monkeypatch.setattr("pipeline.heads.streamed_rows._RUN_BYTES", 12 * 4 * 8)
    monkeypatch.setattr("pipeline.heads.streamed_rows.BUFFER_BYTES", 12 * 4 * 600)
    streamed, whole = LinearHead().fit(mapped(tmp_path / "rows", X), y), LinearHead().fit(X, y)
    assert streamed.score(X, y) == pytest.approx(whole.score(X, y), abs=0.01)


@pytest.mark.usefixtures("always_streamed")
def test_a_map_gives_what_the_same_array_in_memory_gives(tmp_path: Path) -> None:
    X, y = blobs(500)
    one, two = LinearHead().fit(X, y), LinearHead().fit(mapped(tmp_path / "rows", X), y)
    np.testing.assert_allclose(one.coef_, two.coef_, rtol=0.2, atol=0.05)
    assert (one.predict(X) == two.predict(X)).mean() > 0.98


def test_the_same_seed_gives_the_same_head() -> None:
    X, y = blobs(500)
    one, two, other = (LinearHead(random_state=seed).fit(X, y) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.coef_, two.coef_)
    assert not np.array_equal(one.coef_, other.coef_)


@pytest.mark.usefixtures("always_streamed")
def test_groups_are_set_apart_whole() -> None:
    X, y = blobs(600)
    groups = np.arange(600) // 6
    rows = LinearHead().fit(X, y, groups).validation_rows_
    apart = np.unique(groups[rows])
    assert 0 < len(apart) < 100
    assert np.isin(groups, apart).sum() == len(rows)


@pytest.mark.usefixtures("always_streamed")
def test_validation_rows_are_not_trained_on() -> None:
    X, y = blobs(600)
    head = LinearHead(learning_rates=(0.1,), weight_decays=(1e-2,), patience=100).fit(X, y)
    changed = y.copy()
    changed[head.validation_rows_] = (changed[head.validation_rows_] + 1) % 3
    # Stratified over the same number of rows of every class, so the same rows are set apart again.
    again = LinearHead(learning_rates=(0.1,), weight_decays=(1e-2,), patience=100)
    again._set_apart = lambda *_: head.validation_rows_  # type: ignore[method-assign]
    again.fit(X, changed)
    one, two = (h.predict_proba(X[head.validation_rows_]).argmax(1) for h in (head, again))
    assert (one == two).mean() > 0.95


@pytest.mark.usefixtures("always_streamed")
def test_what_it_reports_is_what_it_does() -> None:
    X, y = blobs(900, spread=2.5)
    head = LinearHead().fit(X, y)
    rows = head.validation_rows_
    np.testing.assert_allclose(head.decision_function(X[rows]), head.validation_scores_, atol=1e-4)
    best = min(head.curve_, key=lambda entry: entry["log_loss"])
    assert (best["learning_rate"], best["weight_decay"]) == (head.learning_rate_, head.weight_decay_)
    assert best["accuracy"] == pytest.approx(head.score(X[rows], y[rows]))
    assert (len(head.candidates_), head.n_folds_) == (12, 0)
    assert min(c["log_loss"] for c in head.candidates_) == best["log_loss"]


@pytest.mark.usefixtures("always_streamed")
def test_it_stops_when_nothing_becomes_better() -> None:
    X, y = blobs(3000)
    noise = np.random.default_rng(0).permutation(y)
    assert len(LinearHead(max_epochs=50).fit(X, noise).curve_) < 50


@pytest.mark.usefixtures("always_streamed")
def test_rare_classes_weigh_more_when_asked() -> None:
    X, y = blobs(4000, spread=3.0)
    kept = (y > 0) | (np.arange(len(y)) % 30 == 0)
    X, y = X[kept], y[kept]
    plain, balanced = (LinearHead(class_weight=w).fit(X, y) for w in (None, "balanced"))
    assert (balanced.predict(X) == 0).sum() > 3 * (plain.predict(X) == 0).sum()


def test_divergence_is_an_error() -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="learning_rates"):
        LinearHead(learning_rates=(1e30,)).fit(X, y)


@pytest.mark.usefixtures("always_streamed")
def test_the_widest_features_go_without_a_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WIDEST_COVARIANCE", 4)
    X, y = blobs(900)
    assert LinearHead().fit(X, y).score(X, y) > LogisticHead(C=1.0).fit(X, y).score(X, y) - 0.02


# --- few rows, by folds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_few_rows_reach_the_optimum_at_the_c_reported(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SCORE", 900)
    X, y = blobs(300, 10, classes, spread=2.0)
    head = LinearHead(learning_rates=1.0, weight_decays=0.03, patience=40).fit(X, y)
    exact = LogisticHead(C=head.C_, tol=1e-7).fit(X, y)
    np.testing.assert_allclose(head.coef_, exact.coef_, atol=0.02 * np.abs(exact.coef_).max())


def test_scores_of_held_out_rows_come_from_parameters_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SCORE", 900)
    X, y = blobs(120, 8, 3, spread=2.0)
    one = LinearHead(learning_rates=0.3, weight_decays=0.03).fit(X, y)
    np.testing.assert_array_equal(one.validation_rows_, np.arange(120))
    fold = fold_numbers(y, 5, seed=0)
    exact = LogisticHead(tol=1e-6)
    for number in range(5):
        train, held = fold != number, fold == number
        exact.set_params(C=1 / (0.03 * X[train].var(axis=0).mean() * train.sum())).fit(X[train], y[train])
        expected, got = softmax(exact.decision_function(X[held])), softmax(one.validation_scores_[held])
        np.testing.assert_allclose(got, expected, atol=0.01)


def test_few_rows_report_the_candidate_chosen() -> None:
    X, y = blobs(150, spread=2.5)
    head = LinearHead().fit(X, y)
    assert (head.n_folds_, len(head.learning_rates_), len(head.weight_decays_)) == (5, 2, 12)
    mine = [
        c
        for c in head.candidates_
        if (c["learning_rate"], c["weight_decay"]) == (head.learning_rate_, head.weight_decay_)
    ]
    measured = held_out(head.validation_scores_, y[head.validation_rows_])
    assert mine[0]["log_loss"] == pytest.approx(measured.log_loss, rel=1e-4)
    assert mine[0]["accuracy"] == pytest.approx(measured.accuracy)
    assert mine[0] in head.curve_
    assert mine[0]["epoch"] == head.n_iter_


@pytest.mark.parametrize("per_class", [2, 5, 30])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_few_rows_are_classified_as_well_as_by_its_counterpart(per_class: int, seed: int) -> None:
    X, y = blobs(10 * 400, 30, 10, seed=seed, spread=1.5)
    train, test = np.arange(10 * per_class), np.arange(2000, 4000)
    head = LinearHead().fit(X[train], y[train])
    other = LogisticRegressionCV(Cs=10, cv=min(5, per_class), max_iter=500).fit(X[train], y[train])
    temperature = fit_temperature(head.validation_scores_, y[head.validation_rows_])
    scores = head.decision_function(X[test]) / temperature
    assert head.score(X[test], y[test]) > other.score(X[test], y[test]) - 0.03
    loss = held_out(scores, y[test]).log_loss
    assert loss < log_loss(y[test], other.predict_proba(X[test])) + 0.03


def test_small_tables_of_many_features_are_fitted_quickly() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    X = (rng.normal(size=(20, 1280)) + 0.5 * y[:, None]).astype(np.float32)
    started = time.process_time()
    head = LinearHead().fit(X, y)
    assert time.process_time() - started < 5.0
    assert head.score(X, y) == 1.0


def test_a_class_of_one_row_trains_and_is_not_held_out() -> None:
    X, y = blobs(60)
    y = np.append(y, 3)
    X = np.concatenate([X, X[:1] + 10])
    head = LinearHead().fit(X, y)
    assert head.validation_rows_.tolist() == list(range(60))
    assert head.validation_scores_.shape == (60, 4)
    assert np.isfinite(head.coef_).all()


def test_rows_of_which_none_can_be_held_out_are_fitted() -> None:
    X, y = blobs(3)
    head = LinearHead().fit(X, y)
    assert head.n_folds_ == 0
    assert head.validation_scores_.shape == (0, 3)
    assert head.curve_ == []
    assert head.score(X, y) == 1.0


def test_groups_are_held_out_whole() -> None:
    X, y = blobs(90)
    groups = np.arange(90) // 3 % 6
    noise = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    head = LinearHead().fit(X + 3 * noise[groups], y, groups)
    assert 1 < head.n_folds_ <= 5
    assert np.isfinite(head.validation_scores_).all()
    only = LinearHead().fit(X, y, np.zeros(90))
    assert only.n_folds_ == 0


def test_constant_features_give_the_class_shares() -> None:
    y = np.array([0] * 30 + [1] * 10)
    head = LinearHead().fit(np.ones((40, 5), np.float32), y)
    np.testing.assert_allclose(head.predict_proba(np.ones((1, 5)))[0], [0.75, 0.25], atol=0.02)


def test_few_rows_of_rare_classes_weigh_more_when_asked() -> None:
    X, y = blobs(400, spread=3.0)
    kept = (y > 0) | (np.arange(len(y)) % 12 == 0)
    X, y = X[kept], y[kept]
    plain, balanced = (LinearHead(class_weight=w).fit(X, y) for w in (None, "balanced"))
    assert (balanced.predict(X) == 0).sum() > 2 * (plain.predict(X) == 0).sum()


def test_candidates_that_diverge_are_not_chosen() -> None:
    X, y = blobs(90)
    head = LinearHead(learning_rates=(0.3, 1e30), weight_decays=0.03).fit(X, y)
    assert head.learning_rate_ == 0.3
    assert len(head.candidates_) == 1


def test_groups_of_candidates_give_what_all_together_give(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(90)
    together = LinearHead().fit(X, y)
    monkeypatch.setattr(module, "_STATE", 1)
    alone = LinearHead().fit(X, y)
    assert alone.weight_decay_ == together.weight_decay_
    np.testing.assert_allclose(alone.coef_, together.coef_, rtol=1e-3, atol=1e-4)


def test_many_classes_try_less_and_more_rows_are_streamed() -> None:
    small = module._plan((300, 64), 10, None, None)
    many = module._plan((8000, 1280), 2000, None, None)
    assert small is not None
    assert many is not None
    assert (len(small.candidates), small.folds) == (24, 5)
    assert (len(many.candidates), many.folds) == (4, 1)
    assert module._plan((60_000, 1280), 10, None, None) is None


def test_a_file_of_few_rows_with_nan_names_the_row(tmp_path: Path) -> None:
    X, y = blobs(30)
    X[17, 2] = np.nan
    with pytest.raises(HeadError, match="row 17"):
        LinearHead().fit(mapped(tmp_path / "rows", X), y)


def test_a_class_without_weight_is_fitted() -> None:
    X, y = blobs(60, n_classes=2)
    head = LinearHead(class_weight={0: 1.0, 1: 0.0}).fit(X, y)
    assert np.isfinite(head.coef_).all()


def test_candidates_train_for_a_whole_pass_at_least() -> None:
    X, y = blobs(600)
    assert max(c["epoch"] for c in LinearHead(batch_size=20).fit(X, y).candidates_) >= 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rates", ()),
        ("learning_rates", (0.0,)),
        ("learning_rates", (0.1, float("nan"))),
        ("learning_rates", "fast"),
        ("weight_decays", (-1e-3,)),
        ("weight_decays", ()),
        ("batch_size", 0),
        ("max_epochs", 0),
        ("max_epochs", 1.5),
        ("patience", 0),
        ("validation_share", 0.0),
        ("validation_share", 1.0),
        ("validation_share", "much"),
    ],
)
def test_impossible_settings_are_named(name: str, value: Any) -> None:
    X, y = blobs(30)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        LinearHead(**{name: value}).fit(X, y)


def test_ties_count_as_a_share() -> None:
    scores = np.array([[0.2, 0.8, 0.1], [0.5, 0.5, 0.1], [0.3, 0.3, 0.3], [np.nan, 1.0, 0.0], [-np.inf, 1.0, 0.0]])
    truth = np.array([1, 0, 2, 1, 1])
    got = module._hits(torch.from_numpy(scores)[:, None], torch.from_numpy(truth)[:, None])
    np.testing.assert_allclose(got[:, 0], hits(scores, truth))


def test_a_value_at_the_end_names_the_option() -> None:
    X, y = blobs(120)
    options = FitOptions(params={"learning_rates": (1e-6, 1e-5, 1e-4), "weight_decays": (0.01,)})
    (warning,) = fit_linear(StreamedRows(X), y, None, options).warnings
    assert "--set 'learning_rates=(3e-05,0.0001,0.0003)'" in warning


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A file of 400 MB, all of it a hole, is read through buffers of 32 MB, in a process of its own."""
    code = f"""
import numpy as np, resource, torch
from pipeline.heads import LinearHead, streamed_rows
torch.set_num_threads(1)
streamed_rows.BUFFER_BYTES = 32 << 20
X = np.memmap({str(tmp_path / "rows")!r}, dtype=np.float16, mode="r", shape=(400_000, 512))
y = np.arange(400_000) % 2
head = LinearHead(learning_rates=(0.1,), weight_decays=(1e-3,), max_epochs=1, batch_size=4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
head.fit(X, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    with (tmp_path / "rows").open("wb") as file:
        file.truncate(400_000 * 512 * 2)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 200_000, done.stdout


def test_scikit_learns_own_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(LinearHead(weight_decays=(1e-3,), max_epochs=3))
