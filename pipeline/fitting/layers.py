"""Which layers of a cache a head takes: single ones and concatenations, compared on rows held out by the same folds.

Axes: N training rows, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.callbacks import ignore
from pipeline.core.spec import PENULTIMATE
from pipeline.core.views import layer_of_view, of_first_view, parts_of, views_of, views_of_spec
from pipeline.errors import HeadError
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.choice import cheapest, hits
from pipeline.evaluation.shares import effective_rows, share_interval
from pipeline.evaluation.splits import fold_numbers
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.columns import ColumnBlocks
from pipeline.fitting.measure import fitted_temperature
from pipeline.fitting.rows import read_rows
from pipeline.heads.blocks import LEAST_DEVIATION, Blocks, SideBySide, block_scale, deviation
from pipeline.heads.registry import STREAMED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.columns import ColumnEncoder
    from pipeline.heads.fit import FittedHead
    from pipeline.heads.model import HeadModel
    from pipeline.heads.saved import FurtherEmbeddings

    Floats = NDArray[np.float64]

ALL = "all"
"""What ``--layers`` takes for all layers of the cache."""

_UNIT_ROWS = 1024
"""Training rows that show, at least, how much a layer varies."""


@dataclass(frozen=True)
class LayerChoice:
    """What the folds chose.

    Attributes
    ----------
    layers : tuple of str
        The layers chosen.
    embeddings : array (rows of the cache, D)
        What the head was fitted on: a layer as it is, or several as `pipeline.heads.blocks.Blocks`.
    fitted : FittedHead
        The head on them.
    table : list of dict
        Every candidate: ``layers``, ``width``, ``loss``, for classes ``accuracy`` with its interval, ``tied`` (cannot
        be distinguished from the best) and ``chosen``.
    columns : ColumnEncoder or None
        Of the columns beside the embeddings.
    more : tuple of FurtherEmbeddings
        Other networks whose embeddings stand beside those of the layers.
    inputs : dict
        What the inputs reach alone and add; see `pipeline.fitting.inputs`. Empty of one network alone.
    """

    layers: tuple[str, ...]
    embeddings: Any
    fitted: FittedHead
    table: list[dict[str, Any]]
    columns: ColumnEncoder | None = None
    more: tuple[FurtherEmbeddings, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> Floats | None:
        """The scale of every feature (D,); None of a single layer that is taken as it is."""
        return self.embeddings.scale if isinstance(self.embeddings, Blocks) else None


@dataclass(frozen=True)
class Candidate:
    """Layers, what the rows that the folds held out lost on them, and whether they were right."""

    layers: tuple[str, ...]
    width: int
    losses: Floats
    hits: Floats | None

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(np.nanmean(self.losses))


def layers_to_fit(cache: Cache, settings: FitSettings) -> dict[str, Any]:
    """Return the layers that a fit takes or chooses from, each (rows of the cache, D), ``penultimate`` last.

    Raises
    ------
    CacheError
        The cache has no such layer.
    HeadError
        ``settings.layers`` names only one.
    """
    names = views_to_fit(cache, settings)
    if not settings.layers:
        if len(names) == 1:
            return {settings.layer: cache.layer(settings.layer)}
        return {settings.layer: SideBySide([cache.layer(name) for name in names])}
    every = settings.layers == (ALL,)
    names = list(dict.fromkeys([*of_first_view(cache.layers), PENULTIMATE] if every else settings.layers))
    if len(names) < 2:
        found = f"the cache has only {names[0]!r}" if every else f"got only {names[0]!r}"
        raise HeadError(f"--layers: expected at least 2 layers, {found}: extract with --layer NODE, or use --layer")
    names.sort(key=lambda name: name == PENULTIMATE)
    return {name: cache.layer(name) for name in names}


def views_to_fit(cache: Cache, settings: FitSettings) -> list[str]:
    """Return the layers of all views that a head is fitted on; one where the cache has, or the user wants, no others.

    Raises
    ------
    HeadError
        The head or a setting takes one view of an image only.
    """
    views = views_of(views_of_spec(cache.spec))
    if len(views) == 1 or not settings.views or parts_of(settings.layer)[1]:
        return [settings.layer]
    for what, given in (
        ("--layers", settings.layers),
        ("--features", settings.features),
        (f"--head {settings.head}", settings.head in STREAMED),
    ):
        if given:
            raise HeadError(f"{what} takes one view of an image, and the cache holds {len(views)}: add --no-views")
    return [layer_of_view(settings.layer, view) for view in views]


def layer_of_duplicates(cache: Cache, settings: FitSettings) -> NDArray[Any]:
    """Return the layer in which a fit looks for near duplicates: the last of those it chooses from."""
    return cache.layer(list(layers_to_fit(cache, settings))[-1])


def in_usual_units(embeddings: Any, rows: Rows, settings: FitSettings, note: Callable[[str], None] = ignore) -> Any:
    """Return a layer (rows of the cache, D) as it is or, where its values hardly vary, divided by their deviation.

    Values such as shares of a thousand classes take penalties far beyond those that heads try. Settings of the user
    count in units of the layer, and an estimator takes it as it is.
    """
    by_user = settings.estimator or settings.params or not isinstance(settings.Cs, str) or settings.prompts
    if by_user or settings.scaling != "none" or settings.head in STREAMED or isinstance(embeddings, SideBySide):
        return embeddings
    train = rows.index[rows.of("train")]
    found = deviation(read_rows(embeddings, train[:: max(len(train) // _UNIT_ROWS, 1)]))
    if found >= LEAST_DEVIATION:
        return embeddings
    note(
        f"the features vary by {found:.1g} (root mean square), and are divided by that before the fit, as C counts them"
    )
    return Blocks([embeddings], [found])


def fit_best_layers(
    layers: Mapping[str, NDArray[Any]], rows: Rows, settings: FitSettings, fit: Callable[[Any], FittedHead]
) -> LayerChoice:
    """Fit the head on every layer and on the best two, three, … side by side; keep the cheapest of the best.

    Layers are added in the order of their own losses, so that L layers cost 2 L − 1 fits. All candidates have the same
    folds. Of those whose loss cannot be distinguished from the least, the one with the fewest features is taken.

    Parameters
    ----------
    layers : mapping of str to ndarray of shape (rows of the cache, D)
        Two or more.
    rows : Rows
        The rows used.
    settings : FitSettings
        ``folds`` and ``seed`` count here.
    fit : callable
        From an array (rows of the cache, D) to the head fitted on the training rows.

    Raises
    ------
    HeadError
        The head gives no scores of rows that it has not seen.
    """
    scale = {name: block_scale(read_rows(array, rows.index[rows.of("train")])) for name, array in layers.items()}

    def side_by_side(names: tuple[str, ...]) -> Any:
        if len(names) == 1:
            return in_usual_units(layers[names[0]], rows, settings)
        return Blocks([layers[name] for name in names], [scale[name] for name in names])

    tried: list[Candidate] = []
    kept: tuple[Candidate, FittedHead] | None = None

    def try_layers(names: tuple[str, ...]) -> None:
        nonlocal kept
        embeddings = side_by_side(names)
        fitted = fit(embeddings)
        tried.append(measured_candidate(names, embeddings, rows, settings, fitted))
        if kept is None or tried[-1].loss < kept[0].loss:  # one head is kept: some hold all their rows
            kept = tried[-1], fitted

    for name in layers:
        try_layers((name,))
    ranked = [candidate.layers[0] for candidate in sorted(tried, key=lambda candidate: candidate.loss)]
    for count in range(2, len(ranked) + 1):
        best = set(ranked[:count])
        try_layers(tuple(name for name in layers if name in best))
    chosen, ties = choose_candidate(tried, rows)
    assert kept is not None
    embeddings = side_by_side(tried[chosen].layers)
    fitted = kept[1] if kept[0] is tried[chosen] else fit(embeddings)
    return LayerChoice(tried[chosen].layers, embeddings, fitted, _table(tried, chosen, ties, rows))


def measured_candidate(
    names: tuple[str, ...], embeddings: Any, rows: Rows, settings: FitSettings, fitted: FittedHead
) -> Candidate:
    """Return what the training rows held out of the folds lost on these features.

    Raises
    ------
    HeadError
        As for `held_out_scores`.
    """
    task, train = TASKS[rows.task], rows.of("train")
    y = rows.y[train]
    if fitted.oof_scores is None:
        fitted = replace(fitted, oof_scores=held_out_scores(embeddings, rows, settings, fitted))
    assert fitted.oof_scores is not None
    known = np.isfinite(fitted.oof_scores).all(axis=1)
    model = replace(fitted.model, temperature=fitted_temperature(rows.task, fitted, y))
    predictions = model.link_scores(fitted.oof_scores[known])
    losses, right = np.full(len(y), np.nan), np.full(len(y), np.nan)
    losses[known] = task.losses(y[known], predictions)
    if rows.task == "classification":
        right[known] = hits(predictions, y[known])
    return Candidate(names, embeddings.shape[1], losses, right if rows.task == "classification" else None)


def held_out_scores(embeddings: Any, rows: Rows, settings: FitSettings, fitted: FittedHead) -> Floats:
    """Return scores of training rows by the head fitted again on the other folds, at the settings it has chosen.

    Columns beside embeddings are encoded anew for each fold, as the other folds say.

    Raises
    ------
    HeadError
        The head cannot be fitted again.
    """
    if fitted.refit is None:
        raise HeadError(
            "this head gives no scores of rows that it has not seen, which --layers and --pooling compare: take "
            "another head, one --layer, and --pooling mean"
        )
    train = rows.of("train")
    y = rows.y[train]
    X = None if isinstance(embeddings, ColumnBlocks) else read_rows(embeddings, rows.index[train])
    groups = None if rows.groups is None else rows.groups[train]
    folds = min(settings.folds, len(y) if groups is None else len(np.unique(groups)))
    fold = fold_numbers(y, folds, seed=settings.seed, groups=groups, stratify=rows.task == "classification")
    scores = np.full((len(y), fitted.model.outputs), np.nan)
    for number in range(folds):
        out = fold == number
        if not out.any():
            continue
        seen, held = (X[~out], X[out]) if X is not None else _encoded_anew(embeddings, rows.index[train], out)
        model = fitted.refit(seen, y[~out])
        if model is not None:
            scores[out] = model.scores(held)
    return scores


def _encoded_anew(
    embeddings: ColumnBlocks, index: NDArray[np.int64], out: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the features of rows that a fold trains on, and of those that it holds out."""
    again: Any = embeddings.refitted(index[~out])
    return read_rows(again, index[~out]), read_rows(again, index[out])


