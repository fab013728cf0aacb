"""Stage 2: fit a head on a cache, measure it on rows it has not seen, write the run folder.

Axes: N rows used, D features, K classes.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.fitting.curves import few_shot_curve, learning_curve
from pipeline.fitting.measure import TASKS, measure_splits
from pipeline.fitting.rows import Rows, layer_of, possible_folds, read_rows, select_rows
from pipeline.fitting.run_folder import (
    RUN_FILE,
    RUN_FORMAT,
    cache_facts,
    new_run_folder,
    run_facts,
    versions,
    write_fit,
    write_json,
)
from pipeline.fitting.settings import FitSettings
from pipeline.fitting.target import read_target
from pipeline.heads.fit import FitOptions, FittedHead
from pipeline.heads.model import ARRAYS
from pipeline.heads.registry import HEADS_OF, STREAMED, find_head
from pipeline.heads.saved import LoadedHead
from pipeline.heads.streamed_rows import StreamedRows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.heads.fit import Fitter

__all__ = ["FitResult", "FitSettings", "fit_head", "fit_heads", "new_run_folder"]

SEVERAL = "several"
_SCORED_ROWS = 32_768


@dataclass(frozen=True)
class FitResult:
    """What a fit gave.

    Attributes
    ----------
    run_dir : Path
        The run folder.
    task : str
        What was learned: classes, numbers or label sets.
    metrics : dict
        What ``metrics.json`` holds.
    notes : list of str
        What was left out or should be known.
    seconds : dict of str to float
        Time of every step.
    """

    run_dir: Path
    task: str
    metrics: dict[str, Any]
    notes: list[str]
    seconds: dict[str, float]

    def headlines(self) -> list[str]:
        """Return one line a measured split, with the figures a person asks for first."""
        return [
            f"{split}: {TASKS[self.task].headline(self.metrics[split])}, on {self.metrics[split]['rows']} rows"
            for split in ("test", "val")
            if split in self.metrics
        ]


def fit_head(
    cache_path: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    settings: FitSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit a head on the embeddings of a cache and write the run folder.

    Parameters
    ----------
    cache_path : str or Path
        The cache.
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
        The metrics, and what the user should know.

    Raises
    ------
    HeadError
        For labels or splits nothing can be learned from, and for an output that cannot be written.
    CacheError
        Where ``cache_path`` is not a cache.
    """
    from pipeline.cache import open_cache

    settings = settings or FitSettings()
    _check_names(settings)
    with new_run_folder(run_dir) as folder:
        cache = open_cache(cache_path)
        result = _fit(folder, cache, layer_of(cache, settings.layer), settings, say, progress)
    return replace(result, run_dir=Path(run_dir))


