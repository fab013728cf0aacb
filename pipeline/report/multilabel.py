"""The report of a head that predicts label sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.calibration import reliability_bins
from pipeline.evaluation.multilabel import THRESHOLD, joined
from pipeline.report import plots
from pipeline.report.content import (
    MOST_IMAGES,
    Content,
    cards,
    found,
    number_cell,
    picture,
    reliability_plots,
    rows_used,
    text_cell,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

_CARDS = {
    "mean_average_precision": ("Mean average precision", "mean over the labels of the area under precision and recall"),
    "micro_f1": ("Micro F1", "of all pairs of an image and a label"),
    "macro_f1": ("Macro F1", "mean of the labels' F1"),
    "subset_accuracy": ("Subset accuracy", "share of rows whose whole set of labels is right"),
}


def labels_content(cache: Cache, rows: Rows, results: dict[str, Any], run: dict[str, Any]) -> Content:
    """Return what the page of a multilabel run shows.

    Parameters
    ----------
    cache, rows, results, run
        As in `pipeline.report.page.write_report`.
    """
    split = results["held_out"]
    figures = results["metrics"][split]
    content = Content(
        lead=f"{found(results, rows)} {len(rows.class_names)} labels, any number of them on an image, "
        f"{rows_used(rows, run)}. "
        f"A label is predicted from a probability of {THRESHOLD:g} on.",
        cards=cards(_CARDS, figures),
    )
    _add_figures(content, rows, results)
    content.tables.append(
        {
            "id": "labels",
            "title": "Labels",
            "hint": f"On the {split} rows. Click a heading to sort.",
            "columns": [
                ("label", True), ("rows", False), ("average precision", False), ("interval", False),
                ("recall", False), ("precision", False), ("F1", False),
            ],
            "rows": [_label_row(entry) for entry in figures["labels"]],
        }
    )  # fmt: skip
    at = rows.of(split)
    content.galleries += _gallery(
        cache,
        rows,
        at,
        results["predictions"][split],
        "mistakes",
        "Most confident mistakes",
        f"Rows of the {split} split where the head is surest of a label that is not there, or of its absence.",
    )
    if "oof_predictions" in results:
        content.galleries += _gallery(
            cache,
            rows,
            rows.of("train"),
            results["oof_predictions"],
            "doubtful",
            "Labels to look at again",
            "Training rows that heads fitted without them would label otherwise, surest first: wrong labels gather "
            "here, with hard images.",
        )
    return content


def _add_figures(content: Content, rows: Rows, results: dict[str, Any]) -> None:
    split = results["held_out"]
    count = min(len(rows.class_names), plots.MOST_LABELS)
    table = results["metrics"][split]["labels"]
    more = f" The {count} worst of them." if len(table) > count else ""
    places = [
        content.plot(
            "precision",
            plots.precision_figure(table),
            "Average precision of each label",
            f"With its interval, on the {split} rows.{more}",
            int(np.clip(140 + 24 * count, 300, 1200)),
        )
    ]
    truth = rows.y[rows.of(split)].ravel()
    curves = {"calibrated" if "uncalibrated" in results else "as fitted": results["predictions"][split]}
    if "uncalibrated" in results:
        curves["before"] = results["uncalibrated"][split]
    bins = {name: reliability_bins(p.ravel(), truth) for name, p in curves.items()}
    figure = plots.reliability_figure(bins, "probability", "share that has the label")
    hint = "How often a label of that probability is there, over all labels."
    places += reliability_plots(content, figure, hint, len(truth))
    content.pair(content.layers(results))
    content.pair(places + content.curves(results, rows.task))


def _label_row(entry: dict[str, Any]) -> list[dict[str, Any]]:
    figure = entry["average_precision"]
    known = np.isfinite(figure["value"])
    return [
        text_cell(entry["label"]),
        number_cell(entry["rows"]),
        number_cell(figure["value"]),
        number_cell(figure["low"], f"{figure['low']:.4f} to {figure['high']:.4f}" if known else "–"),
        number_cell(entry["recall"]),
        number_cell(entry["precision"]),
        number_cell(entry["f1"]),
    ]


def _gallery(
    cache: Cache,
    rows: Rows,
    at: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    name: str,
    title: str,
    hint: str,
) -> list[dict[str, Any]]:
    """Return the rows with the largest error of any label, or nothing where there is no error."""
    truth = rows.y[at]
    error = np.abs(probabilities - truth)
    worst = error.argmax(axis=1)
    largest = error[np.arange(len(at)), worst]
    order = np.argsort(-largest, kind="stable")[:MOST_IMAGES]
    order = order[largest[order] > THRESHOLD]
    pictures = []
    for i in order:
        label = rows.class_names[worst[i]]
        predicted = joined(probabilities[i] >= THRESHOLD, rows.class_names) or "none"
        true = joined(truth[i], rows.class_names) or "none"
        remark = f"({label} {probabilities[i, worst[i]]:.1%})"
        pictures.append(picture(cache, int(rows.index[at[i]]), true, predicted, remark))
    return [{"id": name, "title": title, "hint": hint, "pictures": pictures}] if pictures else []
