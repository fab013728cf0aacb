from __future__ import annotations

import json

import numpy as np

from pipeline.report import plots


def test_a_gap_in_a_curve_is_none_and_the_figure_is_plain_json() -> None:
    figure = plots.range_figure([0.1, 1.0, 10.0], [2.0, float("nan"), 1 / 3], 1.0)
    assert figure["series"][0]["y"] == [2.0, None, 0.333333]
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure


def test_a_matrix_of_some_classes_keeps_the_rows_predicted_as_others() -> None:
    confusion = np.array([[9, 0, 4], [1, 9, 0], [0, 2, 9]])
    figure = plots.confusion_figure(confusion, ("a", "b", "c" * 30), [2, 0])
    assert (figure["matrix"], figure["totals"]) == ([[9, 0], [4, 9]], [11, 13])
    assert (figure["full"], figure["names"][1]) == (["c" * 30, "a"], "a")


def test_an_expected_point_stands_beside_the_learning_curve() -> None:
    curve = [{"rows": n, "accuracy": {"value": n / 100, "low": 0.1, "high": 0.9}} for n in (20, 60)]
    (alone,) = plots.learning_figure(curve, "rows", "rows", "accuracy", "accuracy")["series"]
    assert (alone["x"], alone["y"]) == ([20, 60], [0.2, 0.6])
    ahead = {"rows": 120, "accuracy": {"value": 0.8, "low": 0.7, "high": 0.85}}
    measured, expected = plots.learning_figure(curve, "rows", "rows", "accuracy", "accuracy", expected=ahead)["series"]
    assert measured["y"] == alone["y"]
    assert (expected["x"], expected["low"], expected["high"]) == ([120], [0.7], [0.85])


def test_dots_are_bounded() -> None:
    values = np.arange(20_000.0)
    series = plots.predicted_figure(values, values + 1, "n")["series"][0]
    assert len(series["x"]) == len(set(series["x"])) == 5000
    assert all(b == a + 1 for a, b in zip(series["x"], series["y"], strict=True))


def test_shares_stand_below_each_other_with_their_intervals() -> None:
    entries = [
        {"name": "first", "note": "n", "marked": False, "value": 0.9, "low": 0.8, "high": 0.95},
        {"name": "x" * 60, "note": "n", "marked": True, "value": 0.5, "low": 0.4, "high": 0.6},
    ]
    figure = plots.share_figure(entries, "accuracy")
    assert dict(zip(figure["y"]["names"], figure["y"]["ticks"], strict=True))["first"] == 1  # at the top
    assert max(map(len, figure["y"]["names"])) < 60
    marked, others = figure["series"]
    assert (marked["x"], marked["y"], marked["low"]) == ([0.5], [0], [0.4])
    assert (others["x"], others["y"], others["high"]) == ([0.9], [1], [0.95])
    without = plots.share_figure([entry | {"low": None, "high": None} for entry in entries], "loss")
    assert all("low" not in series for series in without["series"])
