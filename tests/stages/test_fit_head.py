from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import HeadError, PipelineError
from pipeline.heads import load_head
from pipeline.heads.registry import HEADS
from pipeline.stages.fit_head import FitResult, FitSettings, fit_head, fit_heads, new_run_folder
from tests.heads.standin import StandIn, blobs, stand_in

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"Cs": (0.01, 0.1), "replicates": 200, "learning_curve": False, "device": "cpu"}

NO_SWEEP = {name: value for name, value in QUICK.items() if name != "Cs"}


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that fits on a cache in memory."""

    def run(cache: StandIn, output: Path | None = None, say: Any = None, **settings: Any) -> FitResult:
        monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        quick = QUICK if settings.get("head", "logistic") == "logistic" and "estimator" not in settings else NO_SWEEP
        settings = quick | {"report": False} | settings
        return fit_head("stand-in.h5", output or tmp_path / "run", FitSettings(**settings), say=say)

    return run


def test_the_run_folder_is_whole_and_agrees_with_itself(fit: Any, tmp_path: Path) -> None:
    cache = stand_in()
    result = fit(cache, report=True, learning_curve=True)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "head.safetensors", "head.joblib", "calibration.safetensors", "metrics.json", "predictions.csv",
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
    abouts = ["more labels", "another layer", "more views", "another network", "tuning the network", "better labels"]
    assert [found["about"] for found in metrics["what_would_help"]] == abouts
    assert metrics["what_would_help"][0]["figures"]["rows"] == 2 * metrics["learning_curve"][-1]["rows"] == 384
    assert result.advice()[0] == f"more labels: {metrics['what_would_help'][0]['text']}"
    assert "<dt>More labels</dt><dd>" in (tmp_path / "run/report.html").read_text()
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


def with_jittered_copies(n: int = 150, copies: int = 3, *, seed: int = 2) -> StandIn:
    """Pictures with labels of chance, each several times, slightly different: as frames of a film."""
    rng = np.random.default_rng(seed)
    X = np.repeat(rng.normal(size=(n, 300)), copies, axis=0)
    X += 0.05 * rng.normal(size=X.shape)
    y = np.repeat(rng.integers(0, 2, n), copies).astype(np.int32)
    return StandIn(X.astype(np.float32), y, ("a", "b"))


@pytest.mark.parametrize("own_split", [False, True])
@pytest.mark.parametrize("head", ["logistic", "ridge"])
def test_near_duplicates_leak_unless_they_are_found_and_grouped(
    fit: Any, tmp_path: Path, own_split: bool, head: str
) -> None:
    cache = with_jittered_copies()
    if own_split:
        draw = np.random.default_rng(1).random(len(cache))
        # A fifth of the rows, and some pictures whole.
        test = (draw < 0.2) | (np.arange(len(cache)) // 3 % 5 == 0)
        cache.columns["split"] = np.where(test, "test", "train")
    notes: list[str] = []
    sweep: dict[str, Any] = {"Cs": (1.0,)} if head == "logistic" else {}
    leaky = fit(cache, tmp_path / "leaky", head=head, **sweep)
    honest = fit(cache, tmp_path / "honest", head=head, group_duplicates=0.98, say=notes.append, **sweep)
    assert leaky.metrics["test"]["accuracy"]["value"] > (0.62 if own_split else 0.85)
    assert honest.metrics["test"]["accuracy"]["low"] < 0.5 < honest.metrics["test"]["accuracy"]["high"]
    assert notes[0] == "near duplicates (cosine from 0.98): 150 groups with 450 of 450 rows, the largest of 3"
    if own_split:
        assert notes[1].startswith("left out: ")
        assert notes[1].endswith("held-out rows with a near duplicate among the training rows")
    if head == "logistic":
        assert leaky.metrics["sweep"][0]["accuracy"] > 0.85 > 0.6 > honest.metrics["sweep"][0]["accuracy"]


def test_equal_bytes_are_duplicates_whatever_the_cosine(fit: Any) -> None:
    cache = stand_in()
    cache.content_hash[100] = cache.content_hash[7]
    cache.columns["group"] = np.arange(240) // 2
    notes: list[str] = []
    result = fit(cache, group_duplicates=1.0, say=notes.append)
    assert notes == ["near duplicates (cosine from 1): 1 group with 2 of 240 rows, the largest of 2"]
    assert result.metrics["test"]["rows"] > 30
    with pytest.raises(HeadError, match=r"a cosine in \(0, 1\]"):
        fit(cache, group_duplicates=1.5)


def test_a_split_of_twins_only_is_refused(fit: Any) -> None:
    cache = with_jittered_copies()
    cache.columns["split"] = np.where(np.arange(len(cache)) % 3 == 0, "test", "train")
    with pytest.raises(HeadError, match="every held-out row has a near duplicate"):
        fit(cache, group_duplicates=0.98)


def test_numbers_are_learned_and_written(fit: Any, tmp_path: Path) -> None:
    cache = stand_in()
    age = cache.embeddings @ np.linspace(-1, 1, 12) * 5 + 40
    age[:7] = np.nan
    cache.columns["age"] = age
    notes: list[str] = []
    result = fit(cache, target="age", report=True, learning_curve=True, say=notes.append)
    assert notes[0].startswith("column 'age': 233 distinct numbers, so the task is regression")
    assert "left out: 7 of 240 rows without a label" in notes
    assert result.metrics["test"]["r2"]["low"] > 0.99
    assert result.metrics["learning_curve"][-1]["r2"] == pytest.approx(result.metrics["test"]["r2"])
    assert result.headlines()[0].startswith("test: R² ")
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [list(cache.keys).index(line["key"]) for line in lines]
    assert [float(line["label"]) for line in lines] == pytest.approx(age[rows])
    head = load_head(tmp_path / "run")
    assert (head.task, head.class_names) == ("regression", ("age",))
    predicted = head.predict(cache.embeddings[rows])[:, 0]
    assert [float(line["predicted"]) for line in lines] == pytest.approx(predicted, rel=1e-6)
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["task"] == "regression"
    assert not (tmp_path / "run/confusion.png").exists()


def test_label_sets_are_learned_and_written(fit: Any, tmp_path: Path) -> None:
    cache = stand_in(400)
    has = np.stack([cache.embeddings[:, 0] > 0, cache.embeddings[:, 1] > 0.5, cache.embeddings[:, 2] > 1], axis=1)
    names = np.asarray(["big", "old", "red"])
    sets = ["|".join(names[row]) or "|" for row in has]
    sets[0] = "|".join([sets[0], "once"])
    cache.columns["tags"] = np.asarray(sets)
    notes: list[str] = []
    result = fit(
        cache, target="tags", task="multilabel", Cs=(0.1, 1.0), report=True, learning_curve=True, say=notes.append
    )
    assert notes[0] == "left out: 1 label that fewer than two training rows have, or lack (once)"
    test = result.metrics["test"]
    assert test["mean_average_precision"]["low"] > 0.9
    assert [entry["label"] for entry in test["labels"]] == ["big", "old", "red"]
    assert result.headlines()[0].startswith("test: mean average precision ")
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    whole = np.mean([line["label"] == line["predicted"] for line in lines])
    assert test["subset_accuracy"]["value"] == pytest.approx(whole)
    head = load_head(tmp_path / "run")
    row = list(cache.keys).index(lines[0]["key"])
    probabilities = head.predict_proba(cache.embeddings[row : row + 1])[0]
    assert [float(lines[0][f"p_{n}"]) for n in names] == pytest.approx(probabilities, rel=1e-4)
    assert lines[0]["predicted"] == "|".join(names[probabilities >= 0.5])


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"estimator": "sklearn.linear_model:LogisticRegression", "params": {"C": 0.1}}, True),
        ({"estimator": "sklearn.neighbors:KNeighborsClassifier", "params": {"n_neighbors": 3}}, False),
        ({"estimator": "sklearn.tree:DecisionTreeRegressor", "target": "age"}, False),
        ({"estimator": "sklearn.naive_bayes:GaussianNB", "target": "tags", "task": "multilabel"}, False),
    ],
)
def test_any_estimator_makes_a_run(fit: Any, tmp_path: Path, settings: dict[str, Any], saved: bool) -> None:
    cache = stand_in()
    cache.columns["age"] = cache.embeddings[:, 0].astype(np.float64)
    cache.columns["tags"] = np.asarray(["big|old", "old", "big"])[cache.labels]
    fit(cache, report=True, **settings)
    output = tmp_path / "run"
    assert (output / "head.safetensors").exists() == saved
    if not saved:
        with pytest.raises(HeadError, match="--trust"):
            load_head(output)
    head = load_head(output, trust=True)
    with (output / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [list(cache.keys).index(line["key"]) for line in lines]
    predicted = head.predict(cache.embeddings[rows])
    if head.task == "multilabel":
        predicted = np.asarray(["|".join(np.asarray(head.class_names)[p]) for p in predicted])
    if head.task == "regression":
        assert [float(line["predicted"]) for line in lines] == pytest.approx(predicted[:, 0])
    else:
        assert [line["predicted"] for line in lines] == predicted.tolist()


def test_several_targets_make_a_run_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = stand_in()
    cache.columns["age"] = cache.embeddings[:, 0].astype(np.float64)
    cache.columns["a/b"] = np.asarray(["x", "y", ""])[cache.labels]
    monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
    settings = FitSettings(**QUICK)
    said: list[str] = []
    results = fit_heads("stand-in.h5", tmp_path / "run", ["label", "age", "a/b"], settings, say=said.append)
    assert [(result.run_dir.name, result.task) for result in results] == [
        ("label", "classification"), ("age", "regression"), ("a_b", "classification"),
    ]  # fmt: skip
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"label", "age", "a_b", "run.json", "report.html"}
    assert said[0].startswith("age: column 'age'")
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert [entry["target"] for entry in run["runs"]] == ["label", "age", "a/b"]
    page = (tmp_path / "run/report.html").read_text()
    assert 'href="a_b/report.html"' in page
    assert load_head(tmp_path / "run/age").task == "regression"
    with pytest.raises(HeadError, match="holds a run for each target"):
        load_head(tmp_path / "run")
    # Each is the run that it would be alone, and the folder can be replaced as a run can.
    fit_head("stand-in.h5", tmp_path / "alone", FitSettings(**QUICK, target="a/b"))
    for name in ("head.safetensors", "metrics.json", "predictions.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "run/a_b" / name).read_bytes()
    fit_heads("stand-in.h5", tmp_path / "run", ["label", "age"], settings)
    assert not (tmp_path / "run/a_b").exists()
    with pytest.raises(HeadError, match="would share the folder a_b"):
        fit_heads("stand-in.h5", tmp_path / "run", ["a/b", "a_b"], settings)
    with pytest.raises(HeadError, match="no column 'b'"):
        fit_heads("stand-in.h5", tmp_path / "new", ["label", "b"], settings)
    assert not (tmp_path / "new").exists()


def test_few_shots_make_a_curve_that_rises(fit: Any) -> None:
    notes: list[str] = []
    result = fit(stand_in(600), shots=(1, 5, 20, 500), report=True, say=notes.append)
    curve = result.metrics["few_shots"]
    assert [point["shots"] for point in curve] == [1, 5, 20]
    assert notes == ["no curve at 500 images a class: the smallest class has 160 training rows"]
    values = [point["accuracy"]["value"] for point in curve]
    assert values == sorted(values)
    assert values[0] < result.metrics["test"]["accuracy"]["value"] - 0.05
    # With so few images the draw matters more than the test rows do.
    widths = [point["accuracy"]["high"] - point["accuracy"]["low"] for point in curve]
    assert widths[0] > widths[-1]


def test_an_estimator_that_wants_more_rows_says_so(fit: Any) -> None:
    notes: list[str] = []
    estimator = "sklearn.neighbors:KNeighborsClassifier"
    result = fit(stand_in(), estimator=estimator, shots=(1, 5), say=notes.append)
    assert [point["shots"] for point in result.metrics["few_shots"]] == [5]
    assert notes[0].startswith("no curve at 1 images a class: KNeighborsClassifier fails")


def broken(kind: str) -> StandIn:
    cache = stand_in()
    if kind == "one class":
        cache.labels[:] = 0
    elif kind == "no label":
        cache.labels[:] = -1
    elif kind == "nothing done":
        cache.status[:] = 0
    elif kind == "a single row of every class":
        cache.labels[3:] = -1
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
        ("a single row of every class", "a class with at least 2 training rows, found 1 of each"),
        ("split without train", "mark the training rows"),
        ("not finite", "not finite"),
        ("one group a class", "none can be held out"),
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
        ({"folds": 1}, "at least 2 for the number of folds, got 1"),
        ({"seed": -1}, "from 0 to 4294967295 for the seed, got -1"),
        ({"seed": 2**32}, "for the seed"),
        ({"Cs": (0.0,)}, "positive numbers for C"),
        ({"replicates": 0}, "number of resamples"),
        ({"head": "knn", "params": {"n_neighbors": 0}}, "n_neighbors"),
        ({"head": "svm", "params": {"C": -1.0}}, "'C' parameter of LinearSVC"),
        ({"test_share": 1.0}, "between 0 and 1"),
        ({"head": "ridge", "estimator": "sklearn.svm:SVC"}, "a run has one head"),
        ({"estimator": "sklearn.svm:SVX"}, "did you mean"),
        ({"task": "regression"}, "expected numbers in 'label'"),
        ({"task": "multilabel", "head": "knn"}, "the knn head does not fit the task multilabel"),
        ({"shots": (0,)}, "at least 1 image"),
        ({"shots": (1,), "head": "linear"}, "leave --shots out"),
        ({"head": "ridge", "Cs": (0.1,)}, "about the logistic head, found ridge"),
        ({"estimator": "sklearn.svm:SVC", "scoring": "log_loss"}, "about the logistic head"),
        ({"params": {"Cs": 0.1}}, "LogisticSweep fails"),
    ],
)
def test_bad_settings_are_named(fit: Any, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
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
    # A class may have fewer rows than there are folds.
    assert len(notes) == 2


def test_one_mistyped_label_stops_nothing(fit: Any) -> None:
    cache = replace(stand_in(), label_names=("ant", "bee", "cat", "bbe"))
    cache.labels[7] = 3
    notes: list[str] = []
    result = fit(cache, say=notes.append)
    assert notes == [
        "trained on, but held out by no fold: 1 class with a single training row (bbe): add images of them, or look "
        "for a mistyped label"
    ]
    assert result.metrics["test"]["accuracy"]["value"] > 0.75
    assert load_head(result.run_dir).class_names == ("ant", "bee", "cat", "bbe")


def test_classes_that_a_reader_takes_for_one_are_named(fit: Any) -> None:
    twins = (("Ant", "ant ", "bee"), "'Ant' and 'ant '"), (("caf\u00e9", "cafe\u0301", "tea"), "'caf\u00e9' and")
    for names, found in twins:
        notes = fit(replace(stand_in(), label_names=names)).notes
        assert any(
            note.startswith(f"names that differ only in case, blanks or Unicode form: {found}") for note in notes
        )
    assert not any("differ only" in note for note in fit(stand_in()).notes)


def test_one_mistyped_label_in_a_group_stops_nothing(fit: Any) -> None:
    cache = replace(stand_in(columns={"group": np.arange(240) // 4}), label_names=("ant", "bee", "cat", "bbe"))
    cache.labels[7] = 3
    result = fit(cache)
    assert any("(bbe)" in note and "single training group" in note for note in result.notes)
    assert result.metrics["test"]["accuracy"]["value"] > 0.75


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"zero-shot"}))  # which needs texts
def test_every_head_of_two_classes_is_saved_and_loaded(fit: Any, head: str) -> None:
    cache = stand_in()
    cache.labels[cache.labels == 2] = 0
    result = fit(cache, head=head, report=False, learning_curve=False)
    loaded = load_head(result.run_dir)  # without trust
    assert loaded.model.outputs == 2
    found = loaded.predict(cache.embeddings)
    assert (found == np.asarray(("ant", "bee"))[cache.labels]).mean() > 0.85


def test_figures_of_a_few_rows_that_are_all_right_are_no_points(fit: Any) -> None:
    result = fit(stand_in(60, spread=0.1), head="lda")
    figures = result.metrics["test"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert figures[name]["value"] == figures[name]["high"] == 1
        assert 0.6 < figures[name]["low"] < 0.9


def test_a_class_may_be_called_none(fit: Any) -> None:
    result = fit(replace(stand_in(), label_names=("None", "bee", "nan")))
    assert sum(result.metrics["test"]["rows"] for _ in (0,)) == 48
    assert not [note for note in result.notes if "without a label" in note]


def test_rows_without_a_group_are_not_one_group(fit: Any) -> None:
    groups = np.array(["burst"] * 6 + [""] * 234)
    result = fit(stand_in(columns={"group": groups}))
    assert 40 <= result.metrics["test"]["rows"] <= 56


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
    with pytest.raises(HeadError, match="is not a run folder"):
        fit(stand_in(), other)
    assert [p.name for p in other.iterdir()] == ["holiday.jpg"]
    with pytest.raises(HeadError, match="cannot write"):
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


def layered(**further: Any) -> StandIn:
    """Return a cache whose first layer tells one class, its second the other two, and whose last is noise."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    first = ((y == 0)[:, None] * 4 + rng.normal(size=(240, 5))).astype(np.float32)
    second = 100 * ((y == 1)[:, None] * 4 + rng.normal(size=(240, 4))).astype(np.float32)
    layers = {"blocks.1:avg": first, "blocks.2:avg": second}
    noise = rng.normal(size=(240, 6)).astype(np.float32)
    return StandIn(noise, y.astype(np.int32), ("ant", "bee", "cat"), layers=layers, **further)


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_a_head_on_the_layers_that_the_folds_choose(fit: Any, tmp_path: Path, head: str) -> None:
    cache = layered()
    result = fit(cache, head=head, layers=("all",), report=True, learning_curve=True, shots=(2,))
    loaded = load_head(tmp_path / "run")
    assert loaded.layers == ("blocks.1:avg", "blocks.2:avg")
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    at = [list(cache.keys).index(line["key"]) for line in lines]
    features = loaded.features({name: rows[at] for name, rows in cache.layers.items()})
    expected = [[float(line[f"p_{name}"]) for name in loaded.class_names] for line in lines]
    np.testing.assert_allclose(loaded.predict_proba(features), expected, atol=1e-3)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["layers"] == ["blocks.1:avg", "blocks.2:avg"]
    assert run["layer"] == loaded.layer == "blocks.1:avg + blocks.2:avg"
    table = result.metrics["layers"]
    assert [entry["layers"] for entry in table if entry["chosen"]] == [run["layers"]]
    assert len(table) == 5
    assert "chosen by 5 folds among 5 layers and concatenations: blocks.1:avg + blocks.2:avg" in result.notes
    page = (tmp_path / "run/report.html").read_text()
    assert "plot-layers" in page
    assert result.metrics["test"]["accuracy"]["value"] > 0.85
    assert len(result.metrics["learning_curve"]) > 1


