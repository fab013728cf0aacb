from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import pipeline.heads.classic
from pipeline.errors import HeadError
from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.choice import held_out
from pipeline.heads import KnnHead, load_head, save_head
from pipeline.heads.fit import FitOptions
from pipeline.heads.knn import SMOOTHING, knn_model
from pipeline.heads.model import HeadModel
from pipeline.heads.neighbours import METRICS, WEIGHTS, smallest
from pipeline.heads.registry import find_head
from pipeline.heads.saved import LoadedHead
from tests.heads.standin import blobs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def fixed(k: int, metric: str = "cosine", weights: str = "uniform", scaling: str = "none", **others: Any) -> KnnHead:
    return KnnHead(n_neighbors=k, metric=metric, weights=weights, scaling=scaling, **others)  # type: ignore[arg-type]


def unsmoothed(head: KnnHead, probabilities: NDArray[Any], total: NDArray[Any] | float) -> NDArray[Any]:
    """Take the smoothing votes away again."""
    with_prior = probabilities * (np.asarray(total) + SMOOTHING)
    return np.asarray((with_prior - SMOOTHING / len(head.classes_)) / total)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_classes=st.integers(2, 6),
    k=st.integers(1, 30),
    metric=st.sampled_from(["cosine", "euclidean"]),
    weights=st.sampled_from(["uniform", "distance"]),
    scaling=st.sampled_from(["none", "standard"]),
    shift=st.sampled_from([0.0, 3.0]),
)
def test_votes_are_scikit_learns(
    seed: int, n_classes: int, k: int, metric: str, weights: str, scaling: str, shift: float
) -> None:
    X, y = blobs(90, 5, n_classes, seed=seed)
    new, _ = blobs(40, 5, n_classes, seed=seed + 1)
    X, new = X + np.float32(shift), new + np.float32(shift)
    scaler = StandardScaler(with_mean=scaling == "standard", with_std=scaling == "standard").fit(X.astype(np.float64))
    train, asked = scaler.transform(X.astype(np.float64)), scaler.transform(new.astype(np.float64))
    theirs = KNeighborsClassifier(k, metric=metric, weights=weights, algorithm="brute").fit(train, y)
    distance = theirs.kneighbors(asked, k + 1)[0]
    clear = distance[:, k] - distance[:, k - 1] > 1e-4  # no two rows compete for the last place
    head = fixed(k, metric, weights, scaling, cv=None).fit(X, y)
    total = (distance[:, :1] / distance[:, :k]).sum(axis=1)[:, None] if weights == "distance" else float(k)
    shares = unsmoothed(head, head.predict_proba(new), total)
    np.testing.assert_allclose(shares[clear], theirs.predict_proba(asked)[clear], atol=3e-3)


def test_a_tie_goes_to_the_nearer_class_not_to_the_first() -> None:
    X = np.array([[1.0, 0.0], [1.0, 0.3], [1.0, 0.1], [1.0, 0.2]], dtype=np.float32)
    new = np.array([[1.0, 0.1]], dtype=np.float32)
    for y in (np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])):
        for metric in METRICS:
            assert fixed(4, metric, cv=None).fit(X, y).predict(new)[0] == y[2]


def test_equal_distances_favour_no_class() -> None:
    """Rows that are the same but for their class, sorted by class as in a file."""
    X, y = np.ones((40, 3), dtype=np.float32), np.repeat([0, 1], 20)
    first = [fixed(1, cv=None, random_state=seed).fit(X, y).predict(X[:1])[0] for seed in range(60)]
    assert 15 <= sum(first) <= 45


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), width=st.integers(1, 900), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_search_by_groups_finds_the_smallest(n: int, width: int, count: int, seed: int) -> None:
    cost = np.random.default_rng(seed).integers(0, 300, size=(n, width)).astype(np.float32)
    count = min(count, width)
    found = smallest(cost, count)
    np.testing.assert_array_equal(np.take_along_axis(cost, found, axis=1), np.sort(cost, axis=1)[:, :count])
    assert all(len(set(row)) == count for row in found.tolist())


