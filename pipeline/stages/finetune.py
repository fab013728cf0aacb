"""Stage 3: back to the full network, starting from the fitted head.

Images, labels and splits come from the cache and from the run of the head, the probe. The result is a backbone like any
other, with its head, and an honest answer whether it beats the probe on the same test rows.

Axes: N rows of the cache, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.torch import save

from pipeline.backbones.finetuned import BACKBONE_FILE, save_backbone
from pipeline.cache import open_cache
from pipeline.core.callbacks import Callbacks, Progress, Say, ignore
from pipeline.core.files import PART, followed
from pipeline.core.results import Result, figures_of, page_of, read_predictions
from pipeline.core.spec import PENULTIMATE
from pipeline.core.views import views_of_spec
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.embedding.settings import RunSettings
from pipeline.errors import HeadError, PipelineError
from pipeline.fitting.compare import Comparison, compare_runs, predictions_of
from pipeline.fitting.layers import layer_of_duplicates
from pipeline.fitting.rows import Rows, select_rows
from pipeline.fitting.run_folder import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    HeadFacts,
    check_run_folder,
    new_run_folder,
    read_run,
    run_facts,
    write_json,
    write_predictions,
)
from pipeline.fitting.settings import FitSettings
from pipeline.fitting.target import read_target
from pipeline.heads.saved import HEAD_FILE, RUN_FILE, LoadedHead, load_head, save_head
from pipeline.report import write_report
from pipeline.report.finetuning import training_content
from pipeline.sources.label_table import labelled_items
from pipeline.training.accelerator import make_accelerator
from pipeline.training.images import CachedImages
from pipeline.training.measure import CHECKED_IMAGES, HeldOut, as_backbone, check_start, measure_tuned, training_rows
from pipeline.training.mix import Mix, interpolated, mix_networks
from pipeline.training.network import FineTuningNetwork
from pipeline.training.settings import TrainSettings
from pipeline.training.start import fit_without_validation
from pipeline.training.trainer import CHECKPOINT, Trainer, Training, TrainingData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.backbones import Backbone
    from pipeline.cache import Cache

LAST_FILE = "last.safetensors"


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """All settings of a fine-tuning.

    Attributes
    ----------
    train : TrainSettings
    start : {"fitted", "random"}
        The head's first weights; ``random`` is there to see what the fitted ones are worth.
    run : RunSettings
        How to embed the held-out rows at the end, and how many decode processes.
    weights : str or None
        Where the backbone's weights are, when they came from a file.
    mix : float, "auto" or "none"
        How much of the tuned network the result has, its other part being the start; see `pipeline.training.mix`.
        ``auto`` asks the validation rows, ``none`` is 1.
    restart : bool
        Start again instead of continuing where a stopped run was.
    report : bool
        Whether to write ``report.html``.
    replicates : int
        Bootstrap resamples.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    start: Literal["fitted", "random"] = "fitted"
    run: RunSettings = field(default_factory=RunSettings)
    weights: str | None = None
    mix: float | Literal["auto", "none"] = "auto"
    restart: bool = False
    report: bool = True
    replicates: int = 1000


