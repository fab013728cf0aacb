from __future__ import annotations

import math
from typing import Any

from pipeline.report.content import Content
from pipeline.report.trust import add_trust

REACHED = {"value": 0.88, "low": 0.8, "high": 0.93}


def cells(content: Content) -> list[list[str]]:
    return [[cell["text"] for cell in row] for row in content.tables[0]["rows"]]


def test_classes_have_curves_and_a_table_of_sets() -> None:
    content = Content("lead")
    curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "area": 0.1}
    figures: dict[str, Any] = {
        "selective": {"confidence": curve, "novelty": curve},
        "conformal": [
            {"asked": 0.9, "reached": REACHED, "rows": 50, "size": 1.25, "empty": 0.0, "single": 0.75},
        ],
        "calibration_rows": 200,
        "calibration_counted": "groups",
        "calibration_source": "out-of-fold",
    }
    add_trust(content, figures, "test")
    assert [series["name"] for series in content.figures["risk"]["series"]] == ["by confidence", "by novelty"]
    assert content.figures["risk"]["series"][0]["y"] == [0.0, 0.25]
    assert cells(content) == [["0.9", "0.8800", "0.8000", "0.9300", "1.2500", "0.0000", "0.7500"]]
    assert "200 groups: training rows held out by folds" in content.tables[0]["hint"]


def test_numbers_have_a_table_of_intervals_and_one_without_end_says_so() -> None:
    content = Content("lead")
    entry = {"asked": 0.95, "reached": REACHED, "rows": 5, "half_width": math.inf}
    calibrated = {"calibration_rows": 1, "calibration_counted": "rows", "calibration_source": "val"}
    add_trust(content, {"conformal": [entry], **calibrated}, "test")
    assert "Calibrated on 1 row: the val split" in content.tables[0]["hint"]
    assert content.figures == {}
    assert cells(content) == [["0.95", "0.8800", "0.8000", "0.9300", "all"]]
    assert content.tables[0]["title"].startswith("Intervals")


def test_a_run_that_measures_neither_adds_nothing() -> None:
    content = Content("lead")
    add_trust(content, {}, "test")
    assert (content.tables, content.layout) == ([], [])