@pytest.mark.parametrize("n_classes", [2, 5, 40])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_sweep_measures_the_scores_outside_the_folds(n_classes: int, weights: str) -> None:
    X, y = blobs(120, 6, n_classes, spread=1.0)
    head = fixed(4, "euclidean", weights, "standard", cv=3).fit(X, y)
    (entry,) = head.sweep_
    scored = np.isfinite(head.oof_scores_).all(axis=1)
    np.testing.assert_array_equal(scored, head.fold_ >= 0)
    np.testing.assert_allclose(np.exp(head.oof_scores_[scored]).sum(axis=1), 1.0)
    tempered = head.oof_scores_[scored] / fit_temperature(head.oof_scores_[scored], y[scored])
    measured = held_out(tempered, y[scored])
    assert entry["log_loss"] == pytest.approx(measured.log_loss, abs=1e-4)
    assert entry["accuracy"] == pytest.approx(measured.accuracy, abs=1e-9)
    for fold in range(3):
        part = fixed(4, "euclidean", weights, "standard", cv=None).fit(X[head.fold_ != fold], y[head.fold_ != fold])
        rows = head.fold_ == fold
        same = np.isclose(np.log(part.predict_proba(X[rows])), head.oof_scores_[rows], atol=1e-3).all(axis=1)
        assert same.mean() > 0.97  # all but rows with neighbours at equal distances


def test_imbalanced_digits_keep_the_rare_classes() -> None:
    X, y = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    gains = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        counts = rng.permutation(np.linspace(5, 80, 10).astype(int))
        train = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:count] for c, count in enumerate(counts)])
        fresh = np.setdiff1d(np.arange(len(y)), train)
        head = KnnHead().fit(X[train], y[train])
        nearest = KNeighborsClassifier(1).fit(X[train], y[train])
        gains.append(head.score(X[fresh], y[fresh]) - nearest.score(X[fresh], y[fresh]))
    assert np.mean(gains) > -0.02
    assert min(gains) > -0.03
    assert json.loads(json.dumps(head.chosen_)) == head.chosen_
    assert len(head.sweep_) == 11 * 3 * 5
    again = head.at_chosen().fit(X[train], y[train])
    np.testing.assert_array_equal(again.predict_proba(X[fresh]), head.predict_proba(X[fresh]))
    assert again.sweep_ == []


def test_groups_stay_together_and_single_rows_always_train() -> None:
    X, y = blobs(90, 5, 3)
    twins, labels = np.concatenate([X, X]), np.random.default_rng(0).integers(0, 3, 90)
    groups = np.tile(np.arange(90), 2)
    alone = KnnHead().fit(twins, np.tile(labels, 2), groups)
    torn = KnnHead().fit(twins, np.tile(labels, 2))
    assert max(entry["accuracy"] for entry in alone.sweep_) < 0.55
    assert max(entry["accuracy"] for entry in torn.sweep_) > 0.7
    np.testing.assert_array_equal(alone.fold_[:90], alone.fold_[90:])
    y[0] = 7
    head = KnnHead().fit(X, y)
    assert head.fold_[0] == -2
    assert np.isnan(head.oof_scores_[0]).all()
    assert np.isfinite(head.oof_scores_[1:]).all()