@dataclass(frozen=True, slots=True, repr=False)
class FinetuneResult(Result):
    """What a fine-tuning gave.

    Attributes
    ----------
    run_dir : Path
    metrics : dict
        What ``metrics.json`` holds; empty when stopped.
    comparison : Comparison or None
        With the probe, on the same rows.
    tuned : Comparison or None
        The same of the tuned network before it was mixed with the start; None where it was not mixed.
    advice : str
        Which of the two to use, and why.
    stopped : bool
        A stop came: the same command continues.
    """

    run_dir: Path
    metrics: dict[str, Any]
    comparison: Comparison | None
    advice: str
    stopped: bool
    tuned: Comparison | None = None

    @property
    def report(self) -> Path | None:
        """The page of the run; None where it was not written."""
        return page_of(self.run_dir, REPORT_FILE)

    def headlines(self) -> list[str]:
        """Return whether to use the fine-tuned network or the probe, and what the mix of both is worth."""
        lines = ["stopped: the same command resumes"] if self.stopped else []
        if self.metrics:
            lines.append(f"{self.run_dir}: {self.advice}")
        if self.tuned is not None:
            gain = self.tuned.difference
            lines.append(
                f"{self.run_dir}: the fine-tuned network before it was mixed: {gain.value:+.4f} accuracy "
                f"({gain.low:+.4f} to {gain.high:+.4f}) against the probe on the same rows"
            )
        return lines

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows held out: split, label, what was predicted, and probabilities.

        Raises
        ------
        PipelineError
            The run was stopped: there are none.
        """
        if self.stopped:
            raise PipelineError("expected predictions, found none, since the run was stopped: run it again to resume")
        return read_predictions(self.run_dir / PREDICTIONS_FILE, numeric=False)

    def _figures(self) -> dict[str, dict[str, Any]]:
        return figures_of(self.metrics)


def finetune(
    cache_path: str | os.PathLike[str],
    probe_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: FinetuneSettings | None = None,
    *,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> FinetuneResult:
    """Train the network behind a cache on its labels, from a fitted head on, and measure what came out.

    Parameters
    ----------
    cache_path : str or Path
        The cache; its images must still be there, unchanged.
    probe_dir : str or Path
        The run folder of a linear head that was fitted on it.
    output : str or Path
        The run folder to write; a former run is replaced.
    settings : FinetuneSettings, optional
    stop : threading.Event, optional
        When set, a checkpoint is written and the function returns.
    say : callable
        Takes lines for the user.
    progress : callable
        Called with images trained on, images failed (always 0) and images in all.

    Raises
    ------
    PipelineError
        Head and cache do not belong together, a class has no training row, an image is gone or changed, the loss is no
        number any more, or memory does not suffice.
    """
    started = time.perf_counter()
    callbacks = Callbacks(stop or threading.Event(), say, progress)
    start = _open_start(Path(cache_path), Path(probe_dir), followed(output), settings or FinetuneSettings(), callbacks)
    settings, target = start.settings, start.output
    accelerator = make_accelerator(settings.train)
    trained = _train(start, accelerator)
    if trained.training.stopped or accelerator.process_index:
        return FinetuneResult(target, {}, None, "", stopped=trained.training.stopped)
    measured = _mix_and_measure(trained, start, accelerator)
    if measured is None:
        return FinetuneResult(target, {}, None, "", stopped=True)
    with new_run_folder(target) as part:
        last = {name: tensor.contiguous() for name, tensor in trained.training.last.items()}
        (part / LAST_FILE).write_bytes(save(last))
        before, comparison, tuned = _write_result(part, start, measured)
        metrics = measured.results["metrics"]
        metrics["training"] = _training_facts(trained.training, settings, time.perf_counter() - started)
        advice = _advice(comparison, measured.mix)
        metrics["against_probe"] = _comparison_facts(before, comparison, advice)
        metrics["mix"] = _mix_facts(measured.mix, tuned)
        _write_facts(part, start, measured)
    shutil.rmtree(_work_path(target), ignore_errors=True)
    return FinetuneResult(target, metrics, comparison, advice, stopped=False, tuned=tuned)


# --- the start -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Start:
    """A fine-tuning that was checked and can begin."""

    cache: Cache
    head: LoadedHead
    backbone: Backbone
    rows: Rows
    probe: Path
    output: Path
    settings: FinetuneSettings
    callbacks: Callbacks
    notes: list[str]

    def note(self, text: str) -> None:
        """Say a line, and keep it for the run's facts."""
        self.notes.append(text)
        self.callbacks.say(text)


