from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from pipeline.heads import LinearHead, LogisticHead
from pipeline.heads import linear as module
from tests.heads.standin import blobs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def mapped(path: Path, array: NDArray[Any]) -> np.memmap:
    path.write_bytes(array.tobytes())
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


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


def test_the_scale_of_the_features_does_not_matter() -> None:
    X, y = blobs(1500, 8, 3)
    mixed = X @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32) * np.float32(100) + np.float32(1000)
    plain, other = LinearHead().fit(X, y), LinearHead().fit(mixed, y)
    assert other.score(mixed, y) == pytest.approx(plain.score(X, y), abs=0.01)


def test_rows_sorted_by_class_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(3000, 12, 3)
    order = np.argsort(y, kind="stable")
    X, y = X[order], y[order]
    monkeypatch.setattr("pipeline.heads.streaming._RUN_BYTES", 12 * 4 * 8)
    monkeypatch.setattr("pipeline.heads.streaming.BUFFER_BYTES", 12 * 4 * 600)
    streamed, whole = LinearHead().fit(mapped(tmp_path / "rows", X), y), LinearHead().fit(X, y)
    assert streamed.score(X, y) == pytest.approx(whole.score(X, y), abs=0.01)


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


def test_groups_are_set_apart_whole() -> None:
    X, y = blobs(600)
    groups = np.arange(600) // 6
    rows = LinearHead().fit(X, y, groups).validation_rows_
    apart = np.unique(groups[rows])
    assert 0 < len(apart) < 100
    assert np.isin(groups, apart).sum() == len(rows)


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


def test_what_it_reports_is_what_it_does() -> None:
    X, y = blobs(900, spread=2.5)
    head = LinearHead().fit(X, y)
    rows = head.validation_rows_
    np.testing.assert_allclose(head.decision_function(X[rows]), head.validation_scores_, atol=1e-4)
    best = min(head.curve_, key=lambda entry: entry["log_loss"])
    assert (best["learning_rate"], best["weight_decay"]) == (head.learning_rate_, head.weight_decay_)
    assert best["accuracy"] == pytest.approx(head.score(X[rows], y[rows]))
    assert len(head.candidates_) == 12
    assert min(c["log_loss"] for c in head.candidates_) == best["log_loss"]


def test_it_stops_when_nothing_becomes_better() -> None:
    X, y = blobs(3000)
    noise = np.random.default_rng(0).permutation(y)
    assert len(LinearHead(max_epochs=50).fit(X, noise).curve_) < 50


def test_rare_classes_weigh_more_when_asked() -> None:
    X, y = blobs(4000, spread=3.0)
    kept = (y > 0) | (np.arange(len(y)) % 30 == 0)
    X, y = X[kept], y[kept]
    plain, balanced = (LinearHead(class_weight=w).fit(X, y) for w in (None, "balanced"))
    assert (balanced.predict(X) == 0).sum() > 3 * (plain.predict(X) == 0).sum()


def test_divergence_is_an_error() -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="learning_rates"):
        LinearHead(learning_rates=(float("nan"),)).fit(X, y)


def test_the_widest_features_go_without_a_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WIDEST_COVARIANCE", 4)
    X, y = blobs(900)
    assert LinearHead().fit(X, y).score(X, y) > LogisticHead(C=1.0).fit(X, y).score(X, y) - 0.02


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A file of 400 MB, all of it a hole, is read through buffers of 32 MB, in a process of its own."""
    code = f"""
import numpy as np, resource, torch
from pipeline.heads import LinearHead, streaming
torch.set_num_threads(1)
streaming.BUFFER_BYTES = 32 << 20
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
