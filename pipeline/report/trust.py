"""How far predictions can be trusted: label sets and intervals, and the error where only sure rows are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.core.text import counted
from pipeline.report.content import number_cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.report.content import Content

_COLOURS = {"confidence": "#1f5fa8", "novelty": "#d9730d"}
_SOURCES = {"out-of-fold": "training rows held out by folds", "val": "the val split"}


def add_trust(content: Content, figures: Mapping[str, Any], split: str) -> None:
    """Add the curves of risk against coverage, and the table of label sets or intervals.

    Parameters
    ----------
    content : Content
    figures : mapping
        Of `pipeline.fitting.calibration.trust_figures`.
    split : str
        The rows that measure.
    """
    if figures.get("selective"):
        content.pair(
            [
                content.plot(
                    "risk",
                    risk_figure(figures["selective"]),
                    "Error of the rows kept",
                    f"Share of wrong predictions on the {split} rows where the least confident, or most novel, get no "
                    "label: predict --abstain-confidence and --abstain-novelty.",
                )
            ]
        )
    if figures.get("conformal"):
        content.tables.append(_coverage_table(figures, split))


def risk_figure(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Draw the error of the rows kept against their share, one line for each order in which rows are left out."""
    series = [
        {
            "x": [float(f"{x:.5g}") for x in curve["coverage"]],
            "y": [float(f"{y:.5g}") for y in curve["risk"]],
            "name": f"by {name}",
            "colour": _COLOURS[name],
            "size": 0,
            "tip": f"by {name}" + "\nrows kept {x}\nerror {y}",
        }
        for name, curve in curves.items()
    ]
    return {"x": {"title": "share of rows kept", "range": [0, 1.01]}, "y": {"title": "error"}, "series": series}


def _coverage_table(figures: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the table of what label sets, or intervals, reach."""
    entries = figures["conformal"]
    numbers = "half_width" in entries[0]
    own = ("half width",) if numbers else ("mean size", "empty", "one class")
    names = ("half_width",) if numbers else ("size", "empty", "single")
    what = "Intervals" if numbers else "Label sets"
    source = _SOURCES[figures["calibration_source"]]
    calibrated = counted(figures["calibration_rows"], figures["calibration_counted"].removesuffix("s"))
    return {
        "id": "coverage",
        "title": f"{what} of predict --coverage",
        "hint": f"How often the truth lies within, on the {split} rows, with the interval of that share. Calibrated on "
        f"{calibrated}: {source}.",
        "columns": [(name, False) for name in ("asked", "reached", "from", "to", *own)],
        "rows": [
            [
                number_cell(entry["asked"], f"{entry['asked']:g}"),
                *(number_cell(entry["reached"][end]) for end in ("value", "low", "high")),
                *(_cell(entry[name]) for name in names),
            ]
            for entry in entries
        ],
    }


def _cell(value: float) -> dict[str, Any]:
    return number_cell(value) if math.isfinite(value) else {"text": "all", "sort": "1e300", "left": False}
