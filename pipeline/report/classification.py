"""The report of a head that predicts one class of K."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import calibration, classification
from pipeline.report import plots
from pipeline.report.confusions import add_pairs, confusion_plots
from pipeline.report.content import (
    MOST_IMAGES,
    Content,
    cards,
    found,
    number_cell,
    picture,
    reliability_plots,
    rows_used,
    sweep_plot,
    text_cell,
    varied,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

_CARDS = {
    "accuracy": ("Accuracy", "share of rows whose most probable class is the label"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the classes' recalls"),
    "macro_f1": ("Macro F1", "mean of the classes' F1"),
    "log_loss": ("Log loss", "mean of −log of the label's probability; smaller is better"),
    "ece": ("Calibration error", "mean gap between confidence and accuracy (ECE, 15 bins); smaller is better"),
}


def classes_content(cache: Cache, rows: Rows, results: dict[str, Any], run: dict[str, Any]) -> Content:
    """Return what the page of a classification run shows.

    Parameters
    ----------
    cache, rows, results, run
        As in `pipeline.report.page.write_report`.
    """
    split = results["held_out"]
    swept = varied(results)
    at = ""
    if swept is not None:
        folds = run["chosen"].get("folds")
        on = f"{folds} folds of the training rows" if folds else "training rows held out"
        at = f" {swept[0]} = {run['chosen'][swept[0]]:.3g}, chosen on {on}."
    content = Content(
        lead=f"{found(results, rows)} {len(rows.class_names)} classes, {rows_used(rows, run)}.{at}",
        cards=cards(_CARDS, results["metrics"][split]),
    )
    _add_figures(content, rows, results)
    content.galleries = _galleries(cache, rows, results, split)
    add_pairs(content, cache, rows, results)
    table = classification.per_class_table(results["confusion"], rows.class_names)
    content.tables.append(
        {
            "id": "classes",
            "title": "Classes",
            "hint": f"On the {split} rows. Click a heading to sort.",
            "columns": [
                ("class", True), ("rows", False), ("recall", False), ("precision", False), ("F1", False),
                ("most often taken for", True),
            ],
            "rows": [_class_row(entry) for entry in table],
        }
    )  # fmt: skip
    return content


def _add_figures(content: Content, rows: Rows, results: dict[str, Any]) -> None:
    split = results["held_out"]
    second: list[dict[str, Any]] = []
    matrices = confusion_plots(content, rows, results)
    if varied(results) is not None:
        (second if len(rows.class_names) > 20 else matrices).append(sweep_plot(content, results))
    probabilities = results["predictions"][split]
    y = rows.y[rows.of(split)]
    curves = {"calibrated" if "uncalibrated" in results else "as fitted": probabilities}
    if "uncalibrated" in results:
        curves["before"] = results["uncalibrated"][split]
    bins = {name: calibration.reliability_bins(p.max(axis=1), p.argmax(axis=1) == y) for name, p in curves.items()}
    what = "How often a prediction of that confidence is right."
    second += reliability_plots(content, plots.reliability_figure(bins), what, len(y), _calibration(results))
    second += content.curves(results, rows.task)
    content.layout += [[place] for place in matrices] if len(rows.class_names) > 20 else [matrices]
    content.pair(content.layers(results))
    content.pair(second)


def _calibration(results: dict[str, Any]) -> str:
    """Say what the probabilities were divided by, and from how many rows that is known."""
    rows, temperature = results["calibration"]["rows"], results["temperature"]
    if not rows:
        return "No temperature was fitted."
    if rows < calibration.LEAST_ROWS and temperature == 1.0:
        return (
            f"No temperature was fitted: {rows} rows were held out of training for it, and it is fitted from "
            f"{calibration.LEAST_ROWS} on."
        )
    return (
        f"Scores are divided by a temperature of {temperature:.3g}, fitted on {rows} rows held out of training "
        f"for it. It is fitted from {calibration.LEAST_ROWS} such rows on, and shrunk towards 1 where they are few."
    )


def _class_row(entry: dict[str, Any]) -> list[dict[str, Any]]:
    taken = f"{entry['taken_for']} ({entry['taken_for_rows']})" if entry["taken_for"] else "–"
    return [
        text_cell(entry["class"]),
        number_cell(entry["rows"]),
        number_cell(entry["recall"]),
        number_cell(entry["precision"]),
        number_cell(entry["f1"]),
        text_cell(taken, entry["taken_for_rows"]),
    ]


def _galleries(cache: Cache, rows: Rows, results: dict[str, Any], split: str) -> list[dict[str, Any]]:
    out = []
    at = rows.of(split)
    mistakes = _most_confident_mistakes(results["predictions"][split], rows.y[at])
    if len(mistakes):
        out.append(
            {
                "id": "mistakes",
                "title": "Most confident mistakes",
                "hint": f"Rows of the {split} split where the head is surest of another class than the label.",
                "pictures": [_item(cache, rows, at[i], results["predictions"][split][i]) for i in mistakes],
            }
        )
    if "oof_predictions" in results:
        at = rows.of("train")
        doubtful = _most_confident_mistakes(results["oof_predictions"], rows.y[at])
        if len(doubtful):
            out.append(
                {
                    "id": "doubtful",
                    "title": "Labels to look at again",
                    "hint": "Training rows that heads fitted without them would label otherwise, surest first: "
                    "wrong labels gather here, with hard images.",
                    "pictures": [_item(cache, rows, at[i], results["oof_predictions"][i]) for i in doubtful],
                }
            )
    return out


def _most_confident_mistakes(probabilities: NDArray[np.float64], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows with the largest lead of the predicted class over the label."""
    lead = probabilities.max(axis=1) - probabilities[np.arange(len(y)), y]
    order = np.argsort(-lead, kind="stable")[:MOST_IMAGES]
    return np.asarray(order[lead[order] > 0])


def _item(cache: Cache, rows: Rows, row: int, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    label, predicted = rows.class_names[rows.y[row]], rows.class_names[best]
    return picture(cache, int(rows.index[row]), label, predicted, f"{probabilities[best]:.1%}")
