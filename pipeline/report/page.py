"""The report: everything a fit found, as one HTML page that needs nothing else.

plotly's script is inside the page, images are inside the page, and a content security policy forbids the page to
fetch anything. Every text from outside (class names, file names) is escaped by the template.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import evaluate
from pipeline.report import plots
from pipeline.report.parts import script_json, templates, thumbnail

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

_MOST_IMAGES = 24

_CARDS = {
    "accuracy": ("Accuracy", "share of rows whose most probable class is the label"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the classes' recalls"),
    "macro_f1": ("Macro F1", "mean of the classes' F1"),
    "log_loss": ("Log loss", "mean of −log of the label's probability; smaller is better"),
    "ece": ("Calibration error", "mean gap between confidence and accuracy (ECE, 15 bins); smaller is better"),
}


def write_report(
    path: str | os.PathLike[str], *, cache: Any, rows: Any, results: dict[str, Any], run: dict[str, Any]
) -> None:
    """Write the page of a classification run.

    Parameters
    ----------
    path : str or Path
        The HTML file to write.
    cache : Cache
        For keys and images.
    rows : Rows
        The rows used, from ``pipeline.fit_head``.
    results : dict
        Metrics, probabilities, sweep and curves of the fit.
    run : dict
        What ``run.json`` holds.
    """
    from plotly.offline import get_plotlyjs

    split = results["held_out"]
    figures, shown = _figures(rows, results, split)
    metrics = results["metrics"][split]
    class_columns = ["class", "rows", "recall", "precision", "F1", "most often taken for"]
    page = (
        templates()
        .get_template("page.html.j2")
        .render(
            title=f"{run['head']} head on {Path(run['cache']['path']).name}",
            lead=_lead(rows, run, split),
            interval_note=(
                f"Under each figure its 95 % bootstrap interval over the {metrics['rows']} {split} rows"
                f"{', whole groups resampled together' if rows.groups is not None else ''}."
            ),
            cards=[_card(name, metrics[name]) for name in _CARDS],
            notes=run["notes"],
            plots=shown,
            figures=script_json({name: figure.to_plotly_json() for name, figure in figures.items()}),
            plotly_js=get_plotlyjs(),
            held_out=split,
            class_columns=class_columns,
            classes=[_class_row(entry) for entry in evaluate.per_class_table(results["confusion"], rows.class_names)],
            galleries=_galleries(cache, rows, results, split),
            facts=_facts(run),
        )
    )
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _lead(rows: Any, run: dict[str, Any], split: str) -> str:
    how = "the source's own split" if rows.split_kind == "column" else "a stratified hold-out"
    chosen = run["chosen"].get("C")
    at = f" C = {chosen:.3g}, chosen on {run['chosen']['folds']} folds of the training rows." if chosen else ""
    counts = run["rows"]
    rows_used = f"{counts['train']} training rows, {counts[split]} {split} rows"
    return f"{len(rows.class_names)} classes, {rows_used} from {how}.{at}"


def _card(name: str, interval: dict[str, float]) -> dict[str, str]:
    title, what = _CARDS[name]
    return {
        "name": title,
        "what": what,
        "value": f"{interval['value']:.4f}",
        "interval": f"{interval['low']:.4f} to {interval['high']:.4f}",
    }


def _figures(rows: Any, results: dict[str, Any], split: str) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Return the plotly figures by id, and how they are laid out."""
    figures: dict[str, Any] = {}
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []

    def show(where: list[dict[str, Any]], name: str, figure: Any, title: str, hint: str, height: int) -> None:
        figures[name] = figure
        where.append({"id": name, "title": title, "hint": hint, "height": height})

    k = len(rows.class_names)
    more = f" The {plots._MOST_CLASSES} classes with the most errors." if k > plots._MOST_CLASSES else ""
    show(
        first,
        "confusion",
        plots.confusion_figure(results["confusion"], rows.class_names),
        "Confusion matrix",
        f"Labels down, predictions across, on the {split} rows.{more}",
        int(np.clip(220 + 24 * k, 420, 900)),
    )
    if len(results["sweep"]) > 1:
        show(
            second if k > 20 else first,
            "sweep",
            plots.sweep_figure(results["sweep"], results["chosen"]["C"]),
            "Choice of C",
            "Cross-validated on the training rows only; the dashed line is the value taken, × did not converge.",
            420,
        )
    probabilities = results["probabilities"][split]
    y = rows.y[rows.of(split)]
    curves = {"calibrated" if "uncalibrated" in results else "as fitted": probabilities}
    if "uncalibrated" in results:
        curves["before"] = results["uncalibrated"][split]
    bins = {name: evaluate.reliability_bins(p.max(axis=1), p.argmax(axis=1) == y) for name, p in curves.items()}
    show(
        second,
        "reliability",
        plots.reliability_figure(bins),
        "Reliability",
        f"How often a prediction of that confidence is right. Temperature {results['temperature']:.3f}, from "
        "out-of-fold scores."
        if "uncalibrated" in results
        else "How often a prediction of that confidence is right.",
        340,
    )
    if results.get("learning_curve"):
        show(
            second,
            "learning",
            plots.learning_figure(results["learning_curve"]),
            "Learning curve",
            "Held-out accuracy with fewer training rows, at the same settings: would more images help?",
            340,
        )
    layout = [first] if len(first) < 3 else [first[:1], first[1:]]
    layout += [second[i : i + 2] for i in range(0, len(second), 2)]
    return figures, layout


