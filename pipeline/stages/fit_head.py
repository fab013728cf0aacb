"""Stage 2: fit a head on a cache, measure it on rows it has not seen, write the run folder.

Axes: N rows used, D features, K classes.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import open_cache
from pipeline.cache.same_images import open_networks
from pipeline.core.callbacks import ignore
from pipeline.core.devices import has_cuda
from pipeline.core.results import Result, figures_of, page_of, read_predictions
from pipeline.core.spec import PENULTIMATE
from pipeline.core.text import counted
from pipeline.core.views import parts_of, views_of, views_of_spec
from pipeline.embedding.text import text_tower_of_spec
from pipeline.errors import HeadError
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.advice import what_would_help
from pipeline.fitting.calibration import calibrate, trust_figures
from pipeline.fitting.columns import read_columns
from pipeline.fitting.curves import few_shot_curve, learning_curve
from pipeline.fitting.inputs import Further, fit_with_further, inputs_line
from pipeline.fitting.joined_caches import FurtherNetwork, join_caches
from pipeline.fitting.layers import (
    LayerChoice,
    fit_best_layers,
    held_out_predictions,
    in_usual_units,
    layer_of_duplicates,
    layers_to_fit,
    views_to_fit,
)
from pipeline.fitting.leaks import leak_of_split
from pipeline.fitting.measure import fitted_temperature, measure_splits, scores_of_rows
from pipeline.fitting.pooling import choose_pooling, group_headline, measure_groups, write_groups
from pipeline.fitting.prompts import prompts_of, read_prompts
from pipeline.fitting.rows import Rows, possible_folds, read_rows, select_rows
from pipeline.fitting.run_folder import (
    GROUPS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    HeadFacts,
    new_run_folder,
    run_facts,
    several_facts,
    write_fit,
    write_json,
)
from pipeline.fitting.settings import FitSettings
from pipeline.fitting.target import read_target
from pipeline.heads.blocks import estimator_on_raw_features, on_raw_features
from pipeline.heads.calibration import CALIBRATION_FILE, save_calibration
from pipeline.heads.fit import FitOptions, FittedHead
from pipeline.heads.model import ARRAYS
from pipeline.heads.registry import HEADS_OF, STREAMED, find_head
from pipeline.heads.saved import GROUP_HEAD_FILE, RUN_FILE, SEPARATOR, LoadedHead, more_facts, save_head
from pipeline.heads.sklearn import estimator_by_name
from pipeline.heads.streamed_rows import StreamedRows
from pipeline.heads.texts import ClassTexts
from pipeline.heads.views import on_views
from pipeline.report import write_report, write_summary
from pipeline.sources.label_table import labelled_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.pooling import PooledHead
    from pipeline.heads.fit import Fitter
    from pipeline.heads.model import HeadModel

__all__ = ["FitResult", "FitResults", "FitSettings", "fit_head", "fit_heads", "new_run_folder"]


@dataclass(frozen=True, repr=False)
class FitResult(Result):
    """The result of a fit.

    Attributes
    ----------
    run_dir : Path
        The run folder.
    task : str
        What was learned: classes, numbers or label sets.
    metrics : dict
        What ``metrics.json`` holds.
    notes : list of str
        What was left out, and warnings.
    seconds : dict of str to float
        Time of every step.
    """

    run_dir: Path
    task: str
    metrics: dict[str, Any]
    notes: list[str]
    seconds: dict[str, float]

    def headlines(self) -> list[str]:
        """Return one line a measured split, with its main figures, one of its groups, and one of what columns add."""
        lines = []
        for split in (split for split in ("test", "val") if split in self.metrics):
            figures = self.metrics[split]
            lines.append(f"{split}: {TASKS[self.task].headline(figures)}, on {counted(figures['rows'], 'row')}")
            if "per_group" in figures:
                per = self.metrics["pooling"]["per"]
                lines.append(f"{split}, {group_headline(self.task, per, figures['per_group'])}")
        if "inputs" in self.metrics:
            lines.append(f"{self.metrics['inputs']['split']}, {inputs_line(self.metrics['inputs'])}")
        return lines

    @property
    def report(self) -> Path | None:
        """The page of the run; None where it was not written."""
        return page_of(self.run_dir, REPORT_FILE)

    def advice(self) -> list[str]:
        """Return what would help, a line each: more labels, other layers, another network, tuning, better labels."""
        return [f"{found['about']}: {found['text']}" for found in self.metrics["what_would_help"]]

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows held out: split, label, what was predicted, and probabilities."""
        return read_predictions(self.run_dir / PREDICTIONS_FILE, numeric=self.task == "regression")

    def groups_to_pandas(self) -> pd.DataFrame:
        """Return the groups held out: name, number of rows, split, label, what was predicted, and probabilities.

        Raises
        ------
        HeadError
            The fit was not asked for an answer per group.
        """
        if "pooling" not in self.metrics:
            raise HeadError("expected answers for groups, found none: fit with per=COLUMN")
        return read_predictions(self.run_dir / GROUPS_FILE, numeric=self.task == "regression")

    def _figures(self) -> dict[str, dict[str, Any]]:
        return figures_of(self.metrics)


