"""The figures of the report as plain data, which ``plots.js`` draws as SVG in the page.

A figure is a dictionary. Of curves and dots:

- ``x``, ``y`` and perhaps ``y2`` (on the right): axes with ``title`` and, where needed, ``log``, ``range``, ``ticks``
  and ``names`` (a text for each tick), ``whole`` (no ticks between whole numbers), ``most`` (where it ends at most);
- ``series``: each with ``x`` and ``y`` (None for a gap) and, where needed, ``name``, ``colour``, ``line`` ("solid",
  "dash", "dot", "none"), ``size`` (one, or one for each point; 0 for no marker), ``crosses`` (points drawn as ×),
  ``bars``, ``axis`` ("y2"), ``low`` and ``high`` (an interval of y, or with ``across`` of x), ``opacity``, ``tip`` (a
  text with ``{x}``, ``{y}`` and ``{note}``; none, no hover) and ``notes``;
- ``bands``: ``x``, ``low``, ``high`` and ``name`` of a filled range; ``rules``: dashed lines at an ``x`` or a ``y``, or
  along ``diagonal``.

A confusion matrix has ``matrix``, ``totals``, ``names`` and ``full`` instead. Texts are data, never HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Figure = dict[str, Any]

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#9aa3af"
MOST_LABELS = 60
"""Labels in a figure of one line each: more cannot be read."""

_MOST_DOTS = 5000
_LONGEST_LINE = 48
"""Characters of a name that has a line of the figure to itself."""


def sweep_figure(sweep: Sequence[dict[str, Any]], chosen: float, parameter: str = "C") -> Figure:
    """Draw cross-validated accuracy and log loss against the value tried, folds as a band where they are known.

    Parameters
    ----------
    sweep : sequence of dict
        Entries with the parameter, ``accuracy``, ``log_loss``, and perhaps ``accuracy_folds`` and ``converged``.
    chosen : float
        The value taken.
    parameter : str
        Its name.
    """
    x = [entry[parameter] for entry in sweep]
    bands = []
    if all("accuracy_folds" in entry for entry in sweep):
        folds = np.asarray([entry["accuracy_folds"] for entry in sweep], dtype=np.float64)
        low, high = _numbers(folds.min(axis=1)), _numbers(folds.max(axis=1))
        bands.append({"x": x, "low": low, "high": high, "name": "accuracy, range of folds"})
    accuracy = {
        "x": x,
        "y": _numbers([entry["accuracy"] for entry in sweep]),
        "name": "accuracy",
        "crosses": [n for n, entry in enumerate(sweep) if not entry.get("converged", True)],
        "tip": parameter + " = {x}\naccuracy {y}",
    }
    loss = {
        "x": x,
        "y": _numbers([entry["log_loss"] for entry in sweep]),
        "name": "log loss",
        "colour": _ORANGE,
        "line": "dot",
        "size": 0,
        "axis": "y2",
        "tip": parameter + " = {x}\nlog loss {y}",
    }
    return {
        "x": {"title": parameter, "log": True},
        "y": {"title": "accuracy"},
        "y2": {"title": "log loss"},
        "bands": bands,
        "series": [accuracy, loss],
        "rules": [{"x": chosen}],
    }


def confusion_figure(confusion: NDArray[Any], class_names: Sequence[str], shown: Sequence[int]) -> Figure:
    """Draw counts by label (down) and prediction (across); colour is the share of the label's rows.

    Parameters
    ----------
    confusion : ndarray of shape (K, K)
        Counts.
    class_names : sequence of str
        K names.
    shown : sequence of int
        The classes that are drawn, in their order.
    """
    return {
        "matrix": confusion[np.ix_(shown, shown)].tolist(),
        "totals": confusion[shown].sum(axis=1).tolist(),
        "names": [shortened(class_names[i]) for i in shown],
        "full": [class_names[i] for i in shown],
    }


_ENDS = {"y": "accuracy", "low": "low", "high": "high"}


def reliability_figure(
    curves: dict[str, list[dict[str, float]]], predicted: str = "confidence", found: str = "accuracy"
) -> Figure:
    """Draw the observed share with its interval against the predicted one, for each named set of bins."""
    series = [
        {
            "x": _numbers([b["confidence"] for b in bins]),
            # Lines between bins would draw noise.
            "line": "none",
            **{to: _numbers([b[what] for b in bins]) for to, what in _ENDS.items()},
            "notes": [f"{b['rows']:g} rows" for b in bins],
            "colour": colour,
            "name": name,
            "tip": predicted + " {x}\n" + found + " {y}\n{note}",
        }
        for (name, bins), colour in zip(curves.items(), (_BLUE, _ORANGE), strict=False)
    ]
    return {
        "x": {"title": predicted, "range": [0, 1.01]},
        "y": {"title": found, "range": [0, 1.02]},
        "series": series,
        "rules": [{"diagonal": [0, 1]}],
    }


def learning_figure(
    curve: Sequence[dict[str, Any]],
    along: str,
    title: str,
    score: str,
    name: str,
    *,
    expected: dict[str, Any] | None = None,
) -> Figure:
    """Draw a held-out score with its interval against the number of training rows or images.

    Parameters
    ----------
    curve : sequence of dict
        Entries with ``along`` and, under ``score``, value and interval.
    along, title : str
        What the horizontal axis shows, and its title.
    score, name : str
        What the vertical axis shows, and its title.
    expected : dict, optional
        An entry for a point that is extrapolated.
    """
    x = [entry[along] for entry in curve]
    points = _scores(curve, along, score) | {"tip": "{x} " + title + "\n" + name + " {y}"}
    axis: dict[str, Any] = {"title": title, "log": True}
    # A handful of points name themselves; powers of ten would hardly touch them.
    axis |= {"ticks": x, "names": [str(v) for v in x]} if along == "shots" else {}
    series = [points]
    if expected is not None:
        ahead = {"line": "none", "colour": _ORANGE, "name": "expected", "tip": points["tip"]}
        series = [points | {"name": "measured"}, _scores([expected], along, score) | ahead]
    return {"x": axis, "y": {"title": name}, "series": series}


def _scores(entries: Sequence[dict[str, Any]], along: str, score: str) -> Figure:
    """Return points of a score with its interval."""
    values = {
        place: _numbers([entry[score][what] for entry in entries])
        for place, what in (("y", "value"), ("low", "low"), ("high", "high"))
    }
    return {"x": [entry[along] for entry in entries], **values}


def alpha_figure(sweep: Sequence[dict[str, Any]], chosen: float) -> Figure:
    """Draw the squared error on rows left out against ridge's strength."""
    points = {
        "x": [entry["alpha"] for entry in sweep],
        "y": _numbers([entry["squared_error"] for entry in sweep]),
        "tip": "alpha = {x}\nsquared error {y}",
    }
    return {
        "x": {"title": "alpha", "log": True},
        "y": {"title": "squared error", "log": True},
        "series": [points],
        "rules": [{"x": chosen}],
    }


