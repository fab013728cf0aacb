"""One answer for each group of rows: how it is pooled, chosen on held-out training rows, and what it is worth.

Axes: N rows of a split, G groups, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.callbacks import ignore
from pipeline.core.csv_rows import csv_writer
from pipeline.core.names import SHOWN
from pipeline.errors import HeadError
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.choice import cheapest
from pipeline.evaluation.pooling import EMBEDDINGS, POOLINGS, Pooling, group_means, group_sums, numbered
from pipeline.evaluation.splits import given_group
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.compare import paired_intervals
from pipeline.fitting.layers import held_out_scores
from pipeline.fitting.measure import fitted_temperature
from pipeline.fitting.rows import Rows, possible_folds, read_rows
from pipeline.heads.registry import STREAMED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.fit import FittedHead
    from pipeline.heads.model import HeadModel

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Fit = Callable[[NDArray[np.float32], NDArray[Any], NDArray[Any] | None, int], FittedHead]
    """From features (G, D), targets, groups and a number of folds to a fitted head."""

_BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Groups:
    """The groups of one split.

    Attributes
    ----------
    names : ndarray of shape (G,), str
        In the order of the cache.
    code : ndarray of shape (N,), int
        Number of each row's group.
    first : ndarray of shape (G,), int
        Position of the first row of each, among all rows.
    rows : Rows
        The rows used.
    at : ndarray of shape (N,), int
        Positions of the split's rows.
    """

    names: NDArray[np.str_]
    code: Ints
    first: Ints
    rows: Rows
    at: Ints

    @classmethod
    def of(cls, rows: Rows, at: Ints) -> Groups:
        """Return the groups of the rows at these positions."""
        assert rows.per is not None
        names, code, first = numbered(rows.per[at])
        return cls(names, code, at[first], rows, at)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def y(self) -> NDArray[Any]:
        """The target of each."""
        return self.rows.y[self.first]

    @property
    def coarser(self) -> NDArray[Any] | None:
        """What must stay together, where that is more than one of these groups."""
        if self.rows.groups is None:
            return None
        groups = self.rows.groups[self.first]
        return groups if len(np.unique(groups)) < len(groups) else None

    def sizes(self) -> Ints:
        """Return the number of rows of each."""
        return np.bincount(self.code, minlength=len(self))

    def means(self, embeddings: Any) -> NDArray[np.float32]:
        """Return the mean features (G, D), read block by block from an array (rows of the cache, D)."""
        total = np.zeros((len(self), embeddings.shape[1]))
        for start in range(0, len(self.at), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            here, code = np.unique(self.code[part], return_inverse=True)
            X = read_rows(embeddings, self.rows.index[self.at[part]])
            total[here] += group_sums(X, code.ravel(), len(here))
        return (total / self.sizes()[:, None]).astype(np.float32)

    def as_rows(self) -> Rows:
        """Return the groups as training rows of their own."""
        return replace(
            self.rows,
            index=np.arange(len(self)),
            y=self.y,
            groups=self.coarser,
            split=np.full(len(self), "train"),
            per=None,
        )


@dataclass(frozen=True)
class PooledHead:
    """How a run answers for groups.

    Attributes
    ----------
    pooling : Pooling
        What was chosen.
    model : HeadModel or None
        The head on mean embeddings, where that was chosen.
    table : list of dict
        Every candidate: ``pooling``, ``loss``, ``accuracy`` (or what else compares runs), ``temperature``, ``tied``
        (cannot be distinguished from the best) and ``chosen``; empty where training rows could not be held out.
    """

    pooling: Pooling
    model: HeadModel | None = None
    table: list[dict[str, Any]] | None = None

    def predictions(self, groups: Groups, of_rows: Floats, embeddings: Any) -> Floats:
        """Return the predictions (G, K) of groups from those of their rows, or from the rows' embeddings."""
        if self.model is not None:
            return self.model.predict_proba(groups.means(embeddings))
        return self.pooling.predictions(TASKS[groups.rows.task], of_rows, groups.code, len(groups))


