"""What each input of a head reaches alone, and what it adds: the same head on parts of the features, same rows.

Axes: N rows held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.columns import beside_embeddings
from pipeline.fitting.compare import paired_intervals
from pipeline.fitting.joined_caches import side_by_side
from pipeline.fitting.layers import choose_candidate, held_out_scores, measured_candidate
from pipeline.fitting.measure import scores_of_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.fitting.columns import ColumnBlocks
    from pipeline.fitting.joined_caches import FurtherNetwork
    from pipeline.fitting.layers import Candidate, LayerChoice
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.columns import EncodedColumns
    from pipeline.heads.fit import FittedHead

    Floats = NDArray[np.float64]
    Fit = Callable[[Any], FittedHead]

EMBEDDINGS, COLUMNS = "embeddings", "columns"
WEIGHTS = (1.0, 0.25, 0.0625)
"""What columns may count against the embeddings: the folds choose, so that columns of noise do little harm."""
LEAK = 0.9
"""Share of the cost of a constant guess that columns alone must save to be called a possible leak."""


@dataclass(frozen=True)
class Further:
    """What a head takes besides the embeddings of one network.

    Attributes
    ----------
    path : str
        The first cache.
    networks : tuple of FurtherNetwork
        From `pipeline.fitting.joined_caches.join_caches`.
    columns : EncodedColumns or None
        From `pipeline.fitting.columns.read_columns`.
    """

    path: str
    networks: tuple[FurtherNetwork, ...] = ()
    columns: EncodedColumns | None = None


@dataclass(frozen=True)
class _Input:
    """A part of the features, and the cost of each row held out (N,) by a head on it alone."""

    name: str
    costs: Floats


def fit_with_further(
    choice: LayerChoice, further: Further, rows: Rows, settings: FitSettings, fit: Fit, note: Callable[[str], None]
) -> LayerChoice:
    """Fit the head again with further networks and columns beside the embeddings, and on each input alone.

    All are compared on the rows held out.

    Parameters
    ----------
    choice : LayerChoice
        The head on the embeddings of the first network.
    further : Further
    rows, settings
        The rows used, and the settings of the fit.
    fit : callable
        From an array (rows of the cache, D) to the head fitted on the training rows.
    note : callable
        Called with a line where columns alone reach nearly everything.

    Returns
    -------
    LayerChoice
        With ``columns``, ``more`` and ``inputs``; the former one where there is nothing further.
    """
    alone: list[_Input] = []
    if further.networks:
        choice = _with_networks(choice, further, rows, fit, alone)
    if further.columns is None:
        return replace(choice, inputs=_compared(choice, alone, rows, settings)) if alone else choice
    return _with_columns(choice, further.columns, rows, settings, fit, note, alone)


def _with_networks(choice: LayerChoice, further: Further, rows: Rows, fit: Fit, alone: list[_Input]) -> LayerChoice:
    """Fit the head on all networks side by side, and on each alone."""
    embeddings = side_by_side(choice.embeddings, further.networks, rows.index[rows.of("train")])
    first, *names = _short_names([further.path, *(network.path for network in further.networks)])
    alone.append(_Input(first, _costs(rows, choice.fitted, choice.embeddings)))
    for name, network in zip(names, further.networks, strict=True):
        alone.append(_Input(name, _costs(rows, fit(network.embeddings), network.embeddings)))
    more = tuple(network.facts for network in further.networks)
    return replace(choice, embeddings=embeddings, fitted=fit(embeddings), more=more)


def _short_names(paths: list[str]) -> list[str]:
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _with_columns(
    choice: LayerChoice,
    columns: EncodedColumns,
    rows: Rows,
    settings: FitSettings,
    fit: Fit,
    note: Callable[[str], None],
    alone: list[_Input],
) -> LayerChoice:
    """Fit the head with columns beside its embeddings, and on the columns alone.

    Scores of training rows come from encoders that have not seen them, as the heads have not.
    """
    both, fitted = _weighted(
        beside_embeddings(choice.embeddings, columns, rows.index[rows.of("train")]), rows, settings, fit
    )
    alone.append(_Input(EMBEDDINGS, _costs(rows, choice.fitted, choice.embeddings)))
    try:
        of_columns = _Input(COLUMNS, _costs(rows, fit(columns), columns))
    except HeadError as error:
        note(f"--features: no head on the columns alone ({error})")
    else:
        alone.append(of_columns)
    choice = replace(choice, embeddings=both, fitted=fitted, columns=columns.encoder)
    found = _compared(choice, alone, rows, settings) | {"weight": both.weight}
    if alone[-1].name == COLUMNS and _saved(alone[-1].costs, rows) >= LEAK:
        note(_leak(columns, rows, fit, found))
    return replace(choice, inputs=found)


def _weighted(both: ColumnBlocks, rows: Rows, settings: FitSettings, fit: Fit) -> tuple[ColumnBlocks, FittedHead]:
    """Return the features with the weight of the columns that the folds choose, and the head on them.

    Of weights that cannot be distinguished from the best, the smallest is taken.
    """
    tried: list[tuple[ColumnBlocks, FittedHead]] = []
    measured: list[Candidate] = []
    for weight in WEIGHTS:
        features = both.weighted(weight)
        fitted = fit(features)
        if fitted.refit is None:  # nothing can be held out
            return features, fitted
        scores = held_out_scores(features, rows, settings, fitted)
        measured.append(measured_candidate((), features, rows, settings, replace(fitted, oof_scores=scores)))
        if fitted.oof_scores is not None:
            fitted = replace(fitted, oof_scores=scores)
        tried.append((features, fitted))
    return tried[choose_candidate(measured, rows, WEIGHTS)[0]]


def _costs(rows: Rows, fitted: FittedHead, features: Any) -> Floats:
    """Return what a head costs on each of the rows that measure."""
    at = rows.of(rows.held_out)
    predictions = fitted.model.link_scores(scores_of_rows(fitted.model, features, rows.index[at]))
    return TASKS[rows.task].costs(rows.y[at], predictions)


def _guess(rows: Rows) -> Floats:
    """Return what the best constant answer of the training rows costs on each of the rows that measure."""
    train, y = rows.y[rows.of("train")], rows.y[rows.of(rows.held_out)]
    if rows.task == "regression":
        return np.asarray(np.abs(y - np.median(train)), dtype=np.float64)
    if rows.task == "multilabel":
        return np.asarray((y != (train.mean(axis=0) >= 0.5)).any(axis=1), dtype=np.float64)
    return np.asarray(y != np.bincount(train).argmax(), dtype=np.float64)


def _saved(costs: Floats, rows: Rows) -> float:
    """Return which share of the cost of a constant guess is saved."""
    guess = float(_guess(rows).mean())
    return 1.0 - float(costs.mean()) / guess if guess > 0 else 0.0


def _compared(choice: LayerChoice, alone: list[_Input], rows: Rows, settings: FitSettings) -> dict[str, Any]:
    """Return the figure of all inputs together and of each alone, and the differences on the same resamples."""
    task, at = TASKS[rows.task], rows.of(rows.held_out)
    groups = None if rows.groups is None else rows.groups[at].tolist()
    costs = [_costs(rows, choice.fitted, choice.embeddings), *(each.costs for each in alone)]
    found = paired_intervals(task, costs, groups, seed=settings.seed, replicates=settings.replicates)
    guess = float(_guess(rows).mean())
    return {
        "measure": task.measure_name,
        "split": rows.held_out,
        "rows": len(at),
        "guess": guess if task.measure_is_cost else 1.0 - guess,
        "columns": [] if choice.columns is None else list(choice.columns.names),
        "all": found["figure 0"].as_dict(),
        "alone": [
            {
                "inputs": each.name,
                "figure": found[f"figure {i}"].as_dict(),
                "others_add": _negative(found[f"difference {i}"]).as_dict(),
            }
            for i, each in enumerate(alone, start=1)
        ],
    }


def _negative(difference: Interval) -> Interval:
    return Interval(-difference.value, -difference.high, -difference.low)


def _leak(columns: EncodedColumns, rows: Rows, fit: Fit, found: dict[str, Any]) -> str:
    """Return the warning that columns alone reach nearly everything, with the columns that do so by themselves."""
    names = columns.encoder.names
    if len(names) > 1:
        each = {name: columns.only([name]) for name in names}
        names = (
            tuple(name for name, column in each.items() if _saved(_costs(rows, fit(column), column), rows) >= LEAK)
            or names
        )
    found["suspects"] = list(names)
    figure = found["alone"][-1]["figure"]
    return (
        f"--features: the columns alone reach {found['measure']} {figure['value']:.4g} ({figure['low']:.4g} to "
        f"{figure['high']:.4g}), and a constant guess {found['guess']:.4g}: {', '.join(names)} may hold the label, "
        "or be known only once it is: leave out what is not known of new images"
    )


def inputs_line(found: dict[str, Any]) -> str:
    """Return what each input reaches alone and what the others add to it, in one line."""
    columns = f", columns {', '.join(found['columns'])}" if found["columns"] else ""
    parts = [f"all inputs{columns}: {found['measure']} {_shown(found['all'])}"]
    parts += [
        f"{each['inputs']} alone {_shown(each['figure'])}, the others change it by {_signed(each['others_add'])}"
        for each in found["alone"]
    ]
    return "; ".join(parts)


def _shown(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"


def _signed(figure: dict[str, float]) -> str:
    return f"{figure['value']:+.4f} ({figure['low']:+.4f} to {figure['high']:+.4f})"
