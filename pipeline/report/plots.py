"""The interactive figures of the report, as plotly figures.

Class names come from folder and file names, so they are escaped: plotly reads a little HTML in its labels.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#9aa3af"
MOST_CLASSES = 60
"""A larger confusion matrix shows the classes with the most errors: more cannot be read, and bloats the page."""

_MOST_DOTS = 5000

_DOTS: dict[str, Any] = {"mode": "markers", "marker": {"color": _BLUE, "size": 5, "opacity": 0.5}}

_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 56, "r": 16, "t": 10, "b": 48},
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1c2430"},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "hoverlabel": {"font": {"size": 12}},
    # On a phone a finger that scrolls the page must not pan the plot.
    "dragmode": False,
}


def sweep_figure(sweep: Sequence[dict[str, Any]], chosen: float, parameter: str = "C") -> Any:
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
    import plotly.graph_objects as go

    x = [entry[parameter] for entry in sweep]
    figure = go.Figure()
    if all("accuracy_folds" in entry for entry in sweep):
        folds = np.asarray([entry["accuracy_folds"] for entry in sweep], dtype=np.float64)
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[*folds.max(axis=1), *folds.min(axis=1)[::-1]],
            fill="toself",
            fillcolor="rgba(31,95,168,0.13)",
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            name="accuracy, range of folds",
        )
    marks = ["circle" if entry.get("converged", True) else "x" for entry in sweep]
    figure.add_scatter(
        x=x,
        y=[entry["accuracy"] for entry in sweep],
        mode="lines+markers",
        marker={"symbol": marks, "size": 7, "color": _BLUE},
        line={"color": _BLUE},
        name="accuracy",
        hovertemplate=parameter + " = %{x:.3g}<br>accuracy %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=x,
        y=[entry["log_loss"] for entry in sweep],
        mode="lines",
        line={"color": _ORANGE, "dash": "dot"},
        name="log loss",
        yaxis="y2",
        hovertemplate=parameter + " = %{x:.3g}<br>log loss %{y:.4f}<extra></extra>",
    )
    figure.add_vline(x=chosen, line={"color": _GREY, "dash": "dash", "width": 1})
    figure.update_layout(
        **_LAYOUT,
        xaxis={"type": "log", "title": parameter, "exponentformat": "power", "nticks": 6, "tickangle": 0},
        yaxis={"title": "accuracy"},
        yaxis2={"title": "log loss", "overlaying": "y", "side": "right", "showgrid": False},
    )
    figure.update_layout(margin={"r": 56})
    return figure


def confusion_figure(confusion: NDArray[Any], class_names: tuple[str, ...]) -> Any:
    """Draw counts by label (down) and prediction (across); colour is the share of the label's rows."""
    import plotly.graph_objects as go

    shown = np.arange(len(class_names))
    if len(shown) > MOST_CLASSES:
        off = confusion - np.diag(np.diag(confusion))
        worst = np.argsort(off.sum(axis=0) + off.sum(axis=1), kind="stable")[::-1][:MOST_CLASSES]
        shown = np.sort(worst)
    full = [html.escape(class_names[i]) for i in shown]
    names = [html.escape(shortened(class_names[i])) for i in shown]
    counts = confusion[np.ix_(shown, shown)]
    share = counts / np.maximum(confusion[shown].sum(axis=1, keepdims=True), 1)
    few = len(names) <= 20
    place = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=np.round(share, 4).tolist(),
            x=place,
            y=place,
            customdata=[[[int(counts[i, j]), full[i], full[j]] for j in place] for i in place],
            text=[[str(c) if c else "" for c in row] for row in counts] if few else None,
            texttemplate="%{text}" if few else None,
            colorscale="Blues",
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate="label %{customdata[1]}<br>predicted %{customdata[2]}<br>"
            "%{customdata[0]} rows, %{z:.1%}<extra></extra>",
        )
    )
    # Places are numbers and names only their labels, so that two names that look alike stay two classes.
    ticks = {"tickmode": "array", "tickvals": place, "ticktext": names, "automargin": True, "showgrid": False}
    figure.update_layout(
        **_LAYOUT,
        xaxis={"title": "predicted", "tickangle": -45, **ticks},
        yaxis={"title": "label", "autorange": "reversed", **ticks},
    )
    figure.update_layout(margin={"l": 10, "b": 10})
    return figure