def _open_start(
    cache_path: Path, probe: Path, output: Path, settings: FinetuneSettings, callbacks: Callbacks
) -> _Start:
    """Open cache, head and backbone, and check all that can be checked before hours of training."""
    cache, head = open_cache(cache_path), load_head(probe)
    head.check_embeddings_alone("finetune")
    head.check_fingerprint(cache.fingerprint)
    if len(head.layers) > 1:
        raise PipelineError(
            f"expected a head on one layer, found one on {head.layer} in {probe}: fit one with --layer, such as "
            f"--layer {PENULTIMATE}"
        )
    if views := views_of_spec(cache.spec):
        raise PipelineError(
            f"training takes one view of an image, and {cache_path} was made with --views {views}: extract without it "
            "into another cache, and fit a head on that"
        )
    if output.resolve() == probe.resolve():
        raise PipelineError(
            f"expected another folder than the probe's for the result, found {output}: name one with -o"
        )
    check_run_folder(output)
    _check_work_folder(output)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        callbacks.say(text)

    rows = _rows_of_run(cache, probe, note)
    _check_classes(rows, head)
    _check_measured(cache, rows, probe)
    backbone = backbone_of_spec(cache.spec, settings.weights, trust_remote_code=settings.run.trust_remote_code)
    return _Start(cache, head, backbone, rows, probe, output, settings, callbacks, notes)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A training that ended, and the state that it began with."""

    network: FineTuningNetwork
    data: TrainingData
    held_out: HeldOut
    begun: dict[str, Tensor]
    training: Training
    mix: float | str
    """What to mix by: the setting, or ``none`` where the validation rows cannot choose."""


def _train(start: _Start, accelerator: Any) -> _Trained:
    """Train from the probe's head on, or from where a stopped run was; its checkpoint stays."""
    cache, head, rows, settings = start.cache, start.head, start.rows, start.settings
    network = FineTuningNetwork(start.backbone, head.layer, len(head.class_names))
    network.start_from(head)
    images = CachedImages(
        cache,
        decode_of_spec(cache.spec),
        start.backbone.preprocess,
        batch_size=max(1, settings.train.batch_size // accelerator.num_processes),
        workers=settings.run.workers,
        device=str(accelerator.device),
    )
    train, val = training_rows(rows, settings.train.seed, start.note)
    deviation = check_start(network, images, cache, rows.index[train], head)
    start.callbacks.say(
        f"the network gives the probe's logits to {deviation:.2g} of their size, on {CHECKED_IMAGES} images at most"
    )
    mix = _prepare_start(start, network, train, val)
    begun = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    y = np.full(len(cache), -1, dtype=np.int64)
    y[rows.index] = rows.y
    data = TrainingData(images, rows.index[train], rows.index[val], y, start.backbone.preprocess.crop)
    begun_from = _identity(cache, rows, train, val, head, settings)
    with _work_folder(start.output, restart=settings.restart) as folder:
        trainer = Trainer(
            network, data, settings.train, folder, accelerator, begun_from=begun_from, callbacks=start.callbacks
        )
        training = trainer.run()
    return _Trained(network, data, HeldOut(cache, images.source, rows, val, head), begun, training, mix)


def _prepare_start(
    start: _Start, network: FineTuningNetwork, train: NDArray[np.int64], val: NDArray[np.int64]
) -> float | str:
    """Replace the head where it was fitted on the validation rows, or is to be random; return what to mix by."""
    rows, settings, mix = start.rows, start.settings, start.settings.mix
    if settings.start == "random":
        network.head.reset_parameters()
    elif np.isin(val, rows.of("train")).any():
        X = start.cache.layers[start.head.layer][rows.index[train]]
        again = fit_without_validation(start.head, read_run(start.probe), X, rows.y[train])
        if again is not None:
            network.start_from(again)
        elif mix == "auto":
            start.note(
                "--mix auto is none here: the validation rows are rows that the head was fitted on, and only a "
                "logistic head is fitted again without them"
            )
            mix = "none"
    return mix


# --- the result ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """The network to write, with its head and its scores.

    Attributes
    ----------
    unmixed : dict of str to ndarray, or None
        Probabilities of the tuned network by split, where the result is a mix.
    """

    mix: Mix
    backbone: Backbone
    head: LoadedHead
    results: dict[str, Any]
    unmixed: dict[str, NDArray[np.float64]] | None


def _mix_and_measure(trained: _Trained, start: _Start, accelerator: Any) -> _Measured | None:
    """Mix the tuned network with its start, and measure both on the held-out rows; None when stopped."""
    stop, training = start.callbacks.stop, trained.training
    mix = mix_networks(
        trained.network,
        trained.begun,
        training.best,
        trained.data,
        accelerator,
        stop,
        share=trained.mix,
        most=training.micro_batch,
    )
    if mix is None:
        return None
    if mix.tried:
        start.callbacks.say(f"the validation rows choose {mix.share:g} of the tuned network, the rest from its start")
    unmixed = None
    if mix.share < 1:
        alone = _measure(trained, start, training.best)
        if alone is None:
            return None
        unmixed = alone[2]["predictions"]
    mixed = _measure(trained, start, interpolated(trained.begun, training.best, mix.share))
    return None if mixed is None else _Measured(mix, *mixed, unmixed)


def _measure(
    trained: _Trained, start: _Start, state: Mapping[str, Tensor]
) -> tuple[Backbone, LoadedHead, dict[str, Any]] | None:
    """Return the network in a state as a backbone, with its head and scores; None when stopped."""
    settings = start.settings
    backbone = as_backbone(trained.network, state, start.backbone, start.output.name)
    measured = measure_tuned(
        backbone,
        trained.network,
        trained.held_out,
        settings.run,
        start.callbacks,
        seed=settings.train.seed,
        replicates=settings.replicates,
    )
    return None if measured is None else (backbone, *measured)


def _write_result(part: Path, start: _Start, measured: _Measured) -> tuple[Comparison, Comparison, Comparison | None]:
    """Write network, head and predictions; compare the probe, the result, and the network before it was mixed."""
    save_backbone(part / BACKBONE_FILE, measured.backbone)
    save_head(part / HEAD_FILE, measured.head)
    write_predictions(part / PREDICTIONS_FILE, measured.results["predictions"], start.rows, start.cache)
    runs = [start.probe, part]
    with tempfile.TemporaryDirectory() as folder:
        if measured.unmixed is not None:
            write_predictions(Path(folder) / PREDICTIONS_FILE, measured.unmixed, start.rows, start.cache)
            runs.append(Path(folder))
        settings = start.settings
        found = compare_runs(
            runs, split=measured.results["held_out"], seed=settings.train.seed, replicates=settings.replicates
        )
    return found[0], found[1], found[2] if len(found) > 2 else None


def _write_facts(part: Path, start: _Start, measured: _Measured) -> None:
    """Write metrics, the run's facts and its page."""
    tuned_head, results = measured.head, measured.results
    write_json(part / METRICS_FILE, results["metrics"])
    facts = HeadFacts(tuned_head.head, tuned_head.layers, {}, tuned_head.model.temperature)
    packages = ("torchvision", "timm", "accelerate")
    run = run_facts(start.cache, start.rows, start.settings, facts, start.notes, packages)
    run |= {"fingerprint": tuned_head.fingerprint, "spec": tuned_head.spec}
    if start.settings.report:
        before = predictions_of(start.probe, results["held_out"])
        content = training_content(start.cache, start.rows, results, run, before)
        write_report(part / REPORT_FILE, cache=start.cache, rows=start.rows, results=results, run=run, content=content)
    write_json(part / RUN_FILE, run)


def _rows_of_run(cache: Cache, run_dir: Path, note: Callable[[str], None]) -> Rows:
    """Return the rows and the split of a run, made again as its settings say.

    Raises
    ------
    HeadError
        The folder does not say how it was made.
    """
    try:
        settings = read_run(run_dir)["settings"]
        known = {name: settings[name] for name in ("target", "task", "layer", "group_duplicates", "test_share", "seed")}
    except (KeyError, TypeError) as error:
        raise HeadError(
            f"expected a run of pipeline fit-head at {run_dir}, found no settings in it ({error}): fit the head again"
        ) from None
    # Older runs have one layer, no table and no named groups.
    later = {name: settings.get(name) for name in ("labels", "groups", "per")}
    fit = FitSettings(**known, **later, layers=tuple(settings.get("layers", ())))
    if fit.labels is not None:
        cache.items = labelled_items(cache.items, fit.labels, note)
    return select_rows(cache, read_target(cache, fit, note), layer_of_duplicates(cache, fit), fit, note)


def _check_classes(rows: Rows, head: LoadedHead) -> None:
    if rows.class_names != head.class_names:
        gone = sorted(set(head.class_names) - set(rows.class_names))
        new = sorted(set(rows.class_names) - set(head.class_names))
        named = ((gone, "without a training row"), (new, "new"))
        what = "; ".join(f"{len(names)} {word} ({names[0]})" for names, word in named if names)
        raise HeadError(
            f"expected the probe's classes in the cache's training rows, found {what or 'another order'}: "
            "fit the head again"
        )


def _check_measured(cache: Cache, rows: Rows, probe: str | os.PathLike[str]) -> None:
    """Make sure, before hours of training, that the probe was measured on the rows that will measure the result."""
    there = predictions_of(Path(probe), rows.held_out).keys()
    here = set(cache.keys_of(rows.index[rows.of(rows.held_out)]).tolist())
    if there != here:
        raise HeadError(
            f"expected {probe} to be measured on the {len(here)} {rows.held_out} rows that the cache has now, found "
            f"{len(there)} ({len(there ^ here)} differ): fit the head again"
        )


def _identity(
    cache: Cache,
    rows: Rows,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    head: LoadedHead,
    settings: FinetuneSettings,
) -> str:
    """Return a hash of what training begins from: a checkpoint of anything else is another run's."""
    digest = hashlib.sha256(f"{cache.fingerprint} {settings.start} {head.layer} {head.class_names}".encode())
    for array in (rows.index[train], rows.index[val], rows.y, *head.model.arrays.values()):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _work_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.training")


def _check_work_folder(output: Path) -> None:
    folder = _work_path(output)
    if os.path.lexists(folder) and not (folder.is_dir() and not folder.is_symlink() and _holds_checkpoints(folder)):
        raise PipelineError(
            f"{folder} exists and was not written by this command, which keeps its checkpoint there: rename it, or "
            "give another folder with -o"
        )


def _holds_checkpoints(folder: Path) -> bool:
    return all(path.name == CHECKPOINT or path.suffix == PART for path in folder.iterdir())


@contextlib.contextmanager
def _work_folder(output: Path, *, restart: bool) -> Iterator[Path]:
    """Give the folder of the checkpoint, beside the run to come; it stays until that is written."""
    folder = _work_path(output)
    try:
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"cannot write to {output.parent} ({error.strerror}): give another folder with -o"
        ) from None
    yield folder
    with contextlib.suppress(OSError):  # empty: nothing to continue from
        folder.rmdir()