def test_an_estimator_on_several_layers_takes_them_as_they_are(fit: Any, tmp_path: Path) -> None:
    cache = layered()
    options = {"max_depth": 3, "random_state": 0}
    fit(cache, estimator="sklearn.tree:DecisionTreeClassifier", layers=("blocks.1:avg", "blocks.2:avg"), params=options)
    loaded = load_head(tmp_path / "run", trust=True)
    assert loaded.layers == ("blocks.1:avg", "blocks.2:avg")
    right = loaded.predict(loaded.features(cache.layers)) == np.asarray(cache.label_names)[cache.labels]
    assert right.mean() > 0.8


def test_layers_for_several_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = layered(columns={"size": np.linspace(0, 1, 240)})
    near = np.linspace(0, 1, 240) + np.random.default_rng(1).normal(0, 0.1, 240)
    cache.layers["blocks.2:avg"] = np.stack([near, np.ones(240)], axis=1).astype(np.float32)
    monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
    settings = FitSettings(layers=("all",), folds=3, learning_curve=False, report=False, device="cpu")
    fit_heads("c.h5", tmp_path / "run", ["label", "size"], settings)
    assert load_head(tmp_path / "run" / "label").layers == ("blocks.1:avg",)
    assert load_head(tmp_path / "run" / "size").layers == ("blocks.2:avg",)