def predicted_figure(truth: NDArray[np.float64], predicted: NDArray[np.float64], name: str) -> Figure:
    """Draw predicted against true numbers, with the line on which they are equal."""
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    named = shortened(name)
    return {
        "x": {"title": f"true {named}"},
        "y": {"title": f"predicted {named}"},
        "series": [_dots(truth, predicted, "true {x}\npredicted {y}")],
        "rules": [{"diagonal": ends}],
    }


def residual_figure(predicted: NDArray[np.float64], residual: NDArray[np.float64], name: str) -> Figure:
    """Draw what the prediction leaves (true − predicted) against the prediction."""
    return {
        "x": {"title": f"predicted {shortened(name)}"},
        "y": {"title": "true − predicted"},
        "series": [_dots(predicted, residual, "predicted {x}\ntrue − predicted {y}")],
        "rules": [{"y": 0}],
    }


def precision_figure(table: Sequence[dict[str, Any]]) -> Figure:
    """Draw the average precision of every label with its interval, the best at the top."""
    known = [entry for entry in table if np.isfinite(entry["average_precision"]["value"])]
    known = sorted(known, key=lambda entry: float(entry["average_precision"]["value"]))[:MOST_LABELS]
    place = list(range(len(known)))
    points = {
        "y": place,
        "notes": [f"{entry['label']}\n{entry['rows']} rows" for entry in known],
        "line": "none",
        "across": True,
        "tip": "{note}\naverage precision {x}",
    } | {
        to: _numbers([entry["average_precision"][what] for entry in known])
        for to, what in (("x", "value"), ("low", "low"), ("high", "high"))
    }
    return {
        "x": {"title": "average precision", "range": [0, 1.02]},
        "y": {
            "ticks": place,
            "names": [shortened(entry["label"]) for entry in known],
            "range": [-0.6, max(len(known), 1) - 0.4],
        },
        "series": [points],
    }