def _advice(comparison: Comparison, mix: Mix) -> str:
    """Say which of the two to use; without evidence the probe, which is cheaper and easier to understand."""
    gain = comparison.difference
    figures = f"{gain.value:+.4f} accuracy ({gain.low:+.4f} to {gain.high:+.4f})"
    what = "fine-tuned network" if mix.share == 1 else f"fine-tuned network (mixed, {mix.share:g} of it)"
    if gain.low > 0:
        return f"use the {what}: {figures} against the probe on the same rows"
    if gain.high < 0:
        return f"keep the probe: the {what} did worse, {figures} on the same rows"
    return f"keep the probe: these rows show no difference of the {what}, {figures}"


def _mix_facts(mix: Mix, tuned: Comparison | None) -> dict[str, Any]:
    """Return what the page says about the mix; ``tuned`` is the network before it, where there was one."""
    facts: dict[str, Any] = {"share": mix.share, "tried": mix.tried}
    if tuned is not None:
        facts["tuned"] = {"accuracy": tuned.figure.as_dict(), "difference": tuned.difference.as_dict()}
    return facts


def _training_facts(training: Training, settings: FinetuneSettings, seconds: float) -> dict[str, Any]:
    return {
        "history": training.history,
        "best_epoch": training.best_epoch,
        "lr": training.lr,
        "range_test": {"rates": training.rates, "losses": training.losses},
        "micro_batch": training.micro_batch,
        "start": settings.start,
        "rates_by_depth": training.rates_by_depth,
        "seconds": round(seconds, 1),
    }


def _comparison_facts(probe: Comparison, comparison: Comparison, advice: str) -> dict[str, Any]:
    return {
        "probe": probe.run,
        "probe_accuracy": probe.figure.as_dict(),
        "accuracy": comparison.figure.as_dict(),
        "difference": comparison.difference.as_dict(),
        "only_probe_right": comparison.only_first,
        "only_fine_tuned_right": comparison.only_this,
        "p_value": comparison.p_value,
        "advice": advice,
    }