def test_layers_that_cannot_be_compared_are_refused(fit: Any) -> None:
    for settings, message in (
        ({"layers": ("a", "b"), "layer": "c"}, "--layer c or --layers a,b"),
        ({"layers": ("a", "b"), "head": "linear"}, "the linear head has not"),
        ({"layers": ("blocks.1:avg",)}, "at least 2 layers"),
        ({"layers": ("blocks.1:avg", "blocks.9")}, "no layer 'blocks.9'"),
    ):
        with pytest.raises(PipelineError, match=message) as caught:
            fit(layered(), **settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["logistic", "ridge", "svm", "centroid", "knn"])
def test_features_that_hardly_vary_make_no_worse_head(fit: Any, tmp_path: Path, head: str) -> None:
    cache = stand_in()
    usual = fit(cache, tmp_path / "usual", head=head, **({"Cs": "auto"} if head == "logistic" else {}))
    small = replace(cache, embeddings=(cache.embeddings * 1e-6).astype(np.float32))
    result = fit(small, head=head, **({"Cs": "auto"} if head == "logistic" else {}))
    assert result.metrics["test"]["log_loss"]["value"] < usual.metrics["test"]["log_loss"]["value"] + 0.05
    assert any("are divided by that before the fit" in note for note in result.notes)
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        line = next(iter(csv.DictReader(file)))
    row = list(cache.keys).index(line["key"])
    for trust in (False, True):
        loaded = load_head(tmp_path / "run", trust=trust)
        probabilities = loaded.predict_proba(small.embeddings[row : row + 1])[0]
        assert [float(line[f"p_{n}"]) for n in loaded.class_names] == pytest.approx(probabilities, abs=1e-3)