def fit_heads(
    cache_path: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    targets: Sequence[str],
    settings: FitSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> list[FitResult]:
    """Fit a head for each of several targets: a run folder each, under one that sums them up.

    The embeddings are read from the file once and stay in memory meanwhile, but for a head that streams them.

    Parameters
    ----------
    cache_path : str or Path
        The cache.
    run_dir : str or Path
        The folder for all: new, empty, or a former run, which is replaced in one step.
    targets : sequence of str
        Columns of the cache, or ``"label"``.
    settings : FitSettings, optional
        The settings of every fit, but for ``target``.
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
    from pipeline.cache import open_cache
    from pipeline.report import write_summary

    settings = settings or FitSettings()
    _check_names(settings)
    names = _folder_names(targets)
    results = []
    with new_run_folder(run_dir) as folder:
        cache = open_cache(cache_path)
        embeddings = layer_of(cache, settings.layer)
        if settings.head not in STREAMED:
            embeddings = np.array(embeddings)
        for target, name in zip(targets, names, strict=True):
            (folder / name).mkdir()

            def say_which(text: str, target: str = target) -> None:
                if say is not None:
                    say(f"{target}: {text}")

            result = _fit(folder / name, cache, embeddings, replace(settings, target=target), say_which, None)
            results.append(replace(result, run_dir=Path(run_dir) / name))
        run = {
            "format": RUN_FORMAT,
            "format_version": 1,
            "task": SEVERAL,
            "cache": cache_facts(cache),
            "runs": [
                {"target": target, "folder": name, "task": result.task, "headlines": result.headlines()}
                for target, name, result in zip(targets, names, results, strict=True)
            ],
            "versions": versions(),
        }
        if settings.report:
            write_summary(folder / "report.html", run=run, results=results)
        write_json(folder / RUN_FILE, run)
    return results


def _fit(
    folder: Path,
    cache: Any,
    embeddings: NDArray[Any],
    settings: FitSettings,
    say: Callable[[str], None] | None,
    progress: Callable[[int, int], None] | None,
) -> FitResult:
    """Fit one target and write its run into ``folder``."""
    clock = _Clock()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if say is not None:
            say(text)

    with clock("rows"):
        target = read_target(cache, settings, note)
        settings = replace(settings, task=target.task, head=None if settings.estimator else settings.head)
        if settings.estimator is None and settings.head is None:
            settings = replace(settings, head=next(iter(HEADS_OF[target.task])))
        _check_choices(settings)
        if settings.head != "logistic" and _sweeps(settings):
            note(f"--C, --sweep and --scoring are about the logistic head: not used for {target.name!r}")
        fit = _fitter(settings)
        rows = select_rows(cache, target, embeddings, settings, note)
    with clock("read"):
        train = rows.of("train")
        groups = None if rows.groups is None else rows.groups[train]
        options = _options(settings, possible_folds(rows, settings.folds, note), progress)
        streamed = settings.head in STREAMED
        X = StreamedRows(embeddings, rows.index[train]) if streamed else read_rows(embeddings, rows.index[train])
    with clock("fit"):
        fitted = fit(X, rows.y[train], groups, options)
    del X
    for text in fitted.warnings:
        note(text)
    with clock("evaluate"):
        temperature = TASKS[rows.task].temperature(fitted, rows.y[train], settings)
        scores = {
            split: _scores(fitted, embeddings, rows.index[rows.of(split)])
            for split in ("test", "val")
            if len(rows.of(split))
        }
        results = measure_splits(rows, scores, fitted, temperature, settings)
    if settings.learning_curve:
        with clock("learning curve"):
            results["learning_curve"] = learning_curve(rows, embeddings, fitted, settings)
            results["metrics"]["learning_curve"] = results["learning_curve"]
    if settings.shots:
        with clock("few shots"):
            results["few_shots"] = few_shot_curve(rows, embeddings, fitted, settings, note)
            results["metrics"]["few_shots"] = results["few_shots"]
    with clock("write"):
        write_fit(folder, _saved_head(cache, rows, fitted, temperature, settings), fitted, results, rows, cache)
        run = run_facts(
            cache, rows, settings, head=settings.estimator or settings.head, layer=settings.layer,
            chosen=fitted.chosen, temperature=temperature, notes=notes,
        )  # fmt: skip
    if settings.report:
        with clock("report"):
            from pipeline.report import write_report

            write_report(folder / "report.html", cache=cache, rows=rows, results=results, run=run)
    run["seconds"] = {name: round(value, 3) for name, value in clock.seconds.items()}
    write_json(folder / RUN_FILE, run)
    return FitResult(folder, rows.task, results["metrics"], notes, clock.seconds)


def _check_names(settings: FitSettings) -> None:
    """Refuse what no cache could make right, before anything is read."""
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
    _check_numbers(settings)
    if settings.group_duplicates is not None and not 0 < settings.group_duplicates <= 1:
        raise HeadError(f"expected a cosine in (0, 1] for --group-duplicates, got {settings.group_duplicates:g}")


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
    """Tell whether something was asked of the choice of C."""
    return settings.Cs != "auto" or settings.scoring != "accuracy"


def _check_choices(settings: FitSettings) -> None:
    """Refuse, before anything is computed, what head and task have no use for."""
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
    from pipeline.heads.sklearn import estimator_by_name

    return estimator_by_name(settings.estimator, settings.task)


def _folder_names(targets: Sequence[str]) -> list[str]:
    """Return a folder name for each target: its own, with what no file system bears replaced."""
    names = [re.sub(r"[^\w.-]", "_", target).lstrip(".") or "_" for target in targets]
    for name in names:
        same = [target for target, its in zip(targets, names, strict=True) if its.casefold() == name.casefold()]
        if len(same) > 1:
            raise HeadError(f"the targets {' and '.join(map(repr, same))} would share the folder {name}: fit one alone")
    return names


def _options(settings: FitSettings, folds: int, progress: Callable[[int, int], None] | None) -> FitOptions:
    device = settings.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
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


def _scores(fitted: FittedHead, embeddings: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scores of rows of the cache, which may be more than fit into memory."""
    blocks = [index[start : start + _SCORED_ROWS] for start in range(0, len(index), _SCORED_ROWS)]
    return np.concatenate([fitted.model.scores(read_rows(embeddings, block)) for block in blocks])


def _saved_head(
    cache: Any, rows: Rows, fitted: FittedHead, temperature: float, settings: FitSettings
) -> LoadedHead | None:
    """Return the head as it is saved, or None where only its estimator can predict."""
    if fitted.model.kind not in ARRAYS:
        return None
    return LoadedHead(
        model=replace(fitted.model, temperature=temperature),
        class_names=rows.class_names,
        layer=settings.layer,
        spec=dict(cache.spec),
        fingerprint=cache.fingerprint,
        head=settings.estimator or settings.head or "",
        task=rows.task,
    )


class _Clock:
    """Times named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