def test_large_sets_score_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.heads.knn._MOST_SCORED", 50)
    X, y = blobs(200)
    head = KnnHead(n_neighbors=[1, 300]).fit(X, y)
    assert np.isfinite(head.oof_scores_).all(axis=1).sum() == 50
    assert head.chosen_["scored_rows"] == 50
    assert {entry["n_neighbors"] for entry in head.sweep_} == {1, 200}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"n_neighbors": bad}, "n_neighbors: expected") for bad in (0, -1, 2.5, True, [], [3, 0], "five", None)),
        ({"metric": "manhattan"}, "metric: expected auto, cosine, euclidean"),
        ({"weights": None}, "weights: expected auto, uniform"),
        ({"scaling": "robust"}, "scaling: expected auto, none"),
        ({"cv": 1}, "cv: expected"),
        ({"scoring": "f1"}, "scoring: expected"),
    ],
)
def test_impossible_settings_are_one_line(changes: dict[str, Any], message: str) -> None:
    X, y = blobs(30)
    with pytest.raises(ValueError, match=message) as caught:
        KnnHead(**changes).fit(X, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(HeadError, match=message):
        find_head("knn")(X, y, None, FitOptions(params=changes))


def test_one_row_of_each_class_needs_fixed_settings() -> None:
    X, y = blobs(3)
    with pytest.raises(ValueError, match="fix n_neighbors, metric, weights and scaling"):
        KnnHead().fit(X, y)
    assert fixed(1).fit(X, y).predict(X).tolist() == y.tolist()


def loaded(model: HeadModel, path: Path) -> LoadedHead:
    names = tuple(f"class {k}" for k in range(model.outputs))
    save_head(path / "head.safetensors", LoadedHead(model, names, "penultimate", {}, "f", "knn"))
    return load_head(path)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_saved_head_predicts_the_same(tmp_path: Path, n_classes: int, metric: str, weights: str) -> None:
    X, y = blobs(n_classes=n_classes)
    new, _ = blobs(n_classes=n_classes, seed=7)
    head = fixed(6, metric, weights, "standard").fit(X, y)
    back = loaded(knn_model(head), tmp_path)
    np.testing.assert_array_equal(back.predict_proba(new), head.predict_proba(new))
    np.testing.assert_array_equal(back.model.scores(new), knn_model(head).scores(new))


def shares_before(X: NDArray[Any], neighbours: NDArray[Any], codes: NDArray[Any], k: int) -> NDArray[Any]:
    """What earlier versions computed, word for word."""
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    similarity = (X / np.where(norm > 0, norm, 1.0)) @ neighbours.T
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    outputs = int(codes.max()) + 1
    votes = np.bincount((codes[near] + np.arange(len(X))[:, None] * outputs).ravel(), minlength=len(X) * outputs)
    return np.asarray(votes.reshape(len(X), outputs) / k)


def test_heads_of_earlier_versions_predict_as_before(tmp_path: Path) -> None:
    X, y = blobs()
    new, _ = blobs(seed=7)
    neighbours = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    expected = shares_before(new, neighbours, y, 15)
    facts = {
        "format": "embedding-pipeline head", "format_version": 1, "kind": "knn", "link": "shares", "temperature": 1.0,
        "head": "knn", "task": "classification", "layer": "penultimate", "class_names": ["a", "b", "c"],
        "fingerprint": "f", "spec": {},
    }  # fmt: skip
    arrays = {"neighbours": neighbours, "classes": y, "n_neighbors": np.array([15])}
    (tmp_path / "head.safetensors").write_bytes(save(arrays, metadata={"head": json.dumps(facts)}))
    np.testing.assert_array_equal(load_head(tmp_path).predict_proba(new), expected)
    np.testing.assert_array_equal(loaded(load_head(tmp_path).model, tmp_path).predict_proba(new), expected)

    old = KnnHead.__new__(pipeline.heads.classic.KnnHead)
    old.__dict__ = {
        "n_neighbors": 15, "neighbours_": neighbours, "codes_": y, "classes_": np.arange(3), "n_features_in_": 12
    }  # fmt: skip
    back = pickle.loads(pickle.dumps(old))
    np.testing.assert_array_equal(back.predict_proba(new), expected)
    assert back.get_params()["metric"] == "cosine"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("metric", np.array([2]), "metric from 0 to 1, found 2"),
        ("metric", np.array([0.0]), "metric from 0"),
        ("weighting", np.array([-1]), "weighting from 0 to 2"),
        ("weighting", np.array([0, 0]), r"weighting of shape \(1,\)"),
        ("smoothing", np.array([0.0]), "above 0"),
        ("smoothing", np.array([np.nan]), "not finite"),
        ("scale", np.zeros(12, np.float32), "above 0"),
        ("scale", np.ones(11, np.float32), r"scale of shape \(12,\)"),
        ("center", np.ones(12, np.int64), "center as real numbers"),
        ("n_neighbors", np.array([0]), "between one neighbour"),
        ("classes", np.full(240, 3), "none of the class names"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, name: str, value: NDArray[Any], message: str) -> None:
    X, y = blobs()
    model = knn_model(fixed(3, cv=None).fit(X, y))
    with pytest.raises(HeadError, match=message):
        loaded(HeadModel("knn", {**model.arrays, name: value}, "softmax", 3), tmp_path)
