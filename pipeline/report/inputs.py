"""The part of a report about the inputs of a head: what each reaches alone, and what the others add to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.fitting.inputs import COLUMNS
from pipeline.report.content import number_cell, text_cell

if TYPE_CHECKING:
    from pipeline.report.content import Content


def add_inputs(content: Content, results: dict[str, Any]) -> None:
    """Add the table of the inputs, where there are several.

    Parameters
    ----------
    content : Content
        What the page shows.
    results : dict
        Of the fit.
    """
    found = results["metrics"].get("inputs")
    if not found:
        return
    measure, columns = found["measure"], found["columns"]
    of_columns = " Columns that reach nearly everything alone may hold the label." if columns else ""
    every = [text_cell("all together"), *_interval(found["all"]), text_cell("–"), text_cell("")]
    rows = [
        [
            text_cell(_name(each["inputs"], columns)),
            *_interval(each["figure"]),
            *_interval(each["others_add"], signed=True),
        ]
        for each in found["alone"]
    ]
    guess = [text_cell("constant guess"), number_cell(found["guess"]), *[text_cell(text) for text in ("", "–", "")]]
    content.tables.append(
        {
            "id": "inputs",
            "title": "What the inputs add",
            "hint": f"The same head on each input alone, on the same {found['rows']} {found['split']} rows; "
            f"differences are paired.{of_columns}",
            "columns": [
                ("inputs", True),
                *((measure, False), ("interval", False)),
                *((f"{measure}: change by all others", False), ("interval", False)),
            ],
            "rows": [every, *rows, guess],
        }
    )


def _name(inputs: str, columns: list[str]) -> str:
    return f"{inputs}: {', '.join(columns)}" if inputs == COLUMNS else inputs


def _interval(figure: dict[str, float], *, signed: bool = False) -> list[dict[str, Any]]:
    sign = "+" if signed else ""
    texts = {name: f"{value:{sign}.4f}" for name, value in figure.items()}
    return [number_cell(figure["value"], texts["value"]), text_cell(f"{texts['low']} to {texts['high']}")]
