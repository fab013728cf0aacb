"""The interactive figures of the report, as plotly figures.

Class names come from folder and file names, so they are escaped: plotly reads a little HTML in its labels.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.figures import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#9aa3af"
_MOST_CLASSES = 60
"""A larger confusion matrix shows the classes with the most errors: more cannot be read, and bloats the page."""

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
    """Draw cross-validated accuracy and log loss against the value tried, folds as a band.

    Parameters
    ----------
    sweep : sequence of dict
        Entries with the parameter, ``accuracy``, ``log_loss``, ``accuracy_folds`` and ``converged``.
    chosen : float
        The value taken.
    parameter : str
        Its name.
    """
    import plotly.graph_objects as go

    x = [entry[parameter] for entry in sweep]
    figure = go.Figure()
    folds = np.asarray([entry["accuracy_folds"] for entry in sweep], dtype=np.float64)
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*folds.max(axis=1), *folds.min(axis=1)[::-1]],
        fill="toself",
        fillcolor="rgba(31,95,168,0.13)",
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
    if len(shown) > _MOST_CLASSES:
        off = confusion - np.diag(np.diag(confusion))
        worst = np.argsort(off.sum(axis=0) + off.sum(axis=1), kind="stable")[::-1][:_MOST_CLASSES]
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


def reliability_figure(curves: dict[str, list[dict[str, float]]]) -> Any:
    """Draw accuracy against confidence, one line for each named set of bins."""
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
            # A bin of few rows says little: its marker is small.
            marker={"size": [float(np.clip(2.5 * np.log10(b["rows"] + 1), 2, 14)) for b in bins]},
            line={"color": colour, "width": 1},
            name=name,
            hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata} rows<extra></extra>",
        )
    figure.update_layout(
        **_LAYOUT,
        xaxis={"title": "confidence", "range": [0, 1.01]},
        yaxis={"title": "accuracy", "range": [0, 1.02]},
    )
    return figure


def learning_figure(curve: Sequence[dict[str, Any]]) -> Any:
    """Draw held-out accuracy with its interval against the number of training rows."""
    import plotly.graph_objects as go

    value = [entry["accuracy"]["value"] for entry in curve]
    figure = go.Figure()
    figure.add_scatter(
        x=[entry["rows"] for entry in curve],
        y=value,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [entry["accuracy"]["high"] - v for entry, v in zip(curve, value, strict=True)],
            "arrayminus": [v - entry["accuracy"]["low"] for entry, v in zip(curve, value, strict=True)],
            "color": _GREY,
            "thickness": 1,
        },
        mode="lines+markers",
        line={"color": _BLUE},
        hovertemplate="%{x} training rows<br>accuracy %{y:.4f}<extra></extra>",
    )
    figure.update_layout(
        **_LAYOUT,
        xaxis={"type": "log", "title": "training rows", "dtick": 1},
        yaxis={"title": "accuracy"},
        showlegend=False,
    )
    return figure
