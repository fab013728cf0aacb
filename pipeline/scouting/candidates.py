"""Embeddings as candidates for a head: how good each is on the rows that its folds hold out, and against the best.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.choice import hits
from pipeline.evaluation.splits import fold_count
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.compare import paired_intervals
from pipeline.fitting.measure import fitted_temperature
from pipeline.heads.fit import FitOptions
from pipeline.heads.logistic import fit_logistic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.evaluation.bootstrap import Interval

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutScores:
    """What a logistic head does on rows that it has not seen, each held out by one fold.

    Attributes
    ----------
    hits : ndarray of shape (N,)
        1 where the row is right, 0 where it is wrong; NaN for the only row of a class, which no fold holds out.
    log_loss : float
        Mean over the rows held out.
    C : float
        The strength of the penalty that the folds chose.
    """

    hits: Floats
    log_loss: float
    C: float


@dataclass(frozen=True)
class Standing:
    """A candidate against the best one.

    Attributes
    ----------
    accuracy : Interval
        On the rows held out.
    difference : Interval
        Its accuracy minus the best one's, on the same resampled rows.
    is_best : bool
    is_as_good : bool
        The interval of the difference reaches 0, so that the rows cannot tell it from the best.
    """

    accuracy: Interval
    difference: Interval
    is_best: bool
    is_as_good: bool


def score_by_folds(
    X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[Any] | None, *, folds: int, seed: int, device: str
) -> HeldOutScores:
    """Fit the logistic head with its choice of C, and return how it does on the rows that the folds hold out.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Embeddings.
    y : ndarray of shape (N,)
        Classes 0 … K−1, one of them with at least two rows (or groups).
    groups : ndarray of shape (N,) or None
        Rows of one group share a fold.
    folds, seed : int
        The same rows, folds and seed give the same folds, whatever X is.
    device : str
        Where to fit.
    """
    options = FitOptions(folds=fold_count(y, folds, groups), seed=seed, device=device)
    fitted = fit_logistic(X, y, groups, options)
    assert fitted.oof_scores is not None
    known = np.isfinite(fitted.oof_scores).all(axis=1)
    model = replace(fitted.model, temperature=fitted_temperature("classification", fitted, y))
    probabilities = model.link_scores(fitted.oof_scores[known])
    right = np.full(len(y), np.nan)
    right[known] = hits(probabilities, y[known])
    loss = float(TASKS["classification"].losses(y[known], probabilities).mean())
    return HeldOutScores(right, loss, float(fitted.chosen["C"]))


def stand(
    scores: Sequence[HeldOutScores], groups: NDArray[Any] | None, *, seed: int, replicates: int = 1000
) -> list[Standing]:
    """Hold candidates against the one of the highest accuracy (of equal ones, the least log loss).

    Parameters
    ----------
    scores : sequence of HeldOutScores
        All of the same rows and folds.
    groups : ndarray of shape (N,) or None
        Whole groups are resampled.
    seed, replicates : int
        Of the bootstrap.

    Returns
    -------
    list of Standing
        In the order of ``scores``.
    """
    known = np.isfinite([each.hits for each in scores]).all(axis=0)
    best = max(range(len(scores)), key=lambda i: (scores[i].hits[known].mean(), -scores[i].log_loss))
    order = [best, *(i for i in range(len(scores)) if i != best)]
    cost = [1.0 - scores[i].hits[known] for i in order]
    names = None if groups is None else [str(group) for group in groups[known]]
    found = paired_intervals(TASKS["classification"], cost, names, seed=seed, replicates=replicates)
    place = {candidate: position for position, candidate in enumerate(order)}
    standings = []
    for i in range(len(scores)):
        difference = found[f"difference {place[i]}"]
        is_best = i == best
        standings.append(Standing(found[f"figure {place[i]}"], difference, is_best, is_best or difference.high >= 0))
    return standings
