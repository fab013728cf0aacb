"""The stages as one call each, for notebooks and scripts; the command line makes the same calls.

A call shows a bar and messages. Ctrl-C ends it as it ends the command: what is finished is kept, then
`KeyboardInterrupt` is raised.
"""

# The stages that load scikit-learn or torch are imported in their calls: `pipeline.extract?` takes no seconds.

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.callbacks import Callbacks, ignore
from pipeline.core.progress import ProgressLine, show
from pipeline.core.shards import Shard
from pipeline.core.signals import stop_on
from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
from pipeline.decoding.pool import Limits
from pipeline.embedding.ray import RayExecutor
from pipeline.embedding.settings import RunSettings
from pipeline.errors import OptionError
from pipeline.fitting.settings import FitSettings
from pipeline.heads.trust import TrustOptions
from pipeline.stages import extract as extraction
from pipeline.stages import predict as prediction
from pipeline.stages.keywords import takes_options
from pipeline.stages.options import EXTRACT, FINETUNE, FIT_HEAD, PREDICT, SCOUT
from pipeline.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.embedding.executor import Executor
    from pipeline.sources import Source
    from pipeline.stages.extract import Summary
    from pipeline.stages.finetune import FinetuneResult
    from pipeline.stages.fit_head import FitResult, FitResults
    from pipeline.stages.predict import PredictSummary
    from pipeline.stages.scout import ScoutResult

RESUMED = "stopped: the same call resumes"


