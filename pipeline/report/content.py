"""The parts of every report: cards, figures, tables, pictures.

Axes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.names import shown
from pipeline.core.text import counted
from pipeline.evaluation.calibration import LEAST_ROWS_OF_BIN
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.saved import SEPARATOR
from pipeline.report import plots
from pipeline.report.rendering import thumbnail
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

MOST_IMAGES = 24


@dataclass
class Content:
    """What the page of a run shows.

    Attributes
    ----------
    lead : str
        What was learned, in a sentence.
    cards : list of dict
        Headline figures.
    figures : dict
        Figures by id, as `pipeline.report.plots` describes them.
    layout : list of list of dict
        Rows of plots: id, title, hint and height.
    tables : list of dict
        id, title, hint, columns (name, whether text) and rows of cells.
    galleries : list of dict
        id, title, hint and pictures.
    remarks : list of str
        What the page says besides the notes of the run.
    advice : list of dict
        ``about`` and ``text`` of what would help.
    """

    lead: str
    cards: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    layout: list[list[dict[str, Any]]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    galleries: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    advice: list[dict[str, Any]] = field(default_factory=list)

    def plot(self, name: str, figure: Any, title: str, hint: str, height: int = 340) -> dict[str, Any]:
        """Keep a figure; return its place for ``layout``."""
        self.figures[name] = figure
        return {"id": name, "title": title, "hint": hint, "height": height}

    def pair(self, places: list[dict[str, Any]]) -> None:
        """Lay plots out two in a row."""
        self.layout += [places[i : i + 2] for i in range(0, len(places), 2)]

    def layers(self, results: dict[str, Any]) -> list[dict[str, Any]]:
        """Keep the figure of the layers that the head was to choose from, where there were several."""
        table = results.get("layers", [])
        if not table:
            return []
        by_accuracy = "accuracy" in table[0]
        entries = [
            {
                "name": SEPARATOR.join(entry["layers"]),
                "note": f"{entry['width']} features, loss {entry['loss']:.4g}",
                "marked": entry["chosen"],
                **(entry["accuracy"] if by_accuracy else {"value": entry["loss"], "low": None, "high": None}),
            }
            for entry in table
        ]
        hint = (
            "Single layers from the image to the head, then the best ones side by side, on training rows held out by "
            "the same folds. Orange: the one taken, which has the fewest features of those whose loss cannot be "
            "distinguished from the least."
        )
        figure = plots.share_figure(entries, "accuracy" if by_accuracy else "loss")
        return [self.plot("layers", figure, "Layers", hint, 120 + 28 * len(entries))]

    def curves(self, results: dict[str, Any], task: str) -> list[dict[str, Any]]:
        """Keep the learning curve and the few-shot curve, where there are any."""
        places = []
        score, name = TASKS[task].score, TASKS[task].score_name
        if results.get("learning_curve"):
            doubling = results.get("doubling")
            expected = None if doubling is None else {"rows": doubling.rows, score: doubling.score.as_dict()}
            more = "" if doubling is None else " Orange: what is expected of twice the rows."
            curve = results["learning_curve"]
            places.append(
                self.plot(
                    "learning",
                    plots.learning_figure(curve, "rows", "training rows", score, name, expected=expected),
                    "Learning curve",
                    f"Held-out {name} with fewer training rows, at the same settings: would more images help?{more}",
                )
            )
        if results.get("few_shots"):
            draws = results["few_shots"][0]["draws"]
            places.append(
                self.plot(
                    "few-shots",
                    plots.learning_figure(results["few_shots"], "shots", "training images a class", score, name),
                    "Few shots",
                    f"Held-out {name} with a few training images of every class: mean of {draws} draws, with the "
                    "interval over draws and rows.",
                )
            )
        return places


def cards(names: dict[str, tuple[str, str]], figures: dict[str, Any]) -> list[dict[str, str]]:
    """Return a card for each figure, from its title and what it means."""
    return [
        {
            "name": title,
            "what": what,
            "value": _figure(figures[name]["value"]),
            "interval": _ends(figures[name]),
        }
        for name, (title, what) in names.items()
    ]


def _ends(figure: dict[str, float]) -> str:
    if np.isnan(figure["low"]):
        return "no interval from so few rows" if np.isfinite(figure["value"]) else "not defined on these rows"
    return f"{_figure(figure['low'])} to {_figure(figure['high'])}"


def _figure(value: float) -> str:
    """Write four decimals, or four digits of what is larger or much smaller than one.

    Examples
    --------
    >>> _figure(0.95123), _figure(12345.678), _figure(float("nan"))
    ('0.9512', '1.235e+04', '–')
    """
    if np.isnan(value):
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def text_cell(text: Any, sort: Any = None) -> dict[str, Any]:
    """Return a cell of words."""
    return {"text": text, "sort": text if sort is None else sort, "left": True}


def link_cell(text: str, to: str) -> dict[str, Any]:
    """Return a cell of words that leads to a part of the page."""
    return text_cell(text) | {"link": f"#{to}"}


def number_cell(value: float, text: str | None = None) -> dict[str, Any]:
    """Return a cell of a number; one that is not defined sorts first."""
    if np.isnan(value):
        return {"text": "–", "sort": "-1e300", "left": False}
    shown = text or (str(value) if isinstance(value, int) else _figure(value))
    return {"text": shown, "sort": f"{value:.10g}", "left": False}


def found(results: dict[str, Any], rows: Rows) -> str:
    """Return the sentence of what was found, with which the page begins."""
    split = results["held_out"]
    measured = counted(results["metrics"][split]["rows"], f"{split} row")
    return f"On {measured}: {TASKS[rows.task].headline(results['metrics'][split])}."


def rows_used(rows: Rows, run: dict[str, Any]) -> str:
    """Return a phrase with the numbers of training and of measured rows."""
    how = "the source's own split" if rows.split_kind == "column" else "a stratified hold-out"
    counts, split = run["rows"], rows.held_out
    return f"{counted(counts['train'], 'training row')}, {counted(counts[split], f'{split} row')} from {how}"


def picture(cache: Cache, number: int, label: str, predicted: str, remark: str) -> dict[str, Any]:
    """Return a picture of a gallery: a row of the cache with its label and prediction."""
    return {
        "image": thumbnail(image_bytes(cache, number)),
        "key": shown(str(cache.keys_of(np.array([number]))[0])),
        "label": label,
        "predicted": predicted,
        "confidence": remark,
    }


def reliability_plots(
    content: Content, figure: Any, what: str, rows: int, calibration: str = ""
) -> list[dict[str, Any]]:
    """Keep the figure of bins of equal counts; with too few rows the page has a sentence in its place."""
    if not figure["series"][0]["x"]:
        least = 2 * LEAST_ROWS_OF_BIN
        none = f"No reliability curve: it needs {least} measured rows, and there are {rows}."
        content.remarks.append(f"{none} {calibration}".rstrip())
        return []
    return [
        content.plot(
            "reliability", figure, "Reliability", f"Bins of equal counts with intervals. {what} {calibration}".rstrip()
        )
    ]


_OUTCOMES = {"converged", "gap_estimate", "gradient_norm"}
"""What a sweep and the chosen fit report of how they ended; no settings."""


def varied(results: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
    """Return the setting that a head has chosen among several values, with the entries that differ in it alone."""
    chosen = {name: value for name, value in results["chosen"].items() if name not in _OUTCOMES}
    for name in ("C", "alpha", "shrinkage", "n_neighbors"):
        if name not in chosen:
            continue
        same = [
            entry
            for entry in results["sweep"]
            if name in entry and all(entry[other] == chosen[other] for other in entry.keys() & chosen.keys() - {name})
        ]
        if len(same) > 1:
            return name, sorted(same, key=lambda entry: float(entry[name]))
    return None


def sweep_plot(content: Content, results: dict[str, Any]) -> dict[str, Any]:
    """Keep the figure of the choice among values of C, of ridge's strength and their like."""
    swept = varied(results)
    assert swept is not None
    name, entries = swept
    if "accuracy" in entries[0]:
        figure = plots.sweep_figure(entries, results["chosen"][name], name)
        hint = "On training rows held out of each fit; the dashed line is the value taken, × did not converge."
    else:
        figure = plots.alpha_figure(entries, results["chosen"][name])
        hint = "Squared error of training rows left out of the fit; the dashed line is the value taken."
    return content.plot("sweep", figure, f"Choice of {name}", hint, 420)