def test_settings_of_the_user_count_in_the_units_of_the_features(fit: Any) -> None:
    small = stand_in()
    small = replace(small, embeddings=(small.embeddings * 1e-6).astype(np.float32))
    for settings in ({"Cs": (1.0,)}, {"estimator": "sklearn.linear_model:RidgeClassifier"}, {"scaling": "standard"}):
        assert not any("are divided by" in note for note in fit(small, **settings).notes)


@pytest.mark.parametrize("rows", [3, 12])
def test_figures_that_few_rows_cannot_give_are_named_and_not_nan(fit: Any, tmp_path: Path, rows: int) -> None:
    values = np.random.default_rng(1).normal(size=rows)
    few = stand_in(rows, columns={"size": values})
    result = fit(few, target="size", task="regression", report=True, learning_curve=True)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    said = "not defined" if rows == 3 else "(no interval)"
    assert said in result.headlines()[0]
    assert f"On {'1 test row' if rows == 3 else '2 test rows'}: R² " in page
    for text in (
        *result.headlines(),
        *result.advice(),
        *re.findall(r">([^<]*)<", re.sub("(?s)<script.*?</script>", "", page)),
    ):
        assert not re.search(r"\bnan\b", text), text


def test_one_mistyped_number_does_not_make_every_row_unsure(fit: Any) -> None:
    age, split = np.arange(240) % 60.0, np.where(np.arange(240) < 200, "train", "test")
    losses = []
    for value in (3.0, 1e8):
        age[3] = value  # a training row
        columns = {"age": age.copy(), "split": split}
        losses.append(fit(stand_in(columns=columns), features=("age",)).metrics["test"]["log_loss"]["value"])
    assert losses[1] < losses[0] + 0.1