@takes_options(EXTRACT)
def extract(
    images: str | os.PathLike[str] | Source,
    cache: str | os.PathLike[str],
    *,
    verbose: bool = True,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> Summary:
    """Embed every image of a source into a cache; continue where an earlier call stopped.

    Parameters
    ----------
    images : str, path or Source
        What the command takes as IMAGES: a folder, a table, an archive, a glob or a URL.
    cache : path
        The cache; made, or completed when it holds the same numbers of the same images.
    verbose : bool
        Show a bar and messages.
    callbacks : Callbacks, optional
        Receives progress and messages instead, and may ask for a stop.

    Returns
    -------
    Summary

    Raises
    ------
    PipelineError
        Images, backbone, device or cache cannot be used; nothing is left half written.
    KeyboardInterrupt
        On Ctrl-C, once everything finished is in the cache.

    Examples
    --------
    ``pipeline.extract("photos/", "photos.h5", backbone="torchvision/resnet50")``
    """
    shard = Shard.parse(options["shard"]) if options["shard"] else None
    output = shard.name(os.fspath(cache)) if shard else cache
    settings = _extract_settings(options, shard)
    with _watched("extract", RESUMED, verbose=verbose, callbacks=callbacks) as hooks:
        return extraction.extract(
            _source(images),
            output,
            settings,
            executor=_executor(options),
            stop=hooks.stop,
            say=hooks.say,
            progress=hooks.progress,
        )


@takes_options(SCOUT)
def scout(
    images: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    *,
    verbose: bool = True,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> ScoutResult:
    """Compare networks and their layers on a sample of an archive; continue where an earlier call stopped.

    Parameters
    ----------
    images : str, path or Source
        What the command takes as IMAGES, with labels.
    output : path
        The folder to write: new, empty, or that of an earlier call, whose caches are used again.
    verbose : bool
        Show a bar and messages.
    callbacks : Callbacks, optional
        Receives progress and messages instead, and may ask for a stop.

    Returns
    -------
    ScoutResult
        ``to_pandas()`` gives a line for each candidate, ``recommended`` the one to take.

    Raises
    ------
    PipelineError
        Images, labels, a backbone or the folder cannot be used.
    KeyboardInterrupt
        On Ctrl-C, once everything embedded is in the caches.

    Examples
    --------
    ``pipeline.scout("photos/", "scout", backbones="efficientnet_lite0,torchvision/resnet50").recommended.candidate``
    """
    from pipeline.stages import scout as scouting  # imports scikit-learn

    same = ("rows", "minutes", "labels", "folds", "seed", "report")
    settings = scouting.ScoutSettings(
        backbones=options["backbones"] or (),
        named_set=options["set"],
        layers=options["layers"] or (),
        run=run_settings(options),
        **{name: options[name] for name in same},
    )
    with _watched("scout", RESUMED, verbose=verbose, callbacks=callbacks) as hooks:
        return scouting.scout(
            _source(images), output, settings, stop=hooks.stop, say=hooks.say, progress=hooks.progress
        )


@takes_options(FIT_HEAD)
def fit_head(
    cache: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    run: str | os.PathLike[str],
    *,
    verbose: bool = True,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> FitResult | FitResults:
    """Fit a head on the embeddings of a cache, measure it on rows it has not seen, and write the run folder.

    Parameters
    ----------
    cache : path, or sequence of paths
        The cache. Several of the same images by several networks are joined in one head.
    run : path
        The run folder: new, empty, or a former run, which is replaced in one step.
    verbose : bool
        Show a bar and messages.
    callbacks : Callbacks, optional
        Receives progress and messages instead.

    Returns
    -------
    FitResult or FitResults
        The latter where several targets are named.

    Raises
    ------
    HeadError
        For labels or splits nothing can be learned from, and for an output that cannot be written.
    CacheError
        ``cache`` is not a cache, or has no such layer.
    KeyboardInterrupt
        On Ctrl-C; no run is written.

    Examples
    --------
    ``pipeline.fit_head("photos.h5", "photos-head", head="ridge").metrics["test"]``
    """
    from pipeline.stages import fit_head as fitting  # imports scikit-learn

    settings, targets = _fit_settings(options), options["target"]
    with _watched("fit-head", None, verbose=verbose, callbacks=callbacks, unit="steps") as hooks:
        if len(targets) > 1:
            results = fitting.fit_heads(cache, run, targets, settings, say=hooks.say)
            return fitting.FitResults(Path(run), dict(zip(targets, results, strict=True)))
        return fitting.fit_head(
            cache, run, settings, say=hooks.say, progress=lambda ready, total: hooks.progress(ready, 0, total)
        )


@takes_options(PREDICT)
def predict(
    run: str | os.PathLike[str],
    images: str | os.PathLike[str] | Source | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    verbose: bool = True,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> PredictSummary:
    """Apply the head of a run to images: classes or labels with probabilities, or numbers.

    Parameters
    ----------
    run : path
        A run folder, or its ``head.safetensors``.
    images : str, path, Source, or sequence of paths
        What the command takes as IMAGES; for a head on several networks also their caches.
    output : path, optional
        A CSV file for the predictions. Without it, they are in the result alone.
    verbose : bool
        Show a bar and messages.
    callbacks : Callbacks, optional
        Receives progress and messages instead, and may ask for a stop.

    Returns
    -------
    PredictSummary
        ``to_pandas()`` gives the predictions.

    Raises
    ------
    PipelineError
        Head, weights, images, device or output cannot be used.
    KeyboardInterrupt
        On Ctrl-C; nothing is written.

    Examples
    --------
    ``pipeline.predict("photos-head", "new/").to_pandas()``
    """
    settings = run_settings(options)
    with _watched("predict", "stopped: nothing was written", verbose=verbose, callbacks=callbacks) as hooks:
        return prediction.predict(
            run,
            _images(images),
            output,
            settings,
            weights=options["weights"],
            trust=options["trust"],
            per=options["per"],
            doubt=_trust_options(options),
            explain=options["explain"],
            stop=hooks.stop,
            say=hooks.say,
            progress=hooks.progress,
        )


@takes_options(FINETUNE)
def finetune(
    cache: str | os.PathLike[str],
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    verbose: bool = True,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> FinetuneResult:
    """Train the network behind a cache, starting from the head of a run, and measure the gain.

    Parameters
    ----------
    cache : path
        The cache; its images must still be there, unchanged.
    run : path
        The run folder of a linear head that was fitted on it.
    output : path
        The run folder to write; a former run is replaced.
    verbose : bool
        Show a bar and messages.
    callbacks : Callbacks, optional
        Receives progress and messages instead, and may ask for a stop.

    Returns
    -------
    FinetuneResult

    Raises
    ------
    PipelineError
        Head and cache do not belong together, a class has no training row, an image is gone or changed, the loss is no
        number any more, or memory does not suffice.
    KeyboardInterrupt
        On Ctrl-C, once a checkpoint is written.

    Examples
    --------
    ``pipeline.finetune("photos.h5", "photos-head", "photos-tuned", epochs=3).advice``
    """
    from pipeline.stages import finetune as training  # imports torch

    own = ("start", "weights", "mix", "restart", "report")
    settings = training.FinetuneSettings(
        train=_train_settings(options, (*own, "trust_remote_code")),
        run=RunSettings(
            device=options["device"],
            workers=options["workers"] or 0,
            trust_remote_code=options["trust_remote_code"],
        ),
        **{name: options[name] for name in own},
    )
    with _watched("finetune", RESUMED, verbose=verbose, callbacks=callbacks) as hooks:
        return training.finetune(cache, run, output, settings, stop=hooks.stop, say=hooks.say, progress=hooks.progress)


@contextlib.contextmanager
def _watched(
    what: str, stopped: str | None, *, verbose: bool, callbacks: Callbacks | None, unit: str = "images"
) -> Iterator[Callbacks]:
    """Give the callbacks of a call: those that were passed, or a bar, messages, and Ctrl-C as the request to stop.

    Parameters
    ----------
    what : str
        The name of the call.
    stopped : str or None
        The message of the `KeyboardInterrupt` that follows a stop; None where the call cannot stop by itself.
    """
    if callbacks is not None:
        yield callbacks
        return
    say = show if verbose else ignore
    line = ProgressLine(what, unit, say=say) if verbose else None
    signals = (signal.SIGINT,) if stopped else ()
    with stop_on(signals, say, at_once=signal.default_int_handler) as stop:
        try:
            yield Callbacks(stop, say, line or ignore)
        finally:
            if line is not None:
                line.close()
    if stop.signum is not None:
        raise KeyboardInterrupt(stopped)


def run_settings(options: Mapping[str, Any]) -> RunSettings:
    """Return how to run a network on this machine, from the options ``RUN``."""
    return RunSettings(
        engine=options["engine"],
        device=options["device"],
        precision=options["precision"],
        batch_size=0 if options["batch_size"] == "auto" else options["batch_size"],
        workers=options["workers"] or 0,
        limits=Limits(seconds=options["time_limit"]),
        trust_remote_code=options["trust_remote_code"],
    )


def _extract_settings(options: Mapping[str, Any], shard: Shard | None) -> extraction.ExtractSettings:
    same = ("backbone", "weights", "dtype", "allow_missing", "labels", "check_content", "retry_failed")
    limits = ("max_failures", "allow_removed", "retries", "read_timeout")
    return extraction.ExtractSettings(
        layers=options["layer"],
        size=options["size"] or 0,
        views=options["views"] or "",
        decode=DecodePolicy(
            max_pixels=options["max_pixels"], jpeg_decoder=GPU if options["decode"] == "gpu" else PILLOW
        ),
        run=run_settings(options),
        shard=shard,
        **{name: options[name] for name in (*same, *limits)},
    )


def _executor(options: Mapping[str, Any]) -> Executor | None:
    if options["ray"] is None:
        return None
    return RayExecutor(options["ray"] or None, actors=options["ray_actors"] or 0)


def _fit_settings(options: Mapping[str, Any]) -> FitSettings:
    same = (
        "head",
        "estimator",
        "layer",
        "labels",
        "task",
        "folds",
        "scoring",
        "scaling",
        "groups",
        "per",
        "pooling",
        "group_duplicates",
        "test_share",
        "views",
    )
    texts = ("prompts", "start", "weights", "trust_remote_code")
    return FitSettings(
        target=options["target"][0] if options["target"] else None,
        Cs=options["C"] or options["sweep"],
        class_weight="balanced" if options["balanced"] else None,
        layers=options["layers"] or (),
        features=options["features"] or (),
        shots=options["shots"] or (),
        params=dict(options["set"]),
        **{name: options[name] for name in (*same, *texts, "seed", "device", "report")},
    )


def _trust_options(options: Mapping[str, Any]) -> TrustOptions:
    same = ("abstain_novelty", "abstain_confidence", "coverage")
    return TrustOptions(by_class=options["coverage_by_class"], **{name: options[name] for name in same})


def _train_settings(options: Mapping[str, Any], others: tuple[str, ...]) -> TrainSettings:
    train = {name: value for name, value in options.items() if name not in (*others, "workers", "micro_batch")}
    return TrainSettings(micro_batch=options["micro_batch"] or 0, **train)


def _images(images: str | os.PathLike[str] | Source | Sequence[str | os.PathLike[str]]) -> str | Source | list[str]:
    if isinstance(images, (list, tuple)):
        return [os.fspath(path) for path in images]
    return _source(images)  # type: ignore[arg-type]  # a sequence of another kind is refused there


def _source(images: str | os.PathLike[str] | Source) -> str | Source:
    if isinstance(images, (str, os.PathLike)):
        return os.fspath(images)
    if not hasattr(images, "describe"):
        raise OptionError(f"expected images as a path or a URL, got {type(images).__name__}: name a folder or a table")
    return images
