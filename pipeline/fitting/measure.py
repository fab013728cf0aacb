"""Measure a head on the splits that were held out.

Axes: N rows, K classes, L labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import calibration, classification
from pipeline.evaluation.choice import hits
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.rows import read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.fitting.rows import Rows
    from pipeline.heads.fit import FittedHead
    from pipeline.heads.model import HeadModel

    Floats = NDArray[np.float64]

_SCORED_ROWS = 32_768


def fitted_temperature(task: str, fitted: FittedHead, y: NDArray[Any]) -> float:
    """Return what scores are divided by: from out-of-fold scores, or as the head found it itself.

    Parameters
    ----------
    task : str
        Name of the task.
    fitted : FittedHead
        The head.
    y : ndarray
        The targets of the training rows.
    """
    if fitted.oof_scores is None:
        return fitted.model.temperature
    held_out = np.isfinite(fitted.oof_scores).all(axis=1)
    return TASKS[task].temperature(fitted.oof_scores[held_out], y[held_out], log_probabilities=fitted.log_probabilities)


def scores_of_rows(model: HeadModel, embeddings: Any, index: NDArray[np.int64]) -> Floats:
    """Return the scores (N, K) of rows of the cache, which may be more than fit into memory.

    Parameters
    ----------
    model : HeadModel
    embeddings : array of shape (rows of the cache, D)
    index : ndarray of shape (N,)
        Rows of the cache.
    """
    blocks = [index[start : start + _SCORED_ROWS] for start in range(0, len(index), _SCORED_ROWS)]
    return np.concatenate([model.scores(read_rows(embeddings, block)) for block in blocks])


def measure_splits(
    rows: Rows,
    scores: dict[str, Floats],
    model: HeadModel,
    *,
    seed: int,
    replicates: int,
    fitted: FittedHead | None = None,
) -> dict[str, Any]:
    """Measure every split that was held out, and keep what the report shows.

    Parameters
    ----------
    rows : Rows
        The rows used.
    scores : dict of str to ndarray of shape (N, K)
        Scores of the head by split, the measured one first.
    model : HeadModel
        The head, with its temperature.
    seed, replicates : int
        Of the bootstrap.
    fitted : FittedHead, optional
        Where the head was fitted here: its choices and its out-of-fold scores.

    Returns
    -------
    dict
        ``metrics``, what is written; ``predictions`` and, where a temperature changed them, ``uncalibrated``, by split;
        ``oof_predictions``; ``calibration``, the number of ``rows`` that the temperature was fitted on; ``sweep``,
        ``chosen``, ``temperature`` and ``held_out``.
    """
    metrics: dict[str, Any] = {}
    results: dict[str, Any] = {"metrics": metrics, "predictions": {}, "held_out": rows.held_out}
    for split, of_split in scores.items():
        at = rows.of(split)
        predictions = model.link_scores(of_split)
        groups = None if rows.groups is None else rows.groups[at]
        metrics[split] = TASKS[rows.task].measure(
            rows.y[at], predictions, rows.class_names, seed=seed, replicates=replicates, groups=groups
        )
        metrics[split]["rows"] = len(at)
        results["predictions"][split] = predictions
        if model.temperature != 1.0:
            before = replace(model, temperature=1.0).link_scores(of_split)
            results.setdefault("uncalibrated", {})[split] = before
            if rows.task == "classification":
                metrics[split]["before_calibration"] = _before_calibration(rows.y[at], before)
    held_out = 0
    if fitted is not None and fitted.oof_scores is not None:
        held_out = int(np.isfinite(fitted.oof_scores).all(axis=1).sum())
        results["oof_predictions"] = model.link_scores(fitted.oof_scores)
    chosen = {} if fitted is None else fitted.chosen
    results["calibration"] = {"rows": held_out or int(chosen.get("validation_rows", 0))}
    facts = {"chosen": chosen, "temperature": model.temperature, "sweep": [] if fitted is None else fitted.sweep}
    metrics |= facts
    return results | facts


def _before_calibration(y: NDArray[np.int64], probabilities: Floats) -> dict[str, float]:
    """Return the figures that the temperature changes, without it."""
    hit = hits(probabilities, y)
    return {
        "ece": calibration.expected_calibration_error(probabilities.max(1), hit),
        "log_loss": float(classification.row_losses(y, probabilities).mean()),
    }