def _class_row(entry: dict[str, Any]) -> list[dict[str, Any]]:
    def number(value: float) -> dict[str, Any]:
        known = not np.isnan(value)
        return {"text": f"{value:.4f}" if known else "–", "sort": f"{value:.6f}" if known else "-1", "left": False}

    taken = f"{entry['taken_for']} ({entry['taken_for_rows']})" if entry["taken_for"] else "–"
    return [
        {"text": entry["class"], "sort": entry["class"], "left": True},
        {"text": entry["rows"], "sort": entry["rows"], "left": False},
        number(entry["recall"]),
        number(entry["precision"]),
        number(entry["f1"]),
        {"text": taken, "sort": entry["taken_for_rows"], "left": True},
    ]


def _galleries(cache: Any, rows: Any, results: dict[str, Any], split: str) -> list[dict[str, Any]]:
    out = []
    at = rows.of(split)
    mistakes = _most_confident_mistakes(results["probabilities"][split], rows.y[at])
    if len(mistakes):
        out.append(
            {
                "id": "mistakes",
                "title": "Most confident mistakes",
                "hint": f"Rows of the {split} split where the head is surest of another class than the label.",
                "pictures": [_item(cache, rows, at[i], results["probabilities"][split][i]) for i in mistakes],
            }
        )
    if "oof_probabilities" in results:
        at = rows.of("train")
        doubtful = _most_confident_mistakes(results["oof_probabilities"], rows.y[at])
        if len(doubtful):
            out.append(
                {
                    "id": "doubtful",
                    "title": "Labels to look at again",
                    "hint": "Training rows that heads fitted without them would label otherwise, surest first: "
                    "wrong labels gather here, with hard images.",
                    "pictures": [_item(cache, rows, at[i], results["oof_probabilities"][i]) for i in doubtful],
                }
            )
    return out


def _most_confident_mistakes(probabilities: NDArray[np.float64], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows with the largest lead of the predicted class over the label."""
    lead = probabilities.max(axis=1) - probabilities[np.arange(len(y)), y]
    order = np.argsort(-lead, kind="stable")[:_MOST_IMAGES]
    return np.asarray(order[lead[order] > 0])


def _item(cache: Any, rows: Any, row: int, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    number = int(rows.index[row])
    return {
        "image": thumbnail(cache.image_bytes(number)),
        "key": str(cache.keys[number]).encode("utf-8", "backslashreplace").decode(),
        "label": rows.class_names[rows.y[row]],
        "predicted": rows.class_names[best],
        "confidence": f"{probabilities[best]:.1%}",
    }


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    cache = run["cache"]
    spec = cache["spec"]
    facts = [
        ("cache", cache["path"]),
        ("fingerprint", cache["fingerprint"]),
        ("layer", run["layer"]),
        *((name, _text(value)) for name, value in spec.items()),
        ("split", "from the source" if run["split"] == "column" else "stratified hold-out"),
        ("settings", _text({k: v for k, v in run["settings"].items() if v not in (None, {}, [], ())})),
        ("chosen", _text(run["chosen"])),
        ("versions", _text(run["versions"])),
        ("cache written by", _text(cache["versions"])),
    ]
    return [(name.replace("_", " "), value) for name, value in facts]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_text(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
