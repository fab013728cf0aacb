"""The report of a head that predicts numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import regression
from pipeline.report import plots
from pipeline.report.content import MOST_IMAGES, Content, cards, found, number_cell, picture, rows_used, sweep_plot

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

_CARDS = {
    "r2": ("R²", "share of the variance that the prediction explains; 0 is the mean of all, 1 is perfect"),
    "mae": ("Mean absolute error", "in the units of the target"),
    "rmse": ("Root mean squared error", "in the units of the target; large errors weigh more"),
    "spearman": ("Spearman correlation", "of the ranks: is the order right?"),
}


def numbers_content(cache: Cache, rows: Rows, results: dict[str, Any], run: dict[str, Any]) -> Content:
    """Return what the page of a regression run shows.

    Parameters
    ----------
    cache, rows, results, run
        As in `pipeline.report.page.write_report`.
    """
    split = results["held_out"]
    at = rows.of(split)
    truth, predicted = rows.y[at], results["predictions"][split][:, 0]
    alpha = run["chosen"].get("alpha")
    how = f" alpha = {alpha:.3g}, chosen on training rows left out of the fit." if alpha else ""
    content = Content(
        lead=f"{found(results, rows)} Numbers of {rows.target!r}, {rows_used(rows, run)}.{how}",
        cards=cards(_CARDS, results["metrics"][split]),
    )
    places = [
        content.plot(
            "predicted",
            plots.predicted_figure(truth, predicted, rows.target),
            "Predicted against true",
            f"The {split} rows; on the dashed line the prediction is right.",
            420,
        ),
        content.plot(
            "residuals",
            plots.residual_figure(predicted, truth - predicted, rows.target),
            "Residuals",
            "True minus predicted: a slope or a bend is something that the head has missed.",
            420,
        ),
    ]
    if len(results["sweep"]) > 1:
        places.append(sweep_plot(content, results))
    content.pair([*content.layers(results), *places, *content.curves(results, rows.task)])
    content.tables.append(
        {
            "id": "parts",
            "title": "Along the range",
            "hint": f"The {split} rows in parts from the smallest to the largest true value. Click a heading to sort.",
            "columns": [(n, False) for n in ("from", "to", "rows", "mean of predicted − true", "mean absolute error")],
            "rows": [
                [number_cell(part[name]) for name in ("low", "high", "rows", "bias", "mae")]
                for part in regression.parts_of_range(truth, predicted)
            ],
        }
    )
    worst = np.argsort(-np.abs(truth - predicted), kind="stable")[:MOST_IMAGES]
    content.galleries.append(
        {
            "id": "errors",
            "title": "Largest errors",
            "hint": f"Rows of the {split} split where the prediction is farthest off.",
            "pictures": [
                picture(cache, int(rows.index[at[i]]), f"{truth[i]:.4g}", f"{predicted[i]:.4g}", "") for i in worst
            ],
        }
    )
    return content
