"""The part of a report about the answers for groups: per group beside per row, and how rows are pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.evaluation.tasks import TASKS
from pipeline.report.content import number_cell, text_cell

if TYPE_CHECKING:
    from pipeline.report.content import Content

_HOW = {
    "mean": "mean of the rows' log-probabilities (log-odds of labels, numbers)",
    "max": "largest of the rows' log-probabilities (log-odds of labels, numbers)",
    "embeddings": "a head of its own on the mean embedding of the rows",
}


def add_groups(content: Content, results: dict[str, Any], task: str) -> None:
    """Add the tables of the answers for groups, where there are any.

    Parameters
    ----------
    content : Content
        What the page shows.
    results : dict
        Of the fit.
    task : str
        Name of the task.
    """
    metrics, split = results["metrics"], results["held_out"]
    if "pooling" not in metrics or "per_group" not in metrics[split]:
        return
    per, of_groups = metrics["pooling"]["per"], metrics[split]["per_group"]
    name = TASKS[task].measure_name
    difference = of_groups["difference"]
    rows = [
        [text_cell(figure.replace("_", " ")), *_interval(metrics[split].get(figure)), *_interval(value)]
        for figure, value in of_groups.items()
        if _is_figure(value) and figure not in ("single", "difference")
    ]
    rows.append([text_cell(f"{name}, one row of each group"), *_interval(of_groups["single"]), *_interval(None)])
    content.tables.append(
        {
            "id": "groups",
            "title": f"One answer per {per}",
            "hint": f"{of_groups['groups']} groups of {metrics[split]['rows']} {split} rows; intervals over groups. "
            f"Against one row of each group, drawn at random, the answer for the group changes the {name} by "
            f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}). "
            f"Rows are pooled by the {_HOW[metrics['pooling']['how']].removeprefix('a ')}.",
            "columns": [
                ("figure", True),
                *(("per row", False), ("interval", False)),
                *((f"per {per}", False), ("interval", False)),
            ],
            "rows": rows,
        }
    )
    candidates = metrics["pooling"]["candidates"]
    if len(candidates) > 1:
        content.tables.append(
            {
                "id": "pooling",
                "title": "Choice of pooling",
                "hint": "Training groups held out by the folds. Of those whose loss cannot be distinguished from the "
                "least, the simplest is taken.",
                "columns": [("pooling", True), ("loss", False), (name, False), ("", True)],
                "rows": [
                    [
                        text_cell(_HOW[entry["pooling"]]),
                        number_cell(entry["loss"]),
                        number_cell(entry[name]),
                        text_cell("taken" if entry["chosen"] else ""),
                    ]
                    for entry in candidates
                ],
            }
        )


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and {"value", "low", "high"} <= value.keys()


def _interval(figure: dict[str, float] | None) -> list[dict[str, Any]]:
    if figure is None:
        return [text_cell("–"), text_cell("")]
    return [number_cell(figure["value"]), text_cell(f"{figure['low']:.4g} to {figure['high']:.4g}")]
