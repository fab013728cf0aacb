from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.heads import load_head
from pipeline.heads.calibration import Calibration, hash_of_keys, load_calibration
from pipeline.stages.fit_head import FitResult, FitSettings, fit_head
from tests.heads.standin import StandIn, blobs, stand_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that fits on a cache in memory, and what the run keeps."""

    def run(cache: StandIn, **settings: Any) -> tuple[FitResult, Calibration]:
        monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        quick: dict[str, Any] = {"head": "ridge", "learning_curve": False, "report": False, "replicates": 200}
        result = fit_head("stand-in.h5", tmp_path / "run", FitSettings(**(quick | settings)))
        found = load_calibration(tmp_path / "run")
        assert found is not None
        return result, found

    return run


def numbers(n_rows: int = 400) -> StandIn:
    X = np.random.default_rng(0).normal(size=(n_rows, 6)).astype(np.float32)
    age = X @ np.arange(6.0) + np.random.default_rng(1).normal(size=n_rows)
    return StandIn(X, np.full(n_rows, -1, np.int32), (), columns={"age": age})


def test_the_training_rows_and_their_labels_are_kept(fit: Any) -> None:
    cache = stand_in()
    result, found = fit(cache)
    held_out = {line.split(",")[0] for line in (result.run_dir / "predictions.csv").read_text().splitlines()[1:]}
    train = [row for row, key in enumerate(cache.keys.tolist()) if key not in held_out]
    assert found.training.rows.tolist() == train
    assert found.training.labels.tolist() == cache.labels[train].tolist()
    assert found.training.keys == hash_of_keys(cache.keys[train])


def test_scores_are_those_of_rows_that_the_head_has_not_seen(fit: Any) -> None:
    # Labels of chance: a head fits its own rows, and not those held out.
    X = np.random.default_rng(0).normal(size=(300, 150)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 2, 300).astype(np.int32)
    result, found = fit(StandIn(X, y, ("ant", "bee")), head="lda", params={"shrinkage": 0.01})
    assert found.conformal is not None
    rows = found.training.rows
    seen = load_head(result.run_dir).predict_proba(X[rows])
    assert (seen[np.arange(len(rows)), y[rows]] > 0.5).mean() > 0.8
    assert (found.conformal.scores < -0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_the_report_measures_sets_on_the_rows_held_out(fit: Any) -> None:
    result, found = fit(stand_in(1200, spread=3.0))
    trust = json.loads((result.run_dir / "metrics.json").read_text())["trust"]
    assert found.conformal is not None
    assert trust["calibration_rows"] == len(found.conformal.scores) == 960
    assert trust["calibration_counted"] == "rows"
    for entry in trust["conformal"]:
        assert entry["reached"]["low"] <= entry["reached"]["value"] <= entry["reached"]["high"]
        assert entry["reached"]["value"] == pytest.approx(entry["asked"], abs=0.06)
        assert entry["rows"] == 240
    sizes = [entry["size"] for entry in trust["conformal"]]
    assert sizes == sorted(sizes)
    for curve in trust["selective"].values():
        assert curve["risk"][-1] == pytest.approx(1 - result.metrics["test"]["accuracy"]["value"])
    assert trust["selective"]["confidence"]["area"] < curve["risk"][-1]


def test_intervals_of_numbers_are_calibrated_out_of_fold(fit: Any) -> None:
    result, found = fit(numbers(), target="age", task="regression")
    assert found.conformal is not None
    assert len(found.conformal.scores) == 320
    entry = result.metrics["trust"]["conformal"][1]
    # The noise has a standard deviation of one: nine of ten lie within 1.645.
    assert entry["half_width"] == pytest.approx(1.645, abs=0.25)
    assert entry["reached"]["value"] == pytest.approx(0.9, abs=0.07)
    assert "selective" not in result.metrics["trust"]


def test_a_head_without_held_out_scores_takes_the_val_split_where_test_measures(fit: Any) -> None:
    split = np.asarray(["train", "train", "val", "test"] * 60)
    _, found = fit(stand_in(columns={"split": split}), head="linear")
    assert found.conformal is not None
    assert (found.conformal.source, len(found.conformal.scores)) == ("val", 60)
    _, without = fit(stand_in(), head="linear")
    assert without.conformal is None
    assert without.novelty is not None
    assert not len(without.novelty.sums)


def test_groups_count_once(fit: Any) -> None:
    groups = np.repeat([f"g{i}" for i in range(60)], 4)
    result, found = fit(stand_in(columns={"group": groups}))
    assert found.conformal is not None
    assert found.conformal.counted == "groups"
    assert found.conformal.independent == 48
    assert any("48 calibration groups" in note for note in result.notes)


def test_label_sets_keep_no_scores_of_sets_and_their_novelty_is_the_distance(fit: Any) -> None:
    X, y = blobs(200)
    tags = np.asarray([("ant", "bee", "ant|bee")[k] for k in y])
    cache = StandIn(X, np.full(200, -1, np.int32), (), columns={"tags": tags})
    _, found = fit(cache, target="tags", task="multilabel")
    assert found.conformal is None
    assert found.novelty is not None
    assert not len(found.novelty.sums)


def test_layers_side_by_side_are_scaled_for_their_distance(fit: Any) -> None:
    X, y = blobs(200)
    inner = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32) * 1000
    inner[:, :3] += 2000 * np.eye(3, dtype=np.float32)[y]
    cache = StandIn(X, y.astype(np.int32), ("ant", "bee", "cat"), layers={"inner": inner})
    result, found = fit(cache, layers=("inner", "penultimate"))
    assert found.novelty is not None
    head = load_head(result.run_dir)
    width = {"inner": 4, "penultimate": 12}
    assert len(found.novelty.scale) == sum(width[name] for name in head.layers)
    features = head.features({"inner": inner, "penultimate": X})
    spread = found.novelty.distances(features)
    assert (spread >= -1e-6).all()
    if len(head.layers) == 2:
        assert found.novelty.scale[0] > 100 * found.novelty.scale[-1]