def held_out_predictions(choice: LayerChoice, rows: Rows, model: HeadModel, settings: FitSettings) -> Floats | None:
    """Return predictions (N, K) of training rows by heads that have not seen them, NaN where there is none.

    They cost a cross-validation where the fit itself has made none.

    Returns
    -------
    ndarray or None
        None of a head that cannot be fitted again, or that takes too long for it.
    """
    scores = choice.fitted.oof_scores
    if scores is None and choice.fitted.refit is not None and settings.head not in STREAMED:
        scores = held_out_scores(choice.embeddings, rows, settings, choice.fitted)
    return None if scores is None else model.link_scores(scores)


def choose_candidate(
    tried: Sequence[Candidate], rows: Rows, costs: Sequence[float] | None = None
) -> tuple[int, list[int]]:
    """Return the candidate to take, and those that cannot be distinguished from the best.

    Parameters
    ----------
    tried : sequence of Candidate
    rows : Rows
        The rows used.
    costs : sequence of float, optional
        Of candidates that cannot be distinguished from the best, the cheapest is taken: by default the narrowest.

    Raises
    ------
    HeadError
        No row was held out by all.
    """
    known = np.isfinite([candidate.losses for candidate in tried]).all(axis=0)
    if not known.any():
        raise HeadError("no training row was held out by a fold, so layers cannot be compared: use one --layer")
    groups = None
    if rows.groups is not None:
        groups = np.unique(rows.groups[rows.of("train")][known], return_inverse=True)[1].ravel()
    costs = [each.width for each in tried] if costs is None else costs
    return cheapest([each.losses[known] for each in tried], costs, groups)


def _table(tried: list[Candidate], chosen: int, ties: list[int], rows: Rows) -> list[dict[str, Any]]:
    groups = None if rows.groups is None else rows.groups[rows.of("train")]
    table = []
    for number, candidate in enumerate(tried):
        entry: dict[str, Any] = {"layers": list(candidate.layers), "width": candidate.width, "loss": candidate.loss}
        if candidate.hits is not None:
            known = np.isfinite(candidate.hits)
            right = candidate.hits[known]
            independent = effective_rows(right, None if groups is None else groups[known])
            interval = Interval(float(right.mean()), *share_interval(float(right.mean()), independent))
            entry["accuracy"] = interval.as_dict()
        table.append(entry | {"tied": number in ties, "chosen": number == chosen})
    return table