@dataclass(frozen=True)
class _Candidate:
    """A pooling, and its predictions of training groups by heads that have not seen them (NaN: held out by none)."""

    head: PooledHead
    predictions: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.predictions).all(axis=1))


def choose_pooling(
    rows: Rows, model: HeadModel, of_rows: Floats | None, embeddings: Any, settings: FitSettings, fit: Fit
) -> PooledHead:
    """Choose how groups are pooled by the loss of training groups that each fold held out.

    Of poolings whose loss cannot be distinguished from the least, the simplest is taken.

    Parameters
    ----------
    rows : Rows
        With ``per``.
    model : HeadModel
        The head on rows, with its temperature.
    of_rows : ndarray of shape (N, K) or None
        Predictions of the training rows; see `pipeline.fitting.layers.held_out_predictions`.
    embeddings : array (rows of the cache, D)
        What it was fitted on.
    settings : FitSettings
        ``pooling``, ``folds``, ``calibrate`` and ``seed`` count.
    fit : callable
        Fits the same kind of head on other rows.

    Raises
    ------
    HeadError
        The pooling asked for cannot be had.
    """
    groups = Groups.of(rows, rows.of("train"))
    asked = POOLINGS if settings.pooling == "auto" else (settings.pooling,)
    if EMBEDDINGS in asked and (settings.head in STREAMED or model.kind == "estimator"):
        if len(asked) == 1:
            raise HeadError(
                f"--pooling {EMBEDDINGS} fits a second head on the means of groups, which this one does not allow: "
                "take --pooling mean or max, or another head"
            )
        asked = POOLINGS[:-1]
    candidates = []
    for how in asked:
        pooling = Pooling(rows.per_name, how)
        if how == EMBEDDINGS:
            found = _on_means(groups, pooling, embeddings, settings, fit, is_wanted=len(asked) == 1)
        else:
            found = None if of_rows is None else _pooled(groups, pooling, of_rows, calibrate=settings.calibrate)
        candidates += [] if found is None else [found]
    if not candidates:
        return PooledHead(Pooling(rows.per_name, asked[0]), table=[])
    return _chosen(candidates, groups)


def _pooled(groups: Groups, pooling: Pooling, of_rows: Floats, *, calibrate: bool) -> _Candidate:
    """Return a pooling of rows, with the temperature that suits it."""
    task = TASKS[groups.rows.task]
    known = np.isfinite(of_rows).all(axis=1)
    here, code = np.unique(groups.code[known], return_inverse=True)
    code = code.ravel()
    predictions = np.full((len(groups), of_rows.shape[1]), np.nan)
    predictions[here] = pooling.predictions(task, of_rows[known], code, len(here))
    if calibrate:
        evidence = task.evidence(predictions[here])
        pooling = replace(pooling, temperature=task.temperature(evidence, groups.y[here], log_probabilities=True))
        predictions[here] = pooling.predictions(task, of_rows[known], code, len(here))
    return _Candidate(PooledHead(pooling), predictions)


def _on_means(
    groups: Groups, pooling: Pooling, embeddings: Any, settings: FitSettings, fit: Fit, *, is_wanted: bool
) -> _Candidate | None:
    """Return a head on the mean embeddings of groups; None where they are too few for it, unless it is wanted."""
    as_rows, X = groups.as_rows(), groups.means(embeddings)
    try:
        fitted = fit(X, as_rows.y, as_rows.groups, possible_folds(as_rows, settings.folds, ignore))
        temperature = fitted_temperature(as_rows.task, fitted, as_rows.y) if settings.calibrate else 1.0
        model = replace(fitted.model, temperature=temperature)
        scores = fitted.oof_scores
        if scores is None:
            scores = held_out_scores(X, as_rows, settings, fitted)
    except HeadError:
        if is_wanted:
            raise
        return None
    return _Candidate(PooledHead(pooling, model), model.link_scores(scores))


