from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.extrapolation import Doubling
from pipeline.fitting.advice import what_would_help
from pipeline.fitting.rows import Rows

ACCURACY = {"value": 0.9, "low": 0.85, "high": 0.94}


def rows_of(count: int, *, classes: int = 2, task: Any = "classification") -> Rows:
    """Return this many training rows and one test row."""
    y = np.arange(count + 1) % classes
    split = np.array(["train"] * count + ["test"])
    return Rows(np.arange(count + 1), y, tuple("abcdefgh"[:classes]), None, split, "column", task)


def results(**further: Any) -> dict[str, Any]:
    return {"metrics": {"test": {"accuracy": ACCURACY}}, "held_out": "test"} | further


def advised(rows: Rows, found: dict[str, Any], layers: tuple[str, ...] = ("penultimate",), **kwargs: Any) -> Any:
    entries = what_would_help(rows, found, layers, **{"linear": True} | kwargs)
    assert all(entry["text"].endswith((".", "sample.")) for entry in entries)
    return {entry["about"]: entry for entry in entries}


@pytest.mark.parametrize(("low", "begins"), [(0.004, "Twice the training rows (400)"), (-0.01, "No measurable gain")])
def test_more_labels_are_advised_only_where_the_gain_is_measurable(low: float, begins: str) -> None:
    doubling = Doubling(400, Interval(0.92, 0.88, 0.95), Interval(0.02, low, 0.04))
    found = advised(rows_of(200), results(doubling=doubling))["more labels"]
    assert found["text"].startswith(begins)
    assert f"+0.0200 ({low:+.4f} to +0.0400), to 0.9200 (0.8800 to 0.9500)" in found["text"]
    assert found["figures"]["measurable"] == (low > 0)


def test_without_a_doubling_the_last_step_is_told_and_without_a_curve_the_reason() -> None:
    metrics = {"test": {"r2": {"value": 0.8, "low": 0.7, "high": 0.85}}}
    curve = [{"rows": n, "r2": {"value": n / 200, "low": 0.1, "high": 0.9}} for n in (20, 60, 160)]
    numbers = {"metrics": metrics, "held_out": "test", "learning_curve": curve, "doubling": None}
    entries = advised(rows_of(160, classes=1, task="regression"), numbers)
    assert set(entries) == {"more labels", "another layer", "more views", "another network"}
    assert entries["more labels"]["text"].startswith("From 60 to 160 training rows the R² went from 0.3000 to 0.8000 (")
    assert "leaves 0.2000 to gain, by its interval at most 0.3000" in entries["another network"]["text"]
    assert advised(rows_of(9), results(learning_curve=[]))["more labels"]["text"].startswith("Not known: there is no")


def entry(loss: float, *layers: str, chosen: bool = False) -> dict[str, Any]:
    return {"layers": list(layers), "width": 8, "loss": loss, "accuracy": ACCURACY, "chosen": chosen}


def test_compared_layers_are_named_with_what_the_folds_measured() -> None:
    usual, deep = entry(0.5, "penultimate"), entry(0.25, "a", "b", chosen=True)
    text = advised(rows_of(50), results(layers=[usual, deep]))["another layer"]["text"]
    assert text == (
        "Of 2 layers and concatenations the folds took a + b, with accuracy 0.9000 (0.8500 to 0.9400) and a loss of "
        "0.25; penultimate, the default, has accuracy 0.9000 (0.8500 to 0.9400) and a loss of 0.5."
    )
    taken = [entry(0.5, "penultimate", chosen=True), entry(0.7, "a"), entry(0.6, "b")]
    found = advised(rows_of(50), results(layers=taken))["another layer"]
    assert "; the best other one, b, has accuracy" in found["text"]
    assert found["figures"]["other"]["loss"] == 0.6


@pytest.mark.parametrize(
    ("layers", "says"),
    [(("penultimate",), "holds one layer"), (("penultimate", "b"), "holds 2 layers, which fit-head")],
)
def test_layers_that_were_not_compared_have_the_reason(layers: tuple[str, ...], says: str) -> None:
    assert says in advised(rows_of(50), results(), layers)["another layer"]["text"]


@pytest.mark.parametrize(
    ("views", "says"),
    [((3, 3), "takes 3 views of every image; fit-head --no-views"), ((1, 2), "holds 2 views"), ((1, 1), "one view")],
)
def test_views_that_were_not_compared_have_the_reason(views: tuple[int, int], says: str) -> None:
    assert says in advised(rows_of(50), results(), views=views)["more views"]["text"]


def test_a_mirror_image_is_advised_only_for_classes_that_stay_themselves_in_a_mirror() -> None:
    text = advised(rows_of(50), results())["more views"]["text"]
    assert "where a mirrored image stays in its class" in text
    assert "letters and digits" in text


@pytest.mark.parametrize(
    ("count", "accuracy", "linear", "says"),
    [
        (400, 0.9, True, "There is room: 400 training rows, 200 a class, and 10.0% wrong. pipeline finetune CACHE RUN"),
        (400, 0.9, False, "from a run with --head logistic"),
        (60, 0.9, True, "Little room: 60 training rows, 30 a class, and 10.0% wrong; fewer than 100 a class"),
        (400, 0.995, True, "Little room: 400 training rows, 200 a class, and 0.5% wrong; less than 2% wrong"),
    ],
)
def test_tuning_needs_rows_and_errors(count: int, accuracy: float, linear: bool, says: str) -> None:
    found = results()
    found["metrics"]["test"]["accuracy"] = ACCURACY | {"value": accuracy}
    assert says in advised(rows_of(count), found, linear=linear)["tuning the network"]["text"]


def test_labels_that_held_out_heads_contradict_are_counted() -> None:
    rows = rows_of(6)  # labels 0 1 0 1 0 1
    sure_of_first = np.tile([0.95, 0.05], (6, 1))
    sure_of_first[3] = [0.6, 0.4]  # wrong, not surely
    sure_of_first[5] = np.nan  # no fold held it out
    found = advised(rows, results(oof_predictions=sure_of_first))["better labels"]
    assert found["figures"] == {"contradicted": 1, "rows": 5}
    assert found["text"].startswith("1 of 5 training labels (20.0%) is contradicted")
    assert "check-labels" in found["text"]
    right = np.eye(2)[rows.y[:6]]
    assert "check-labels" not in advised(rows, results(oof_predictions=right))["better labels"]["text"]
