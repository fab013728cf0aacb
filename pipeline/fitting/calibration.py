"""What a fit keeps for later doubts: its training rows, a novelty score, and scores of rows it has not seen.

Axes: N rows, M training rows, D features, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import conformal
from pipeline.evaluation.choice import hits
from pipeline.evaluation.selective import area_under_risk, risk_coverage
from pipeline.evaluation.shares import effective_rows, share_interval
from pipeline.fitting.rows import read_rows
from pipeline.heads.calibration import Calibration, ConformalScores, TrainingRows, hash_of_keys
from pipeline.heads.model import mean_view
from pipeline.heads.novelty import MOST_HELD_OUT, fit_novelty

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.layers import LayerChoice
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.novelty import Novelty

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

MOST_SCORES = 200_000
"""Calibration rows that are kept: with more, the coverage is known to 0.001."""
_NOVELTY_VALUES = 1 << 25
_STEP_ROWS = 4096
_USUAL = 0.9
"""The coverage for which a fit says that calibration rows are few."""


def calibrate(
    cache: Cache,
    rows: Rows,
    choice: LayerChoice,
    held_out: Floats | None,
    predictions: Mapping[str, Floats],
    settings: FitSettings,
) -> Calibration:
    """Return what is kept with a head.

    Parameters
    ----------
    cache, rows
        What the head was fitted on.
    choice : LayerChoice
        The head and its features.
    held_out : ndarray of shape (M, K) or None
        Predictions of the training rows; see `pipeline.fitting.layers.held_out_predictions`.
    predictions : mapping of str to ndarray of shape (N, K)
        Of the splits held out.
    settings : FitSettings
    """
    train = rows.index[rows.of("train")]
    labels, keys = rows.y[rows.of("train")], hash_of_keys(cache.keys_of(train))
    training = TrainingRows(str(Path(cache.path).absolute()), cache.fingerprint, keys, train, labels)
    novelty = _novelty(rows, choice, held_out, settings)
    return Calibration(training, novelty, _conformal(rows, held_out, predictions, settings))


def _novelty(rows: Rows, choice: LayerChoice, held_out: Floats | None, settings: FitSettings) -> Novelty | None:
    """Return the novelty score of a sample of the training rows, for features as the cache holds them."""
    most = int(np.clip(_NOVELTY_VALUES // choice.embeddings.shape[1], 256, MOST_HELD_OUT))
    train = rows.of("train")
    known: NDArray[np.bool_] = np.ones(len(train), dtype=np.bool_)
    if rows.task == "classification" and held_out is not None:
        known = np.asarray(np.isfinite(held_out).all(axis=1))
    kept = _sample(np.flatnonzero(known), most, settings.seed)
    groups = None if rows.groups is None else rows.groups[train[kept]]
    predictions = held_out[kept] if rows.task == "classification" and held_out is not None else None
    X = _raw(choice, rows.index[train[kept]])
    return fit_novelty(X, predictions, seed=settings.seed, groups=groups, scale=choice.scale)


def _raw(choice: LayerChoice, index: Ints) -> NDArray[np.float32]:
    """Return rows as the cache holds them, layers side by side, and the mean of several views."""
    X = mean_view(read_rows(choice.embeddings, index), choice.fitted.model.views)
    return X if choice.scale is None else (X * choice.scale).astype(np.float32)


def _conformal(
    rows: Rows, held_out: Floats | None, predictions: Mapping[str, Floats], settings: FitSettings
) -> ConformalScores | None:
    """Return nonconformity scores out of fold, or of the val split where that does not measure the head."""
    if rows.task == "multilabel":
        return None
    source = "out-of-fold"
    if held_out is not None:
        known = np.isfinite(held_out).all(axis=1)
        at, found = rows.of("train")[known], held_out[known]
    elif "val" in predictions and rows.held_out != "val":
        source, at, found = "val", rows.of("val"), predictions["val"]
    else:
        return None
    if not len(at):
        return None
    kept = _sample(np.arange(len(at)), MOST_SCORES, settings.seed)
    at, found = at[kept], found[kept]
    groups = at if rows.groups is None else np.unique(rows.groups[at], return_inverse=True)[1].ravel()
    if rows.task == "regression":
        values = conformal.number_scores(found[:, 0], rows.y[at])
        return ConformalScores(values, np.zeros(len(at), dtype=np.int64), groups.astype(np.int64), source)
    return ConformalScores(conformal.class_scores(found, rows.y[at]), rows.y[at], groups.astype(np.int64), source)


def _sample(rows: Ints, most: int, seed: int) -> Ints:
    """Return some of the rows in their order, or all of them."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def trust_figures(
    rows: Rows, choice: LayerChoice, found: Calibration, predictions: Floats, note: Callable[[str], None]
) -> dict[str, Any]:
    """Measure label sets, intervals and abstention on the split that measures the head.

    Parameters
    ----------
    rows, choice
        What the head was fitted on.
    found : Calibration
    predictions : ndarray of shape (N, K)
        Of the rows that measure.
    note : callable
        Takes lines for the user.

    Returns
    -------
    dict
        ``conformal``: a list with coverage asked for and reached, and sizes; ``selective``: curves of risk against
        coverage by ``confidence`` and ``novelty``, with the area under each. Either may be missing.
    """
    at = rows.of(rows.held_out)
    y, groups = rows.y[at], None if rows.groups is None else rows.groups[at]
    figures: dict[str, Any] = {}
    if found.conformal is not None:
        figures["conformal"] = [
            _reached(found.conformal, coverage, rows, predictions, y, groups) for coverage in conformal.USUAL_COVERAGES
        ]
        figures["calibration_rows"] = found.conformal.independent
        figures["calibration_counted"] = found.conformal.counted
        figures["calibration_source"] = found.conformal.source
        if text := conformal.few_rows(_USUAL, found.conformal.independent, found.conformal.counted):
            note(f"label sets and intervals: {text}")
    if rows.task == "classification":
        figures["selective"] = _selective(rows, choice, found, predictions, at)
    return figures


