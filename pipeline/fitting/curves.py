"""Would more images help, and how few are enough: the same head on fewer training rows.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation import bootstrap
from pipeline.evaluation.splits import stratified_order
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.fit import FittedHead

    Floats = NDArray[np.float64]

_SHARES = (0.01, 0.03, 0.1, 0.3)
_MEASURED_ROWS = 20_000
"""Held-out rows that measure a point of a curve: the interval of an accuracy is then below ±0.7 points."""


class _Measured:
    """The held-out rows on which the points of a curve are measured."""

    def __init__(self, rows: Rows, embeddings: NDArray[Any], settings: FitSettings) -> None:
        at = rows.of(rows.held_out)
        self.at = np.sort(np.random.default_rng(settings.seed).permutation(at)[:_MEASURED_ROWS])
        self.X = read_rows(embeddings, rows.index[self.at])
        self.y = rows.y[self.at]
        self._groups = None if rows.groups is None else rows.groups[self.at]
        self._task, self._settings = TASKS[rows.task], settings

    def point(self, predictions: list[Floats]) -> dict[str, Any]:
        """Return the mean score of these predictions, with an interval over them and over the rows."""
        task, settings = self._task, self._settings
        count = bootstrap.replicates_for(self.y.size, settings.replicates)
        rng = np.random.default_rng(settings.seed)
        every = np.arange(len(predictions))
        # The value is that of all draws; a replicate draws the draws again, as it does the rows.
        chosen = iter([every, *rng.choice(every, (count, len(every)))])

        def score(weight: Floats) -> dict[str, float]:
            draws, times = np.unique(next(chosen), return_counts=True)
            scores = [task.score_of(self.y, predictions[draw], weight) for draw in draws]
            return {task.score: float(np.average(scores, weights=times))}

        rows = len(self.y) if self._groups is None else len(np.unique(self._groups))
        shares = {task.score: float(rows)} if task.score_is_share else {}
        figures = bootstrap.bootstrap_intervals(
            score, len(self.y), seed=settings.seed, replicates=count, groups=self._groups, shares=shares
        )
        return {task.score: figures[task.score].as_dict()}


def learning_curve(
    rows: Rows, embeddings: NDArray[Any], fitted: FittedHead, settings: FitSettings
) -> list[dict[str, Any]]:
    """Fit the same head on growing shares of the training rows, every class in each of them.

    Returns
    -------
    list of dict
        ``rows`` and the task's score with its interval, for every share that could be fitted.
    """
    if fitted.refit is None:
        return []
    task, measured = TASKS[rows.task], _Measured(rows, embeddings, settings)
    train = rows.of("train")
    order = stratified_order(task.strata(rows.y)[train], settings.seed)
    least = 2 * (len(rows.class_names) if rows.task != "regression" else 5)
    curve = []
    for share in (*_SHARES, 1.0):
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
        curve.append({"rows": count, **measured.point([model.link_scores(scores)])})
    return curve


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
    curve = []
    for shots in sorted(set(settings.shots)):
        if shots > fewest:
            note(f"no curve at {shots} images a class: the smallest class has {fewest} training rows")
            continue
        predictions = []
        for draw in range(settings.draws):
            rng = np.random.default_rng([settings.seed, shots, draw])
            part = np.sort(np.concatenate([rng.choice(members, shots, replace=False) for members in of_class]))
            try:
                model = fitted.refit(read_rows(embeddings, rows.index[part]), rows.y[part])
                if model is not None:
                    predictions.append(model.predict_proba(measured.X))
            except HeadError as error:
                note(f"no curve at {shots} images a class: {error}")
                break
        if len(predictions) == settings.draws:
            curve.append({"shots": shots, "draws": settings.draws, **measured.point(predictions)})
    return curve
