"""Would more images help, and how few are enough: the same head on fewer training rows.

Axes: N rows, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation import bootstrap
from pipeline.evaluation.extrapolation import doubled
from pipeline.evaluation.splits import stratified_order
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.evaluation.extrapolation import Doubling
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.fit import FittedHead

    Floats = NDArray[np.float64]

SHARES = (0.01, 0.03, 0.1, 0.3)
"""Shares of the training rows that a learning curve is fitted on, besides all of them."""
_MEASURED_ROWS = 20_000
"""Held-out rows that measure a point of a curve: the interval of an accuracy is then below ±0.7 points."""


@dataclass(frozen=True)
class LearningCurve:
    """A learning curve.

    Attributes
    ----------
    points : list of dict
        ``rows`` and the task's score with its interval, for every share that could be fitted.
    doubling : Doubling or None
        What is expected of twice the rows; None for fewer than two points, and where the score is no accuracy.
    """

    points: list[dict[str, Any]] = field(default_factory=list)
    doubling: Doubling | None = None


class _Measured:
    """The held-out rows on which the points of a curve are measured."""

    def __init__(self, rows: Rows, embeddings: NDArray[Any], settings: FitSettings) -> None:
        at = rows.of(rows.held_out)
        self.at = np.sort(np.random.default_rng(settings.seed).permutation(at)[:_MEASURED_ROWS])
        self.X = read_rows(embeddings, rows.index[self.at])
        self.y = rows.y[self.at]
        self._groups = None if rows.groups is None else rows.groups[self.at]
        self._task, self._settings = TASKS[rows.task], settings
        self.independent = float(len(self.y) if self._groups is None else len(np.unique(self._groups)))

    def points(self, predictions: list[list[Floats]]) -> tuple[list[dict[str, Any]], Floats]:
        """Return the mean score of each point of a curve, with an interval over its draws and over the rows.

        Parameters
        ----------
        predictions : list of list of ndarray
            Those of every draw, as many for each point; all points are measured on the same resamples.

        Returns
        -------
        list of dict
            The task's score of every point.
        ndarray of shape (points, 1 + resamples)
            Those scores on all rows, and on every resample.
        """
        if not predictions:
            return [], np.zeros((0, 1))
        task, settings = self._task, self._settings
        count = bootstrap.replicates_for(self.y.size, settings.replicates)
        rng = np.random.default_rng(settings.seed)
        every = np.arange(len(predictions[0]))
        # The value is that of all draws; a replicate draws the draws again, as it does the rows.
        chosen = iter([every, *rng.choice(every, (count, len(every)))])
        scorers = [[task.scorer(self.y, draw) for draw in draws] for draws in predictions]

        drawn = []

        def score(weights: Floats) -> dict[str, Floats]:
            draws = [next(chosen) for _ in weights]
            found = [_mean_of_draws(np.array([scorer(weights) for scorer in of_point]), draws) for of_point in scorers]
            drawn.append(np.array(found))
            return {str(point): values for point, values in enumerate(found)}

        shares = dict.fromkeys(map(str, range(len(scorers))), self.independent) if task.score_is_share else {}
        figures = bootstrap.bootstrap_intervals(
            score, len(self.y), seed=settings.seed, replicates=count, groups=self._groups, shares=shares
        )
        points = [{task.score: figures[name].as_dict()} for name in map(str, range(len(scorers)))]
        return points, np.concatenate(drawn, axis=1)


def _mean_of_draws(scores: Floats, chosen: list[NDArray[np.int64]]) -> Floats:
    """Return the mean (R,) of scores (draws, R) over the draws that each replicate has chosen."""
    if len(scores) == 1:
        return np.asarray(scores[0])
    counted = [np.unique(draws, return_counts=True) for draws in chosen]
    return np.array(
        [np.average(of[draws], weights=times) for of, (draws, times) in zip(scores.T, counted, strict=True)]
    )


def learning_curve(rows: Rows, embeddings: NDArray[Any], fitted: FittedHead, settings: FitSettings) -> LearningCurve:
    """Fit the same head on growing shares of the training rows, every class in each of them.

    Accuracies are extrapolated to twice the rows by `pipeline.evaluation.extrapolation.doubled`.
    """
    if fitted.refit is None:
        return LearningCurve()
    task, measured = TASKS[rows.task], _Measured(rows, embeddings, settings)
    train = rows.of("train")
    order = stratified_order(task.strata(rows.y)[train], settings.seed)
    least = 2 * (len(rows.class_names) if rows.task != "regression" else 5)
    counts, predictions = [], []
    for share in (*SHARES, 1.0):
        count = round(share * len(train))
        if count < least:
            continue
        model = fitted.model
        if share < 1.0:
            part = train[np.sort(order[:count])]
            try:
                fewer = fitted.refit(read_rows(embeddings, rows.index[part]), rows.y[part])
                scores = None if fewer is None else fewer.scores(measured.X)
            except HeadError:
                continue  # an estimator that wants more rows
            if fewer is None or scores is None:
                continue
            model = fewer
        else:
            scores = model.scores(measured.X)
        counts.append(count)
        predictions.append([model.link_scores(scores)])
    points, drawn = measured.points(predictions)
    doubling = None
    if rows.task == "classification":
        doubling = doubled(np.array(counts, dtype=np.float64), drawn[:, 0], drawn[:, 1:], measured.independent)
    return LearningCurve([{"rows": count, **point} for count, point in zip(counts, points, strict=True)], doubling)


def few_shot_curve(
    rows: Rows,
    embeddings: NDArray[Any],
    fitted: FittedHead,
    settings: FitSettings,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Fit the same head on a few training rows of every class, drawn several times.

    Returns
    -------
    list of dict
        ``shots``, ``draws`` and ``accuracy``: the mean over the draws, with an interval over draws and held-out rows.

    Raises
    ------
    HeadError
        The head cannot be fitted again.
    """
    if fitted.refit is None:
        raise HeadError("this head cannot be fitted again on few rows: leave --shots out, or take another head")
    measured = _Measured(rows, embeddings, settings)
    train = rows.of("train")
    of_class = [train[rows.y[train] == k] for k in range(len(rows.class_names))]
    fewest = min(map(len, of_class))
    taken, predictions = [], []
    for shots in sorted(set(settings.shots)):
        if shots > fewest:
            note(f"no curve at {shots} images a class: the smallest class has {fewest} training rows")
            continue
        of_draw: list[Floats] = []
        for draw in range(settings.draws):
            rng = np.random.default_rng([settings.seed, shots, draw])
            part = np.sort(np.concatenate([rng.choice(members, shots, replace=False) for members in of_class]))
            try:
                model = fitted.refit(read_rows(embeddings, rows.index[part]), rows.y[part])
                if model is not None:
                    of_draw.append(model.predict_proba(measured.X))
            except HeadError as error:
                note(f"no curve at {shots} images a class: {error}")
                break
        if len(of_draw) == settings.draws:
            taken.append(shots)
            predictions.append(of_draw)
    points, _ = measured.points(predictions)
    return [{"shots": n, "draws": settings.draws, **point} for n, point in zip(taken, points, strict=True)]