@dataclass(frozen=True, repr=False)
class FitResults(Result):
    """The results of fits of several targets.

    Attributes
    ----------
    run_dir : Path
        The folder of all runs.
    by_target : dict of str to FitResult
        In the order in which the targets were named.
    """

    run_dir: Path
    by_target: dict[str, FitResult]

    def __getitem__(self, target: str) -> FitResult:
        return self.by_target[target]

    @property
    def metrics(self) -> dict[str, Any]:
        """What the ``metrics.json`` of each target holds."""
        return {target: result.metrics for target, result in self.by_target.items()}

    @property
    def seconds(self) -> dict[str, float]:
        """Time of every step, over all targets."""
        total: Counter[str] = Counter()
        for result in self.by_target.values():
            total.update(result.seconds)
        return dict(total)

    @property
    def report(self) -> Path | None:
        """The page that sums the runs up; None where it was not written."""
        return page_of(self.run_dir, REPORT_FILE)

    def headlines(self) -> list[str]:
        """Return one line a target and measured split, with its main figures."""
        return [f"{result.run_dir.name}: {line}" for result in self.by_target.values() for line in result.headlines()]

    def advice(self) -> list[str]:
        """Return what would help each target, a line each."""
        return [f"{result.run_dir.name}: {line}" for result in self.by_target.values() for line in result.advice()]

    def _figures(self) -> dict[str, dict[str, Any]]:
        return {
            f"{target}: {name}": figure
            for target, result in self.by_target.items()
            for name, figure in result._figures().items()
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows held out of each target, with its name in the column ``target``."""
        import pandas as pd  # takes a second

        return pd.concat([result.to_pandas().assign(target=target) for target, result in self.by_target.items()])


def fit_head(
    cache_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    run_dir: str | os.PathLike[str],
    settings: FitSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit a head on the embeddings of a cache and write the run folder.

    Parameters
    ----------
    cache_path : str or Path, or sequence of them
        The cache; several of the same images by several networks are joined, several of one network are one cache.
    run_dir : str or Path
        The run folder: new, empty, or a former run, which is replaced in one step.
    settings : FitSettings, optional
        All settings.
    say : callable, optional
        Takes lines for the user.
    progress : callable, optional
        Called with (solved, all) while the sweep runs.

    Returns
    -------
    FitResult
        The metrics and notes.

    Raises
    ------
    HeadError
        For labels or splits nothing can be learned from, and for an output that cannot be written.
    CacheError
        ``cache_path`` is not a cache, or has no such layer.
    """
    settings = settings or FitSettings()
    _check_names(settings)
    with new_run_folder(run_dir) as folder:
        cache, more = _opened(cache_path, settings, say)
        result = _fit(_Job(folder, cache, layers_to_fit(cache, settings), more, settings, say, progress))
    return replace(result, run_dir=Path(run_dir))


def fit_heads(
    cache_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    run_dir: str | os.PathLike[str],
    targets: Sequence[str],
    settings: FitSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> list[FitResult]:
    """Fit a head for each of several targets: a run folder each, under one that sums them up.

    The embeddings are read from the file once and stay in memory, except for a head that streams them.

    Parameters
    ----------
    cache_path : str or Path, or sequence of them
        The cache; several of the same images by several networks are joined, several of one network are one cache.
    run_dir : str or Path
        The folder for all: new, empty, or a former run, which is replaced in one step.
    targets : sequence of str
        Columns of the cache, or ``"label"``.
    settings : FitSettings, optional
        The settings of every fit, except ``target``.
    say : callable, optional
        Takes lines for the user.

    Returns
    -------
    list of FitResult
        In the order of ``targets``.

    Raises
    ------
    HeadError
        As for `fit_head`; then none of the runs is written.
    """
    settings = settings or FitSettings()
    _check_names(settings)
    names = _folder_names(targets)
    results = []
    with new_run_folder(run_dir) as folder:
        cache, more = _opened(cache_path, settings, say)
        layers = layers_to_fit(cache, settings)
        if settings.head not in STREAMED:
            layers = {layer: np.array(embeddings[:]) for layer, embeddings in layers.items()}
        for target, name in zip(targets, names, strict=True):
            (folder / name).mkdir()
            job = _Job(folder / name, cache, layers, more, replace(settings, target=target), _prefixed(target, say))
            results.append(replace(_fit(job), run_dir=Path(run_dir) / name))
        entries = [
            {"target": target, "folder": name, "task": result.task, "headlines": result.headlines()}
            for target, name, result in zip(targets, names, results, strict=True)
        ]
        _write_several(folder, several_facts(cache, entries), results, settings)
    return results


def _opened(
    cache_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: FitSettings,
    say: Callable[[str], None] | None,
) -> tuple[Cache, tuple[FurtherNetwork, ...]]:
    """Open the cache, with the labels of the table that was named, and those of further networks."""
    one = isinstance(cache_path, (str, os.PathLike))
    caches = [open_cache(cache_path)] if one else open_networks(cache_path)
    more, cache = join_caches(caches, settings), caches[0]
    if settings.labels is not None:
        cache.items = labelled_items(cache.items, settings.labels, say or ignore)
    return cache, more


def _write_several(folder: Path, run: dict[str, Any], results: list[FitResult], settings: FitSettings) -> None:
    """Write the summary above the runs of several targets."""
    if settings.report:
        write_summary(folder / REPORT_FILE, run=run, results=results)
    write_json(folder / RUN_FILE, run)


def _prefixed(target: str, say: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """Return ``say`` with the target before each line."""
    return None if say is None else lambda text: say(f"{target}: {text}")


@dataclass(frozen=True)
class _Job:
    """One target to fit: its data, settings, output and callbacks.

    Attributes
    ----------
    folder : Path
        Where the run is written.
    cache : Cache
    layers : dict of str to ndarray
        The layers to fit on or to choose from, each (rows of the cache, D).
    more : tuple of FurtherNetwork
        Other networks whose embeddings of the same rows join them.
    settings : FitSettings
        With task and head chosen, once the target is known.
    say, progress : callable or None
    notes : list of str
        Filled on the way.
    seconds : dict of str to float
        Time of every step, filled on the way.
    """

    folder: Path
    cache: Cache
    layers: dict[str, NDArray[Any]]
    more: tuple[FurtherNetwork, ...]
    settings: FitSettings
    say: Callable[[str], None] | None = None
    progress: Callable[[int, int], None] | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Keep a line for the run, and pass it to the user."""
        self.notes.append(text)
        if self.say is not None:
            self.say(text)

    @property
    def fitter(self) -> Fitter:
        """What fits the head, on the views of every image that take part."""
        return on_views(_fitter(self.settings), len(views_to_fit(self.cache, self.settings)))

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a step."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _fit(job: _Job) -> FitResult:
    """Fit one target and write its run."""
    job, rows = _choose_rows(job)
    options = _fit_options(job, rows)
    choice = _fit_training_rows(job, rows, options)
    model, results = _measure(job, rows, choice)
    held_out = _held_out(job, rows, choice, model)
    pooled = None if rows.per is None else _answer_for_groups(job, rows, choice, model, held_out, options, results)
    _add_curves(job, rows, choice, results)
    _calibrate(job, rows, choice, held_out, results)
    _advise(job, rows, choice, results)
    run = _write_run(job, rows, choice, model, pooled, results)
    _write_page(job, rows, results, run)
    return FitResult(job.folder, rows.task, results["metrics"], job.notes, job.seconds)


def _choose_rows(job: _Job) -> tuple[_Job, Rows]:
    """Read the target, settle task and head, and select and split the rows."""
    with job.timed("rows"):
        target = read_target(job.cache, job.settings, job.note)
        settings = replace(job.settings, task=target.task, head=None if job.settings.estimator else job.settings.head)
        if settings.estimator is None and settings.head is None:
            settings = replace(settings, head=next(iter(HEADS_OF[target.task])))
        _check_choices(settings)
        _fitter(settings)
        if settings.head != "logistic" and _sweeps(settings):
            job.note(f"--C, --sweep and --scoring are about the logistic head: not used for {target.name!r}")
        embeddings = layer_of_duplicates(job.cache, settings)
        rows = select_rows(job.cache, target, embeddings, settings, job.note)
        leaks = rows.split_kind == "column" and settings.group_duplicates is None
        if leaks and (leak := leak_of_split(job.cache, rows, embeddings)):
            job.note(leak)
        return replace(job, settings=settings), rows


def _fit_options(job: _Job, rows: Rows) -> FitOptions:
    settings = job.settings
    options = _options(settings, possible_folds(rows, settings.folds, job.note), job.progress)
    if settings.prompts is not None:
        options = replace(options, texts=_class_texts(job, rows), start=settings.start)
    return options


def _fit_training_rows(job: _Job, rows: Rows, options: FitOptions) -> LayerChoice:
    """Fit the head, on the layers that the folds choose where there are several."""
    settings, train = job.settings, rows.of("train")
    groups = None if rows.groups is None else rows.groups[train]
    further = Further(str(job.cache.path), job.more, read_columns(job.cache, rows, settings, job.note))

    def fit(embeddings: Any) -> FittedHead:
        with job.timed("read"):
            is_streamed = settings.head in STREAMED
            X = StreamedRows(embeddings, rows.index[train]) if is_streamed else read_rows(embeddings, rows.index[train])
        with job.timed("fit"):
            return job.fitter(X, rows.y[train], groups, options)

    if len(job.layers) == 1:
        (layer,) = job.layers.values()
        embeddings = in_usual_units(layer, rows, settings, job.note)
        choice = LayerChoice(tuple(views_to_fit(job.cache, settings)), embeddings, fit(embeddings), [])
    else:
        choice = fit_best_layers(job.layers, rows, settings, fit)
        job.note(
            f"chosen by {options.folds} folds among {len(choice.table)} layers and concatenations: "
            f"{SEPARATOR.join(choice.layers)}"
        )
    if (views := choice.fitted.model.views) > 1:
        job.note(f"fitted on {views} views of every image ({views_of_spec(job.cache.spec)}), whose scores are averaged")
    choice = fit_with_further(choice, further, rows, settings, fit, job.note)
    for text in choice.fitted.warnings:
        job.note(text)
    return choice


def _class_texts(job: _Job, rows: Rows) -> ClassTexts:
    """Read the prompts of the classes by the text tower that belongs to the cache."""
    settings = job.settings
    assert settings.prompts is not None
    texts, classes = prompts_of(read_prompts(settings.prompts), rows.class_names, job.note)
    tower = text_tower_of_spec(
        job.cache.spec, settings.layer, settings.weights, trust_remote_code=settings.trust_remote_code
    )
    vectors = tower.embed(texts)
    return ClassTexts.of_prompts(vectors, np.asarray(classes), scale=tower.scale, bias=tower.bias)


def _measure(job: _Job, rows: Rows, choice: LayerChoice) -> tuple[HeadModel, dict[str, Any]]:
    """Return the head with its temperature, and what it does on the rows held out."""
    settings, fitted = job.settings, choice.fitted
    with job.timed("evaluate"):
        temperature = fitted_temperature(rows.task, fitted, rows.y[rows.of("train")]) if settings.calibrate else 1.0
        model = replace(fitted.model, temperature=temperature)
        splits = [split for split in ("test", "val") if len(rows.of(split))]
        scores = {split: scores_of_rows(model, choice.embeddings, rows.index[rows.of(split)]) for split in splits}
        results = measure_splits(rows, scores, model, seed=settings.seed, replicates=settings.replicates, fitted=fitted)
    if choice.table:
        results["layers"] = results["metrics"]["layers"] = choice.table
    if choice.inputs:
        results["metrics"]["inputs"] = choice.inputs
    return model, results


def _held_out(job: _Job, rows: Rows, choice: LayerChoice, model: HeadModel) -> NDArray[np.float64] | None:
    """Return predictions of training rows by heads that have not seen them, where something needs them."""
    if rows.task == "multilabel" and rows.per is None:
        return None
    with job.timed("hold out"):
        return held_out_predictions(choice, rows, model, job.settings)


def _answer_for_groups(
    job: _Job,
    rows: Rows,
    choice: LayerChoice,
    model: HeadModel,
    held_out: NDArray[np.float64] | None,
    options: FitOptions,
    results: dict[str, Any],
) -> PooledHead:
    """Choose how groups are answered for, and add what that gives on the rows held out."""
    settings = job.settings

    def fit(X: NDArray[np.float32], y: NDArray[Any], groups: NDArray[Any] | None, folds: int) -> FittedHead:
        return job.fitter(X, y, groups, replace(options, folds=folds, progress=None))

    with job.timed("groups"):
        pooled = choose_pooling(rows, model, held_out, choice.embeddings, settings, fit)
        figures, results["groups"] = measure_groups(
            rows,
            pooled,
            results["predictions"],
            choice.embeddings,
            seed=settings.seed,
            replicates=settings.replicates,
        )
    if not pooled.table:
        job.note(
            f"--per {settings.per}: no training rows held out of the fit, so --pooling {pooled.pooling.how} is taken"
        )
    results["metrics"]["pooling"] = {**asdict(pooled.pooling), "candidates": pooled.table}
    for split, of_split in figures.items():
        results["metrics"][split]["per_group"] = of_split
    return pooled


def _calibrate(
    job: _Job, rows: Rows, choice: LayerChoice, held_out: NDArray[np.float64] | None, results: dict[str, Any]
) -> None:
    """Write what later predictions need to doubt and bound their labels, and measure what it reaches."""
    with job.timed("calibrate"):
        found = calibrate(job.cache, rows, choice, held_out, results["predictions"], job.settings)
        save_calibration(job.folder / CALIBRATION_FILE, found)
        figures = trust_figures(rows, choice, found, results["predictions"][results["held_out"]], job.note)
    results["trust"] = results["metrics"]["trust"] = figures


def _add_curves(job: _Job, rows: Rows, choice: LayerChoice, results: dict[str, Any]) -> None:
    settings, fitted, embeddings = job.settings, choice.fitted, choice.embeddings
    if settings.learning_curve:
        with job.timed("learning curve"):
            curve = learning_curve(rows, embeddings, fitted, settings)
        results["learning_curve"] = results["metrics"]["learning_curve"] = curve.points
        results["doubling"] = curve.doubling
    if settings.shots:
        with job.timed("few shots"):
            results["few_shots"] = few_shot_curve(rows, embeddings, fitted, settings, job.note)
            results["metrics"]["few_shots"] = results["few_shots"]


def _advise(job: _Job, rows: Rows, choice: LayerChoice, results: dict[str, Any]) -> None:
    """Say what would help, from what was measured."""
    model = choice.fitted.model
    layers = [name for name in dict.fromkeys((PENULTIMATE, *job.cache.layers)) if not parts_of(name)[1]]
    alone = len(choice.layers) == 1 and choice.columns is None and not choice.more
    found = what_would_help(
        rows,
        results,
        layers,
        linear=model.kind == "linear" and alone,
        views=(model.views, len(views_of(views_of_spec(job.cache.spec)))),
    )
    results["what_would_help"] = results["metrics"]["what_would_help"] = found


def _write_run(
    job: _Job, rows: Rows, choice: LayerChoice, model: HeadModel, pooled: PooledHead | None, results: dict[str, Any]
) -> dict[str, Any]:
    """Write everything except the page and ``run.json``; return what the latter will hold."""
    settings = job.settings
    head, estimator = settings.estimator or settings.head or "", choice.fitted.estimator
    if choice.scale is not None:
        model, estimator = on_raw_features(model, choice.scale), estimator_on_raw_features(estimator, choice.scale)
    with job.timed("write"):
        saved = None
        if model.kind in ARRAYS:  # else only the estimator can predict
            saved = LoadedHead(
                model=model,
                class_names=rows.class_names,
                layer=SEPARATOR.join(choice.layers),
                spec=dict(job.cache.spec),
                fingerprint=job.cache.fingerprint,
                head=head,
                task=rows.task,
                layers=choice.layers,
                pooling=None if pooled is None else pooled.pooling,
                columns=choice.columns,
                more=choice.more,
            )
            if pooled is not None and pooled.model is not None:
                on_means = pooled.model if choice.scale is None else on_raw_features(pooled.model, choice.scale)
                save_head(job.folder / GROUP_HEAD_FILE, replace(saved, model=on_means))
        write_fit(job.folder, saved, estimator, results, rows, job.cache)
        facts = HeadFacts(head, choice.layers, choice.fitted.chosen, model.temperature)
        run = run_facts(job.cache, rows, settings, facts, job.notes)
        if choice.columns is not None:
            run["columns"] = choice.columns.to_json()
        if choice.more:
            run["more"] = [
                facts | {"path": network.path} for facts, network in zip(more_facts(choice.more), job.more, strict=True)
            ]
        if model.views > 1:
            run["views"] = model.views
        if pooled is not None:
            write_groups(job.folder / GROUPS_FILE, results["groups"], rows, job.cache)
            run["pooling"] = asdict(pooled.pooling)
        return run


def _write_page(job: _Job, rows: Rows, results: dict[str, Any], run: dict[str, Any]) -> None:
    """Write the report, and ``run.json`` with the times of all steps."""
    if job.settings.report:
        with job.timed("report"):
            write_report(job.folder / REPORT_FILE, cache=job.cache, rows=rows, results=results, run=run)
    run["seconds"] = {name: round(value, 3) for name, value in job.seconds.items()}
    write_json(job.folder / RUN_FILE, run)


def _check_names(settings: FitSettings) -> None:
    """Refuse settings that are wrong for every cache, before anything is read."""
    if settings.head is not None and settings.estimator is not None:
        raise HeadError(f"a run has one head: name --head {settings.head} or --estimator {settings.estimator}")
    if settings.head is not None:
        known = [task for task, heads in HEADS_OF.items() if settings.head in heads]
        find_head(settings.head, known[0] if known else "classification")
    named = settings.estimator or settings.head
    if named not in (None, "logistic") and _sweeps(settings):
        raise HeadError(
            f"--C, --sweep and --scoring are about the logistic head, found {named}: leave them out, or set its own "
            "with --set NAME=VALUE"
        )
    if settings.layers and settings.layer != PENULTIMATE:
        raise HeadError(f"a head takes --layer {settings.layer} or --layers {','.join(settings.layers)}: leave one out")
    if settings.layers and settings.prompts is not None:
        raise HeadError("--prompts are read by the tower of one layer: name it with --layer, not --layers")
    if settings.layers and settings.head in STREAMED:
        raise HeadError(f"--layers compares scores by folds, which the {settings.head} head has not: use one --layer")
    if settings.features and settings.prompts is not None:
        raise HeadError("--prompts are weights of embeddings alone, so they take no --features: leave one out")
    _check_prompts(settings)
    _check_numbers(settings)
    if settings.per is None and settings.pooling != "auto":
        raise HeadError(f"--pooling {settings.pooling} is about the answers of --per COLUMN: add it, or leave this out")
    if settings.group_duplicates is not None and not 0 < settings.group_duplicates <= 1:
        raise HeadError(f"expected a cosine in (0, 1] for --group-duplicates, got {settings.group_duplicates:g}")


def _check_prompts(settings: FitSettings) -> None:
    """Refuse prompts that no head reads, and heads that lack them."""
    reads = settings.head == "zero-shot" or settings.start == "zero-shot"
    if settings.start == "zero-shot" and (settings.estimator or settings.head not in (None, "logistic")):
        raise HeadError(
            f"--start zero-shot is for the logistic head, got {settings.estimator or settings.head}: leave it out"
        )
    if reads and settings.prompts is None:
        raise HeadError("zero-shot weights come from texts of the classes: give them with --prompts TABLE")
    if settings.prompts is not None and not reads:
        raise HeadError("--prompts is for --head zero-shot or --start zero-shot, got neither: add one, or leave it out")
    if settings.prompts is not None:
        read_prompts(settings.prompts)


def _check_numbers(settings: FitSettings) -> None:
    """Refuse settings that no generator, fold or share can have."""
    for what, value, fits, expected in (
        ("the seed", settings.seed, 0 <= settings.seed < 2**32, "a whole number from 0 to 4294967295"),
        ("the number of folds", settings.folds, settings.folds >= 2, "at least 2"),
        ("the number of resamples", settings.replicates, settings.replicates >= 1, "at least 1"),
        ("the share held out", settings.test_share, 0 < settings.test_share < 1, "a number between 0 and 1"),
        ("C", settings.Cs, _are_strengths(settings.Cs), "positive numbers"),
    ):
        if not fits:
            raise HeadError(f"expected {expected} for {what}, got {value}: give another")


def _are_strengths(values: object) -> bool:
    if isinstance(values, str):
        return True
    return isinstance(values, tuple) and len(values) > 0 and all(0 < c < float("inf") for c in values)


def _sweeps(settings: FitSettings) -> bool:
    """Return whether a setting of the choice of C was given."""
    return settings.Cs != "auto" or settings.scoring != "accuracy"


def _check_choices(settings: FitSettings) -> None:
    """Refuse settings that do not apply to the head and the task, before anything is computed."""
    if settings.shots and settings.task != "classification":
        raise HeadError(f"--shots counts images of a class, and the task is {settings.task}: leave it out")
    if settings.shots and min(settings.shots) < 1:
        raise HeadError(f"expected at least 1 image of every class for --shots, got {min(settings.shots)}")
    if settings.shots and settings.head in STREAMED:
        raise HeadError(f"the {settings.head} head is not fitted again on few rows: leave --shots out")


def _fitter(settings: FitSettings) -> Fitter:
    assert settings.task != "auto"
    if settings.estimator is None:
        assert settings.head is not None
        return find_head(settings.head, settings.task)
    return estimator_by_name(settings.estimator, settings.task)


def _folder_names(targets: Sequence[str]) -> list[str]:
    """Return a folder name for each target: its own, with characters replaced that some file systems refuse."""
    names = [re.sub(r"[^\w.-]", "_", target).lstrip(".") or "_" for target in targets]
    for name in names:
        same = [target for target, its in zip(targets, names, strict=True) if its.casefold() == name.casefold()]
        if len(same) > 1:
            raise HeadError(f"the targets {' and '.join(map(repr, same))} would share the folder {name}: fit one alone")
    return names


def _options(settings: FitSettings, folds: int, progress: Callable[[int, int], None] | None) -> FitOptions:
    device = settings.device
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    return FitOptions(
        Cs=settings.Cs,
        folds=folds,
        scoring=settings.scoring,
        scaling=settings.scaling,
        class_weight=settings.class_weight,
        seed=settings.seed,
        device=device,
        calibrate=settings.calibrate,
        params=settings.params,
        progress=progress,
    )