def share_figure(entries: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw a share of rows for each of several things, with its interval, the first at the top.

    Parameters
    ----------
    entries : sequence of dict
        ``name``, ``note`` (shown beside the pointer), ``marked`` (drawn in the accent colour), and ``value`` with
        ``low`` and ``high``, which may be None.
    title : str
        What is shown.
    """
    place = list(range(len(entries)))[::-1]
    series = []
    for marked, colour in ((True, _ORANGE), (False, _BLUE)):
        chosen = [i for i, entry in enumerate(entries) if entry["marked"] == marked]
        points = {
            "y": [place[i] for i in chosen],
            "notes": [f"{entries[i]['name']}\n{entries[i]['note']}" for i in chosen],
            "line": "none",
            "colour": colour,
            "across": True,
            "tip": "{note}\n" + title + " {x}",
        }
        ends = {"x": "value"}
        if all(entries[i]["low"] is not None for i in chosen):
            ends |= {"low": "low", "high": "high"}
        points |= {to: _numbers([entries[i][what] for i in chosen]) for to, what in ends.items()}
        series += [points] if chosen else []
    names = [shortened(entry["name"], _LONGEST_LINE) for entry in entries]
    return {
        "x": {"title": title},
        "y": {"ticks": place, "names": names, "range": [-0.6, max(len(entries), 1) - 0.4]},
        "series": series,
    }


def cost_figure(
    speed: Sequence[float],
    accuracy: Sequence[tuple[float, float, float]],
    names: Sequence[str],
    marked: Sequence[bool],
) -> Figure:
    """Draw accuracy (value, low, high) against images per second, the marked ones in the accent colour."""
    series = []
    for of, colour in ((True, _ORANGE), (False, _BLUE)):
        chosen = [i for i in range(len(names)) if marked[i] == of and np.isfinite(speed[i])]
        points: Figure = {to: _numbers([accuracy[i][n] for i in chosen]) for n, to in enumerate(("y", "low", "high"))}
        points |= {"x": _numbers([speed[i] for i in chosen]), "notes": [names[i] for i in chosen]}
        series += (
            [points | {"line": "none", "colour": colour, "tip": "{note}\n{x} images/s\naccuracy {y}"}] if chosen else []
        )
    return {"x": {"title": "images per second", "log": True}, "y": {"title": "accuracy"}, "series": series}


def training_figure(history: Sequence[dict[str, float]], best: int) -> Figure:
    """Draw training and validation loss, and validation accuracy, by epoch; a dashed line where the best one is."""
    series = []
    for name, title, colour, axis in (
        ("train_loss", "training loss", _GREY, "y"),
        ("val_loss", "validation loss", _BLUE, "y"),
        ("val_accuracy", "validation accuracy", _ORANGE, "y2"),
    ):
        known = [entry for entry in history if name in entry]
        series.append(
            {
                "x": [entry["epoch"] for entry in known],
                "y": _numbers([entry[name] for entry in known]),
                "axis": axis,
                "name": title,
                "colour": colour,
                "tip": "epoch {x}\n" + title + " {y}",
            }
        )
    return {
        "x": {"title": "epoch", "whole": True},
        "y": {"title": "loss"},
        "y2": {"title": "accuracy", "most": 1},
        "series": series,
        "rules": [{"x": best}],
    }


def mix_figure(tried: Sequence[dict[str, float]], chosen: float) -> Figure:
    """Draw validation loss and accuracy by the share of the tuned network; a dashed line at the one taken."""
    series = [
        {
            "x": [entry["share"] for entry in tried],
            "y": _numbers([entry[name] for entry in tried]),
            "axis": axis,
            "name": title,
            "colour": colour,
            "tip": "share {x}\n" + title + " {y}",
        }
        for name, title, colour, axis in (
            ("val_loss", "validation loss", _BLUE, "y"),
            ("val_accuracy", "validation accuracy", _ORANGE, "y2"),
        )
    ]
    return {
        "x": {"title": "share of the tuned network"},
        "y": {"title": "loss"},
        "y2": {"title": "accuracy", "most": 1},
        "series": series,
        "rules": [{"x": chosen}],
    }


def depth_figure(rates: Sequence[tuple[int, float]]) -> Figure:
    """Draw the peak learning rate of every block against its depth."""
    bars = {
        "x": [depth for depth, _ in rates],
        "y": _numbers([rate for _, rate in rates]),
        "bars": True,
        "tip": "block {x}\nrate {y}",
    }
    return {
        "x": {"title": "block, from the image to the head", "whole": True},
        "y": {"title": "learning rate", "log": True},
        "series": [bars],
    }


def range_figure(rates: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
    """Draw the losses of a range test against the learning rate."""
    points = {"x": list(rates), "y": _numbers(losses), "tip": "rate {x}\nloss {y}"}
    return {
        "x": {"title": "learning rate", "log": True},
        "y": {"title": "loss"},
        "series": [points],
        "rules": [{"x": chosen}],
    }


def _dots(x: NDArray[np.float64], y: NDArray[np.float64], tip: str) -> dict[str, Any]:
    shown = _some(len(x))
    return {"x": _numbers(x[shown]), "y": _numbers(y[shown]), "line": "none", "size": 5, "opacity": 0.5, "tip": tip}


def _some(count: int) -> NDArray[np.int64]:
    """Return the rows that are drawn: all, or as many as a page can hold, the same every time."""
    if count <= _MOST_DOTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:_MOST_DOTS])


def _numbers(values: Any) -> list[float | None]:
    """Return numbers of six digits, which a drawing does not need more of; None where there is none."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in map(float, values)]