def _reached(
    scores: ConformalScores, coverage: float, rows: Rows, predictions: Floats, y: NDArray[Any], groups: Any
) -> dict[str, Any]:
    """Return what sets or intervals of a coverage reach on held-out rows."""
    limit = conformal.threshold(scores.scores, coverage, scores.groups)
    if rows.task == "regression":
        right = (conformal.number_scores(predictions[:, 0], y) <= limit).astype(np.float64)
        facts: dict[str, Any] = {"hits": right, "half_width": limit}
    else:
        facts = conformal.measured_sets(conformal.label_sets(predictions, limit), y)
    right = facts.pop("hits")
    share = float(right.mean())
    low, high = share_interval(share, effective_rows(right, groups))
    return {"asked": coverage, "reached": {"value": share, "low": low, "high": high}, "rows": len(y), **facts}


def _selective(
    rows: Rows, choice: LayerChoice, found: Calibration, predictions: Floats, at: Ints
) -> dict[str, dict[str, Any]]:
    wrong = 1.0 - hits(predictions, rows.y[at])
    doubts = {"confidence": -predictions.max(axis=1)}
    if found.novelty is not None:
        doubts["novelty"] = _novelties(found.novelty, choice, rows.index[at], predictions)
    curves = {}
    for name, doubt in doubts.items():
        curve: dict[str, Any] = risk_coverage(doubt, wrong)
        del curve["doubt"]
        curves[name] = curve | {"area": area_under_risk(doubt, wrong)}
    return curves


def _novelties(novelty: Novelty, choice: LayerChoice, index: Ints, predictions: Floats) -> Floats:
    """Return the novelty of rows of the cache, a part at a time."""
    parts = [slice(start, start + _STEP_ROWS) for start in range(0, len(index), _STEP_ROWS)]
    return np.concatenate([novelty.percentiles(_raw(choice, index[part]), predictions[part]) for part in parts])
