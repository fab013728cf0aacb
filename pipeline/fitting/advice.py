"""What would help: more labels, other layers, another network, tuning or better labels, each with its figure.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.spec import PENULTIMATE
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.saved import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.evaluation.extrapolation import Doubling
    from pipeline.fitting.rows import Rows

_SURE = 0.9
"""Probability from which heads that have not seen a row contradict its label."""
_ROWS_TO_TUNE, _ERROR_TO_TUNE = 100, 0.02
"""Training rows a class and share of wrong rows from which tuning the network has room."""


def what_would_help(
    rows: Rows,
    results: Mapping[str, Any],
    layers: Iterable[str],
    *,
    linear: bool,
    views: tuple[int, int] = (1, 1),
) -> list[dict[str, Any]]:
    """Return what was found about each way to a better head.

    Parameters
    ----------
    rows : Rows
        The rows used.
    results : mapping
        Of the fit: ``metrics``, ``held_out``, and where there are any ``learning_curve`` with its ``doubling``,
        ``layers`` and ``oof_predictions``.
    layers : iterable of str
        Those of the cache.
    linear : bool
        Whether the head is linear, on one layer and view, so that a network can be tuned from it.
    views : tuple of int
        Views of every image that the head was fitted on, and that the cache holds.

    Returns
    -------
    list of dict
        ``about``, ``text`` (sentences) and ``figures``.
    """
    found = [_labels(rows, results), _layers(results, list(layers)), _views(*views), _network(rows, results)]
    if rows.task == "classification":
        found.append(_tuning(rows, results, linear=linear))
        if "oof_predictions" in results:
            found.append(_wrong_labels(rows, results["oof_predictions"]))
    return found


def _advice(about: str, text: str, **figures: Any) -> dict[str, Any]:
    return {"about": about, "text": text, "figures": figures}


def _labels(rows: Rows, results: Mapping[str, Any]) -> dict[str, Any]:
    doubling: Doubling | None = results.get("doubling")
    about, curve = "more labels", results.get("learning_curve") or []
    if doubling is not None:
        figures = doubling.as_dict()
        expected = _with_ends(figures["score"])
        if doubling.is_measurable:
            text = f"Twice the training rows ({doubling.rows}) would raise the accuracy by {_change(figures['gain'])}"
        else:
            text = (
                f"No measurable gain: twice the training rows ({doubling.rows}) would change the accuracy by "
                f"{_change(figures['gain'])}"
            )
        return _advice(about, f"{text}, to {expected}, as the learning curve goes on.", **figures)
    score, name = TASKS[rows.task].score, TASKS[rows.task].score_name
    if len(curve) > 1:
        before, now = curve[-2], curve[-1]
        text = (
            f"From {before['rows']} to {now['rows']} training rows the {name} went from {before[score]['value']:.4f} "
            f"to {_with_ends(now[score])}; only curves of accuracies are extrapolated."
        )
        return _advice(about, text, before=before, now=now)
    return _advice(about, "Not known: there is no learning curve of two numbers of training rows.")


def _layers(results: Mapping[str, Any], layers: list[str]) -> dict[str, Any]:
    about, table = "another layer", results.get("layers") or []
    if table:
        chosen = next(entry for entry in table if entry["chosen"])
        usual = next((entry for entry in table if entry["layers"] == [PENULTIMATE]), None)
        text = f"Of {len(table)} layers and concatenations the folds took {_named(chosen)}, with {_measured(chosen)}"
        if usual is None or usual is chosen:
            other = min((entry for entry in table if entry is not chosen), key=lambda entry: float(entry["loss"]))
            compared = f"the best other one, {_named(other)}, has {_measured(other)}"
        else:
            other, compared = usual, f"{PENULTIMATE}, the default, has {_measured(usual)}"
        return _advice(about, f"{text}; {compared}.", chosen=chosen, other=other)
    if len(layers) > 1:
        text = f"Not compared: the cache holds {len(layers)} layers, which fit-head --layers all compares by the folds."
    else:
        text = "Not compared: the cache holds one layer; extract --layer auto keeps four, and scout compares them."
    return _advice(about, text, layers=len(layers))


def _named(candidate: Mapping[str, Any]) -> str:
    return SEPARATOR.join(candidate["layers"])


def _measured(candidate: Mapping[str, Any]) -> str:
    """Return what the folds measured of a candidate."""
    loss = f"a loss of {candidate['loss']:.4g}"
    return f"accuracy {_with_ends(candidate['accuracy'])} and {loss}" if "accuracy" in candidate else loss


def _views(fitted: int, held: int) -> dict[str, Any]:
    if fitted > 1:
        text = f"The head takes {fitted} views of every image; fit-head --no-views, and compare, show what they bring."
    elif held > 1:
        text = f"Not taken: the cache holds {held} views of every image, which fit-head takes without --no-views."
    else:
        text = (
            "Not measured: the cache holds one view of every image; extract --views flip adds its mirror image, in "
            "twice the time of the network."
        )
    return _advice("more views", text, fitted=fitted, held=held)


def _network(rows: Rows, results: Mapping[str, Any]) -> dict[str, Any]:
    task = TASKS[rows.task]
    score = results["metrics"][results["held_out"]][task.score]
    left, most = 1.0 - score["value"], 1.0 - score["low"]
    text = f"Not compared: the {task.score_name} leaves {left:.4f} to gain, by its interval at most {most:.4f}."
    if np.isfinite(left):
        text += " pipeline scout IMAGES compares networks on a sample."
    else:
        text = "Not compared. pipeline scout IMAGES compares networks on a sample."
    return _advice("another network", text, left=left, at_most=most)


def _tuning(rows: Rows, results: Mapping[str, Any], *, linear: bool) -> dict[str, Any]:
    about = "tuning the network"
    train, accuracy = len(rows.of("train")), results["metrics"][results["held_out"]]["accuracy"]
    each, wrong = train / len(rows.class_names), 1.0 - accuracy["value"]
    figures = {"rows_a_class": each, "wrong": wrong}
    facts = f"{train} training rows, {each:.0f} a class, and {wrong:.1%} wrong"
    if each < _ROWS_TO_TUNE or wrong < _ERROR_TO_TUNE:
        what = (
            f"fewer than {_ROWS_TO_TUNE} a class" if each < _ROWS_TO_TUNE else f"less than {_ERROR_TO_TUNE:.0%} wrong"
        )
        return _advice(about, f"Little room: {facts}; {what} leave it little to learn from.", **figures)
    how = (
        "pipeline finetune CACHE RUN"
        if linear
        else "pipeline finetune, from a run with --head logistic on one layer and view,"
    )
    return _advice(about, f"There is room: {facts}. {how} trains the network and measures the gain.", **figures)


def _wrong_labels(rows: Rows, held_out: NDArray[np.float64]) -> dict[str, Any]:
    about, y = "better labels", rows.y[rows.of("train")]
    known = np.isfinite(held_out).all(axis=1)
    probabilities, y = held_out[known], y[known]
    contradicted = int(((probabilities.argmax(axis=1) != y) & (probabilities.max(axis=1) >= _SURE)).sum())
    share, verb = contradicted / max(len(y), 1), "is" if contradicted == 1 else "are"
    text = (
        f"{contradicted} of {len(y)} training labels ({share:.1%}) {verb} contradicted with at least {_SURE:.0%} by "
        "heads that have not seen them."
    )
    if contradicted:
        text += " pipeline check-labels CACHE ranks them; hard images are among them."
    return _advice(about, text, contradicted=contradicted, rows=len(y))


def _change(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"


def _with_ends(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
