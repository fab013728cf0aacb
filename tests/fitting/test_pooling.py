"""One answer per group: chosen on held-out training groups, measured by groups, and better where rows are noisy."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads import load_head
from pipeline.stages.fit_head import FitResult, FitSettings, fit_head
from tests.heads.standin import StandIn

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"replicates": 200, "learning_curve": False, "device": "cpu", "report": False, "folds": 3}


def planted(
    n_groups: int = 60,
    rows: int = 8,
    *,
    of_group: float = 0.3,
    of_row: float = 3.0,
    seed: int = 0,
    task: str = "classes",
) -> StandIn:
    """Return groups whose rows are their class's centre, with noise that they share and noise of their own."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_groups) % 3
    centres = 1.5 * rng.normal(size=(3, 10))
    X = np.repeat(centres[y] + of_group * rng.normal(size=(n_groups, 10)), rows, axis=0)
    X += of_row * rng.normal(size=X.shape)
    patient = np.repeat([f"p{i:03d}" for i in range(n_groups)], rows)
    sets = np.array(["a", "b", "a|b"])[np.repeat(y, rows)]
    numbers = np.repeat(y + 0.1 * rng.normal(size=n_groups), rows)
    columns = {"patient": patient, "sets": sets, "number": numbers}
    return StandIn(X.astype(np.float32), np.repeat(y, rows).astype(np.int32), ("ant", "bee", "cat"), columns=columns)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that fits on a cache in memory."""

    def run(cache: StandIn, name: str = "run", say: Any = None, **settings: Any) -> FitResult:
        monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        sweep = {"Cs": (0.1,)} if settings.get("head", "logistic") == "logistic" and "estimator" not in settings else {}
        if settings.get("task") == "regression":
            sweep = {}
        settings = QUICK | {"per": "patient"} | sweep | settings
        return fit_head("c.h5", tmp_path / name, FitSettings(**settings), say=say)

    return run


@pytest.mark.parametrize(
    ("target", "task", "measure"),
    [(None, "classification", "accuracy"), ("sets", "multilabel", "subset_accuracy"), ("number", "regression", "mae")],
)
def test_the_answer_for_a_group_is_better_than_one_row(fit: Any, target: Any, task: Any, measure: str) -> None:
    result = fit(planted(), target=target, task=task)
    of_groups = result.metrics["test"]["per_group"]
    difference = of_groups["difference"]
    if task == "regression":
        assert difference["high"] < 0
    else:
        assert difference["low"] > 0
    assert of_groups[measure]["value"] - of_groups["single"]["value"] == pytest.approx(difference["value"])
    assert of_groups["groups"] * 8 == result.metrics["test"]["rows"]
    assert f"one answer per patient: {TASKS[task].headline(of_groups)}, on" in result.headlines()[1]


def test_labels_of_chance_are_not_learned(fit: Any) -> None:
    """Rows of a group look alike: a group on both sides would be recognised."""
    cache = planted(90, of_group=3.0, of_row=0.2)
    cache.labels = np.repeat(np.random.default_rng(5).integers(0, 3, 90), 8).astype(np.int32)
    result = fit(cache)
    for figure in (result.metrics["test"]["per_group"]["accuracy"], result.metrics["test"]["accuracy"]):
        assert figure["low"] < 1 / 3 < figure["high"]
    assert all(entry["accuracy"] < 0.55 for entry in result.metrics["pooling"]["candidates"])


def test_the_tables_agree_with_the_figures(fit: Any, tmp_path: Path) -> None:
    result = fit(planted(), pooling="mean")
    with (tmp_path / "run/predictions-per-group.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        *("group", "key", "rows", "split", "label", "predicted"), "p_ant", "p_bee", "p_cat",
    ]  # fmt: skip
    right = [line["label"] == line["predicted"] for line in lines]
    assert np.mean(right) == pytest.approx(result.metrics["test"]["per_group"]["accuracy"]["value"])
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["per"] for row in rows} == {line["group"] for line in lines}
    assert all(row["per"] == row["group"] for row in rows)
    # A mean of log-probabilities, by hand.
    pooling = result.metrics["pooling"]
    its = [row for row in rows if row["per"] == lines[0]["group"]]
    log = np.log([[float(row[f"p_{name}"]) for name in ("ant", "bee", "cat")] for row in its]).mean(axis=0)
    odds = np.exp(log / pooling["temperature"])
    assert [float(lines[0][f"p_{name}"]) for name in ("ant", "bee", "cat")] == pytest.approx(
        odds / odds.sum(), rel=1e-3
    )
    assert load_head(tmp_path / "run").pooling.how == "mean"  # type: ignore[union-attr]
    assert json.loads((tmp_path / "run/run.json").read_text())["pooling"]["per"] == "patient"
    assert result.groups_to_pandas()["group"].tolist() == [line["group"] for line in lines]


def test_the_folds_choose_what_suits_the_data(fit: Any) -> None:
    """Where one row of a group shows the class and the others show nothing, the largest counts."""
    rng = np.random.default_rng(1)
    y = np.arange(120) % 2
    X = rng.normal(size=(120, 12, 6))
    X[y == 1, 0] += 6.0
    cache = StandIn(
        X.reshape(-1, 6).astype(np.float32),
        np.repeat(y, 12).astype(np.int32),
        ("well", "ill"),
        columns={"patient": np.repeat(np.arange(120), 12)},
    )
    result = fit(cache)
    loss = {entry["pooling"]: entry["loss"] for entry in result.metrics["pooling"]["candidates"]}
    assert set(loss) == {"mean", "max", "embeddings"}
    assert result.metrics["pooling"]["how"] != "mean"
    chosen = next(entry for entry in result.metrics["pooling"]["candidates"] if entry["chosen"])
    assert chosen["tied"]
    assert result.metrics["test"]["per_group"]["accuracy"]["value"] > 0.8


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_a_pooling_can_be_fixed(fit: Any, tmp_path: Path, head: str) -> None:
    result = fit(planted(), head=head, pooling="embeddings")
    assert [entry["pooling"] for entry in result.metrics["pooling"]["candidates"]] == ["embeddings"]
    assert (tmp_path / "run/head-per-group.safetensors").exists()
    assert result.metrics["test"]["per_group"]["difference"]["low"] > 0


def test_what_has_no_head_on_means(fit: Any) -> None:
    with pytest.raises(HeadError, match="take --pooling mean or max"):
        fit(planted(), head="linear", pooling="embeddings")
    notes: list[str] = []
    assert fit(planted(), head="linear", say=notes.append).metrics["pooling"]["how"] == "mean"
    assert any("--pooling mean is taken" in note for note in notes)
    with pytest.raises(HeadError, match="--pooling max is about the answers of --per"):
        fit(planted(), per=None, pooling="max")


def test_the_page_shows_groups_beside_rows(fit: Any, tmp_path: Path) -> None:
    fit(planted(), report=True)
    page = (tmp_path / "run/report.html").read_text()
    assert "One answer per patient" in page
    assert "Choice of pooling" in page