def reliability_figure(
    curves: dict[str, list[dict[str, float]]], predicted: str = "confidence", found: str = "accuracy"
) -> Any:
    """Draw the observed share against the predicted one, one line for each named set of bins."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": _GREY, "dash": "dash", "width": 1}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    for (name, bins), colour in zip(curves.items(), (_BLUE, _ORANGE), strict=False):
        figure.add_scatter(
            x=[b["confidence"] for b in bins],
            y=[b["accuracy"] for b in bins],
            customdata=[b["rows"] for b in bins],
            mode="lines+markers",
            # A bin of few rows is uncertain: its marker is small.
            marker={"size": [float(np.clip(2.5 * np.log10(b["rows"] + 1), 2, 14)) for b in bins]},
            line={"color": colour, "width": 1},
            name=name,
            hovertemplate=predicted + " %{x:.3f}<br>" + found + " %{y:.3f}<br>%{customdata} rows<extra></extra>",
        )
    figure.update_layout(
        **_LAYOUT,
        xaxis={"title": predicted, "range": [0, 1.01]},
        yaxis={"title": found, "range": [0, 1.02]},
    )
    return figure


def learning_figure(curve: Sequence[dict[str, Any]], along: str, title: str, score: str, name: str) -> Any:
    """Draw a held-out score with its interval against the number of training rows or images.

    Parameters
    ----------
    curve : sequence of dict
        Entries with ``along`` and, under ``score``, value and interval.
    along, title : str
        What the horizontal axis shows, and its title.
    score, name : str
        What the vertical axis shows, and its title.
    """
    import plotly.graph_objects as go

    value = [entry[score]["value"] for entry in curve]
    x = [entry[along] for entry in curve]
    figure = go.Figure()
    figure.add_scatter(
        x=x,
        y=value,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [entry[score]["high"] - v for entry, v in zip(curve, value, strict=True)],
            "arrayminus": [v - entry[score]["low"] for entry, v in zip(curve, value, strict=True)],
            "color": _GREY,
            "thickness": 1,
        },
        mode="lines+markers",
        line={"color": _BLUE},
        hovertemplate="%{x} " + title + "<br>" + name + " %{y:.4f}<extra></extra>",
    )
    axis: dict[str, Any] = {"type": "log", "title": title}
    # A handful of points name themselves; powers of ten would hardly touch them.
    axis |= {"tickvals": x, "ticktext": [str(v) for v in x]} if along == "shots" else {"dtick": 1}
    figure.update_layout(**_LAYOUT, xaxis=axis, yaxis={"title": name}, showlegend=False)
    return figure


def alpha_figure(sweep: Sequence[dict[str, Any]], chosen: float) -> Any:
    """Draw the squared error on rows left out against ridge's strength."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[entry["alpha"] for entry in sweep],
        y=[entry["squared_error"] for entry in sweep],
        mode="lines+markers",
        line={"color": _BLUE},
        hovertemplate="alpha = %{x:.3g}<br>squared error %{y:.4g}<extra></extra>",
    )
    figure.add_vline(x=chosen, line={"color": _GREY, "dash": "dash", "width": 1})
    figure.update_layout(
        **_LAYOUT,
        xaxis={"type": "log", "title": "alpha", "exponentformat": "power", "nticks": 6, "tickangle": 0},
        yaxis={"type": "log", "title": "squared error"},
        showlegend=False,
    )
    return figure


def predicted_figure(truth: NDArray[np.float64], predicted: NDArray[np.float64], name: str) -> Any:
    """Draw predicted against true numbers, with the line on which they are equal."""
    import plotly.graph_objects as go

    shown = _some(len(truth))
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": _GREY, "dash": "dash", "width": 1}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(x=truth[shown], y=predicted[shown], **_DOTS)
    figure.data[1].hovertemplate = "true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>"
    named = html.escape(shortened(name))
    figure.update_layout(
        **_LAYOUT, xaxis={"title": f"true {named}"}, yaxis={"title": f"predicted {named}"}, showlegend=False
    )
    return figure


def residual_figure(predicted: NDArray[np.float64], residual: NDArray[np.float64], name: str) -> Any:
    """Draw what the prediction leaves (true − predicted) against the prediction."""
    import plotly.graph_objects as go

    shown = _some(len(predicted))
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": _GREY, "dash": "dash", "width": 1})
    figure.add_scatter(x=predicted[shown], y=residual[shown], **_DOTS)
    figure.data[0].hovertemplate = "predicted %{x:.4g}<br>true − predicted %{y:.4g}<extra></extra>"
    named = html.escape(shortened(name))
    figure.update_layout(
        **_LAYOUT, xaxis={"title": f"predicted {named}"}, yaxis={"title": "true − predicted"}, showlegend=False
    )
    return figure