def _chosen(candidates: list[_Candidate], groups: Groups) -> PooledHead:
    task = TASKS[groups.rows.task]
    known = np.all([candidate.known for candidate in candidates], axis=0)
    if not known.any():
        return replace(candidates[0].head, table=[])
    y, coarser = groups.y[known], groups.coarser
    losses = [task.losses(y, candidate.predictions[known]) for candidate in candidates]
    codes = None if coarser is None else np.unique(coarser[known], return_inverse=True)[1].ravel()
    chosen, ties = cheapest(losses, list(range(len(candidates))), codes)
    table = []
    for number, (candidate, loss) in enumerate(zip(candidates, losses, strict=True)):
        cost = float(task.costs(y, candidate.predictions[known]).mean())
        entry = {
            "pooling": candidate.head.pooling.how,
            "loss": float(loss.mean()),
            task.measure_name: cost if task.measure_is_cost else 1 - cost,
            "temperature": candidate.head.pooling.temperature,
        }
        table.append(entry | {"tied": number in ties, "chosen": number == chosen})
    return replace(candidates[chosen].head, table=table)


def measure_groups(
    rows: Rows, head: PooledHead, predictions: dict[str, Floats], embeddings: Any, *, seed: int, replicates: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Floats]]:
    """Measure the answers for the groups of every split that was held out.

    Parameters
    ----------
    rows : Rows
        With ``per``.
    head : PooledHead
        How groups are answered for.
    predictions : dict of str to ndarray of shape (N, K)
        Those of the rows, by split.
    embeddings : array (rows of the cache, D)
        What the head was fitted on.
    seed, replicates : int
        Of the bootstrap over groups.

    Returns
    -------
    dict of str to dict
        By split the task's figures, and: ``groups``, their number; ``single``, what one row of each group, drawn at
        random, gives; ``difference``, what the answer for the group is better by, both with intervals.
    dict of str to ndarray of shape (G, K)
        Predictions by split.
    """
    task = TASKS[rows.task]
    figures, found = {}, {}
    for split, of_rows in predictions.items():
        groups = Groups.of(rows, rows.of(split))
        of_groups = found[split] = head.predictions(groups, of_rows, embeddings)
        figures[split] = task.measure(
            groups.y, of_groups, rows.class_names, seed=seed, replicates=replicates, groups=groups.coarser
        )
        single = group_means(task.costs(rows.y[groups.at], of_rows)[:, None], groups.code, len(groups))[:, 0]
        costs = [single, task.costs(groups.y, of_groups)]
        together = None if groups.coarser is None else groups.coarser.tolist()
        paired = paired_intervals(task, costs, together, seed=seed, replicates=replicates)
        figures[split] |= {
            "groups": len(groups),
            "single": paired["figure 0"].as_dict(),
            "difference": paired["difference 1"].as_dict(),
        }
    return figures, found


def group_headline(task: str, per: str, figures: dict[str, Any]) -> str:
    """Return the main figures of the answers for groups in one line."""
    difference = Interval(**figures["difference"])
    return (
        f"one answer per {per}: {TASKS[task].headline(figures)}, on {figures['groups']} groups; "
        f"{TASKS[task].measure_name} {difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}) "
        "against one row of each"
    )


def write_groups(path: Path, predictions: dict[str, Floats], rows: Rows, cache: Cache) -> None:
    """Write one line for every group of the held-out rows, in the order of the cache."""
    task = TASKS[rows.task]
    with path.open("w", encoding="utf-8", errors=SHOWN, newline="") as file:
        writer = csv_writer(file)
        writer.writerow(["group", "key", "rows", "split", "label", *task.header(rows.class_names)])
        for split, of_split in predictions.items():
            groups = Groups.of(rows, rows.of(split))
            keys = cache.keys_of(rows.index[groups.first])
            for name, key, size, y, predicted in zip(
                groups.names.tolist(), keys, groups.sizes(), groups.y, of_split, strict=True
            ):
                cells = [task.label(y, rows.class_names), *task.cells(predicted, rows.class_names)]
                writer.writerow([given_group(name), key, size, split, *cells])
