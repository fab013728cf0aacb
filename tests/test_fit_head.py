from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline.cache
from pipeline.errors import HeadError
from pipeline.fit_head import FitResult, FitSettings, fit_head, new_run_folder
from pipeline.heads import load_head
from tests.heads.standin import StandIn, blobs, stand_in

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"Cs": (0.01, 0.1), "replicates": 200, "learning_curve": False, "device": "cpu"}


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that fits on a cache in memory."""

    def run(cache: StandIn, output: Path | None = None, say: Any = None, **settings: Any) -> FitResult:
        monkeypatch.setattr(pipeline.cache, "open_cache", lambda path: cache)
        settings = QUICK | {"report": False} | settings
        return fit_head("stand-in.h5", output or tmp_path / "run", FitSettings(**settings), say=say)

    return run


def test_the_run_folder_is_whole_and_agrees_with_itself(fit: Any, tmp_path: Path) -> None:
    cache = stand_in()
    result = fit(cache, report=True, learning_curve=True)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "head.safetensors", "head.joblib", "metrics.json", "predictions.csv",
        "confusion.png", "report.html", "run.json",
    }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    right = sum(line["label"] == line["predicted"] for line in lines)
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right / len(lines))
    assert metrics["test"]["rows"] == len(lines) == 48
    head = load_head(tmp_path / "run")
    row = list(cache.keys).index(lines[0]["key"])
    probabilities = head.predict_proba(cache.embeddings[row : row + 1])[0]
    assert [float(lines[0][f"p_{n}"]) for n in head.class_names] == pytest.approx(probabilities, rel=1e-4)
    assert head.class_names == ("ant", "bee", "cat")
    assert head.fingerprint == cache.fingerprint
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["cache"]["spec"] == cache.spec
    assert result.metrics["chosen"]["C"] in QUICK["Cs"]


def test_the_same_fit_gives_the_same_files(fit: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fit(stand_in(), tmp_path / name)
    for name in ("head.safetensors", "metrics.json", "predictions.csv", "confusion.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_test_rows_do_not_touch_the_head(fit: Any, tmp_path: Path) -> None:
    split = np.asarray(["train", "train", "test", "train"] * 60)
    cache = stand_in(columns={"split": split})
    fit(cache, tmp_path / "one")
    cache.embeddings[split == "test"] = 1e3
    fit(cache, tmp_path / "two")
    assert (tmp_path / "one/head.safetensors").read_bytes() == (tmp_path / "two/head.safetensors").read_bytes()


def test_the_users_split_is_taken_in_any_spelling(fit: Any) -> None:
    words = np.asarray(["Train", "train", "valid", "TEST", ""] * 48)
    notes: list[str] = []
    result = fit(stand_in(columns={"split": words}), say=notes.append)
    assert result.metrics["test"]["rows"] == result.metrics["val"]["rows"] == 48
    assert notes == ["left out: 48 rows whose split is empty"]


def test_planted_duplicates_flatter_unless_they_are_grouped(fit: Any, tmp_path: Path) -> None:
    """Noise labels cannot be learned; with copies on both sides they seem to be, unless copies are one group."""
    X, _ = blobs(120, 200)
    y = np.random.default_rng(0).integers(0, 2, 120)
    twice: dict[str, Any] = {
        "embeddings": np.repeat(X, 4, axis=0),
        "labels": np.repeat(y, 4),
        "label_names": ("a", "b"),
    }
    leaky = fit(StandIn(**twice), tmp_path / "leaky", Cs=(1.0,))
    honest = fit(StandIn(**twice, columns={"group": np.repeat(np.arange(120), 4)}), tmp_path / "honest", Cs=(1.0,))
    assert leaky.metrics["test"]["accuracy"]["value"] > 0.95
    assert honest.metrics["test"]["accuracy"]["low"] < 0.5 < honest.metrics["test"]["accuracy"]["high"]
    assert honest.metrics["sweep"][0]["accuracy"] < 0.65


def broken(kind: str) -> StandIn:
    cache = stand_in()
    if kind == "one class":
        cache.labels[:] = 0
    elif kind == "no label":
        cache.labels[:] = -1
    elif kind == "nothing done":
        cache.status[:] = 0
    elif kind == "a single row of a class":
        cache.labels[cache.labels == 2] = 0
        cache.labels[0] = 2
    elif kind == "split without train":
        cache.columns["split"] = np.full(len(cache), "test")
    elif kind == "not finite":
        cache.embeddings[:] = np.nan
    elif kind == "one group a class":
        cache.columns["group"] = cache.labels.copy()
    return cache


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one class", "at least 2 classes, found only 'ant'"),
        ("no label", "has a label: put the images into class folders"),
        ("nothing done", "finish pipeline extract"),
        ("a single row of a class", "at least 2 training rows of every class, found 1 of 'cat'"),
        ("split without train", "mark the training rows"),
        ("not finite", "not finite"),
        ("one group a class", "single group"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(fit: Any, tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(HeadError, match=message) as caught:
        fit(broken(kind))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "logistik"}, "did you mean logistic"),
        ({"layer": "pen"}, "no layer 'pen'"),
        ({"target": "colour"}, "no column 'colour'"),
        ({"folds": 1}, "at least 2 folds"),
        ({"test_share": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_settings_are_named(fit: Any, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        fit(stand_in(), **settings)
    assert list(tmp_path.iterdir()) == []


def test_fewer_folds_and_left_out_rows_are_said(fit: Any) -> None:
    cache = stand_in()
    cache.labels[:30] = -1
    cache.status[30:40] = 2
    few = np.flatnonzero((cache.labels == 2) & (cache.status == 1))[4:]
    cache.labels[few] = -1
    notes: list[str] = []
    fit(cache, say=notes.append)
    assert notes[0] == "left out: 10 of 240 rows that failed or are still to do"
    assert notes[1].startswith("left out: ")
    assert notes[1].endswith("of 230 rows without a label")
    assert notes[2] == "3 folds instead of 5: the smallest class has 3 training rows"


def test_a_column_can_be_the_target(fit: Any) -> None:
    cache = stand_in()
    colours = np.asarray(["red", "green", "blue"])[cache.labels]
    colours[:5] = ""
    cache.columns["colour"] = colours
    notes: list[str] = []
    fit(cache, target="colour", say=notes.append)
    assert notes == ["left out: 5 of 240 rows without a label"]


def test_a_former_run_is_replaced_and_nothing_else_is(fit: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    fit(stand_in(), output, seed=1)
    before = (output / "metrics.json").read_bytes()
    fit(stand_in(), output, seed=2)
    assert (output / "metrics.json").read_bytes() != before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(HeadError, match="is no run folder"):
        fit(stand_in(), other)
    assert [p.name for p in other.iterdir()] == ["holiday.jpg"]
    with pytest.raises(HeadError, match="cannot write to"):
        fit(stand_in(), other / "holiday.jpg" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "run"]


def test_a_failure_keeps_the_former_run(fit: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    fit(stand_in(), output)
    before = {p.name: p.read_bytes() for p in output.iterdir()}

    def interrupted() -> None:
        with new_run_folder(output) as folder:
            (folder / "run.json").write_text("half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        interrupted()
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("head", ["linear", "ridge", "lda", "svm", "knn", "centroid", "mlp"])
def test_every_head_writes_a_run_that_loads(fit: Any, tmp_path: Path, head: str) -> None:
    result = fit(stand_in(), head=head, report=True)
    loaded = load_head(tmp_path / "run")
    assert loaded.head == head
    assert result.metrics["test"]["accuracy"]["value"] > 0.6


def test_a_trusted_estimator_predicts_without_the_arrays(fit: Any, tmp_path: Path) -> None:
    cache = stand_in()
    fit(cache)
    names = load_head(tmp_path / "run").predict(cache.embeddings)
    (tmp_path / "run/head.safetensors").unlink()
    trusted = load_head(tmp_path / "run", trust=True)
    np.testing.assert_array_equal(trusted.predict(cache.embeddings), names)
    assert (trusted.width, trusted.fingerprint) == (12, cache.fingerprint)