def precision_figure(table: Sequence[dict[str, Any]]) -> Any:
    """Draw the average precision of every label with its interval, the best at the top."""
    import plotly.graph_objects as go

    known = [entry for entry in table if np.isfinite(entry["average_precision"]["value"])]
    known = sorted(known, key=lambda entry: float(entry["average_precision"]["value"]))[:MOST_CLASSES]
    value = [entry["average_precision"]["value"] for entry in known]
    place = list(range(len(known)))
    figure = go.Figure()
    figure.add_scatter(
        x=value,
        y=place,
        customdata=[[html.escape(entry["label"]), entry["rows"]] for entry in known],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [entry["average_precision"]["high"] - v for entry, v in zip(known, value, strict=True)],
            "arrayminus": [v - entry["average_precision"]["low"] for entry, v in zip(known, value, strict=True)],
            "color": _GREY,
            "thickness": 1,
        },
        mode="markers",
        marker={"color": _BLUE, "size": 8},
        hovertemplate="%{customdata[0]}<br>average precision %{x:.4f}<br>%{customdata[1]} rows<extra></extra>",
    )
    names = [html.escape(shortened(entry["label"])) for entry in known]
    figure.update_layout(
        **_LAYOUT,
        xaxis={"title": "average precision", "range": [0, 1.02]},
        yaxis={"tickmode": "array", "tickvals": place, "ticktext": names, "automargin": True},
        showlegend=False,
    )
    figure.update_layout(margin={"l": 10})
    return figure


def _some(count: int) -> NDArray[np.int64]:
    """Return the rows that are drawn: all, or as many as a page can hold, the same every time."""
    if count <= _MOST_DOTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:_MOST_DOTS])


def training_figure(history: Sequence[dict[str, float]], best: int) -> Any:
    """Draw training and validation loss, and validation accuracy, by epoch; a dashed line where the best one is."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, title, colour, axis in (
        ("train_loss", "training loss", _GREY, "y"),
        ("val_loss", "validation loss", _BLUE, "y"),
        ("val_accuracy", "validation accuracy", _ORANGE, "y2"),
    ):
        known = [entry for entry in history if name in entry]
        figure.add_scatter(
            x=[entry["epoch"] for entry in known],
            y=[entry[name] for entry in known],
            yaxis=axis,
            name=title,
            mode="lines+markers",
            line={"color": colour},
            hovertemplate="epoch %{x}<br>" + title + " %{y:.4f}<extra></extra>",
        )
    figure.add_vline(x=best, line={"dash": "dash", "color": _GREY, "width": 1})
    figure.update_layout(
        **{**_LAYOUT, "margin": {**_LAYOUT["margin"], "r": 56}},
        xaxis={"title": "epoch", "dtick": max(1, len(history) // 10)},
        yaxis={"title": "loss"},
        yaxis2={"title": "accuracy", "overlaying": "y", "side": "right", "showgrid": False},
    )
    return figure


def depth_figure(rates: Sequence[tuple[int, float]]) -> Any:
    """Draw the peak learning rate of every block against its depth."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_bar(
        x=[depth for depth, _ in rates],
        y=[rate for _, rate in rates],
        marker={"color": _BLUE},
        hovertemplate="block %{x}<br>rate %{y:.3g}<extra></extra>",
    )
    figure.update_layout(
        **_LAYOUT, xaxis={"title": "block, from the image to the head"}, yaxis={"title": "learning rate", "type": "log"}
    )
    return figure


def range_figure(rates: Sequence[float], losses: Sequence[float], chosen: float) -> Any:
    """Draw the losses of a range test against the learning rate."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=list(rates),
        y=[loss if np.isfinite(loss) else None for loss in losses],
        mode="lines+markers",
        line={"color": _BLUE},
        hovertemplate="rate %{x:.3g}<br>loss %{y:.4f}<extra></extra>",
    )
    figure.add_vline(x=chosen, line={"dash": "dash", "color": _GREY, "width": 1})
    figure.update_layout(
        **_LAYOUT, xaxis={"title": "learning rate", "type": "log"}, yaxis={"title": "loss"}, showlegend=False
    )
    return figure
