"""Stage 3: back to the full network, starting from the fitted head.

Images, labels and splits come from the cache and from the run of the head, the probe. The result is a backbone like any
other, with its head, and an honest answer whether it beats the probe on the same test rows.

Axes: N rows of the cache, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.torch import save

from pipeline import evaluate
from pipeline.backbones import FINE_TUNED
from pipeline.backbones.base import Weights, hash_weights
from pipeline.backbones.finetuned import BACKBONE_FILE, save_backbone
from pipeline.cache import open_cache
from pipeline.compare import Comparison, compare_runs, predictions_of
from pipeline.core.callbacks import Callbacks, Progress, Say, ignore
from pipeline.core.spec import fingerprint
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.embed import embed
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec, make_spec
from pipeline.embedding.settings import RunSettings
from pipeline.errors import HeadError, PipelineError
from pipeline.fitting.rows import Rows, select_rows
from pipeline.fitting.run_folder import (
    RUN_FILE,
    check_run_folder,
    new_run_folder,
    run_facts,
    write_json,
    write_predictions,
)
from pipeline.fitting.settings import FitSettings
from pipeline.fitting.target import read_target
from pipeline.fitting.tasks import measure_splits
from pipeline.heads.fitted import FittedHead
from pipeline.heads.model import HeadModel
from pipeline.heads.saved import HEAD_FILE, LoadedHead, load_head, save_head
from pipeline.training.accelerator import make_accelerator
from pipeline.training.images import CachedImages, check_unchanged
from pipeline.training.network import FineTuningNetwork, check_logits
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Trainer, Training, TrainingData

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.backbones import Backbone
    from pipeline.cache import Cache
    from pipeline.sources import Source

CHECKED_IMAGES = 16
VALIDATION_SHARE = 0.1
"""Of the training rows, held out for early stopping where the cache has no val split."""
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
    restart : bool
        Begin anew instead of going on where a stopped run was.
    report : bool
        Whether to write ``report.html``.
    replicates : int
        Bootstrap resamples.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    start: Literal["fitted", "random"] = "fitted"
    run: RunSettings = field(default_factory=RunSettings)
    weights: str | None = None
    restart: bool = False
    report: bool = True
    replicates: int = 1000


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a fine-tuning gave.

    Attributes
    ----------
    run_dir : Path
    metrics : dict
        What ``metrics.json`` holds; empty when stopped.
    comparison : Comparison or None
        With the probe, on the same rows.
    advice : str
        Which of the two to use, and why.
    stopped : bool
        A stop came: the same command goes on.
    """

    run_dir: Path
    metrics: dict[str, Any]
    comparison: Comparison | None
    advice: str
    stopped: bool


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
    settings = settings or FinetuneSettings()
    stop = stop or threading.Event()
    started = time.perf_counter()
    cache, head = open_cache(cache_path), load_head(probe_dir)
    head.check_fingerprint(cache.fingerprint)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    if Path(output).resolve() == Path(probe_dir).resolve():
        raise PipelineError(
            f"expected another folder than the probe's for the result, found {output}: name one with -o"
        )
    check_run_folder(output)
    rows = _rows_of_run(cache, Path(probe_dir), note)
    _check_classes(rows, head)
    _check_measured(cache, rows, probe_dir)
    backbone = backbone_of_spec(cache.spec, settings.weights)
    decode = decode_of_spec(cache.spec)
    accelerator = make_accelerator(settings.train)
    network = FineTuningNetwork(backbone, head.layer, len(head.class_names))
    network.start_from(head)
    share = max(1, settings.train.batch_size // accelerator.num_processes)
    images = CachedImages(
        cache,
        decode,
        backbone.preprocess,
        batch_size=share,
        workers=settings.run.workers,
        device=str(accelerator.device),
    )
    train, val = _training_rows(rows, settings.train.seed, note)
    deviation = _check_start(network, images, cache, rows.index[train], head)
    say(f"the network gives the probe's logits to {deviation:.2g} of their size, on {CHECKED_IMAGES} images at most")
    if settings.start == "random":
        network.head.reset_parameters()
    y = np.full(len(cache), -1, dtype=np.int64)
    y[rows.index] = rows.y
    target = Path(output)
    with _work_folder(target, restart=settings.restart) as folder:
        data = TrainingData(images, rows.index[train], rows.index[val], y, backbone.preprocess.crop)
        begun_from = _identity(cache, rows, train, val, head, settings)
        callbacks = Callbacks(stop, say, progress)
        training = Trainer(
            network, data, settings.train, folder, accelerator, begun_from=begun_from, callbacks=callbacks
        ).run()
    if training.stopped or accelerator.process_index:
        return FinetuneResult(target, {}, None, "", stopped=training.stopped)
    tuned = _as_backbone(network, training.best, backbone, target.name)
    found = _measure(tuned, network, images.source, cache, rows, val, head, settings, stop, say)
    if found is None:
        return FinetuneResult(target, {}, None, "", stopped=True)
    tuned_head, results = found
    with new_run_folder(target) as part:
        (part / LAST_FILE).write_bytes(save({name: tensor.contiguous() for name, tensor in training.last.items()}))
        save_backbone(part / BACKBONE_FILE, tuned)
        save_head(part / HEAD_FILE, tuned_head)
        write_predictions(part / "predictions.csv", results["predictions"], rows, cache)
        comparison = compare_runs(
            [probe_dir, part], split=results["held_out"], seed=settings.train.seed, replicates=settings.replicates
        )[1]
        advice = _advice(comparison)
        results["metrics"]["training"] = _training_facts(training, settings, time.perf_counter() - started)
        results["metrics"]["against_probe"] = _comparison_facts(comparison, advice, probe_dir)
        write_json(part / "metrics.json", results["metrics"])
        run = run_facts(
            cache, rows, settings, head=tuned_head.head, layer=tuned_head.layer, chosen={},
            temperature=tuned_head.model.temperature, notes=notes, packages=("torchvision", "timm", "accelerate"),
        )  # fmt: skip
        run |= {"fingerprint": tuned_head.fingerprint, "spec": tuned_head.spec}
        if settings.report:
            from pipeline.report import write_report
            from pipeline.report.training import training_content

            before = predictions_of(Path(probe_dir), results["held_out"])
            content = training_content(cache, rows, results, run, before)
            write_report(part / "report.html", cache=cache, rows=rows, results=results, run=run, content=content)
        write_json(part / RUN_FILE, run)
    shutil.rmtree(_work_path(target), ignore_errors=True)
    return FinetuneResult(target, results["metrics"], comparison, advice, stopped=False)


# --- the start -----------------------------------------------------------------------------------------------


def _rows_of_run(cache: Cache, run_dir: Path, note: Callable[[str], None]) -> Rows:
    """Return the rows and the split of a run, made again as its settings say.

    Raises
    ------
    HeadError
        The folder does not say how it was made.
    """
    try:
        settings = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["settings"]
        known = {name: settings[name] for name in ("target", "task", "layer", "group_duplicates", "test_share", "seed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadError(
            f"expected a run of pipeline fit-head at {run_dir}, found no settings in it ({error}): fit the head again"
        ) from None
    fit = FitSettings(**known)
    return select_rows(cache, read_target(cache, fit, note), cache.layers[fit.layer], fit, note)


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


def _training_rows(rows: Rows, seed: int, note: Callable[[str], None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions to train and to validate on: the val split, or part of the training rows."""
    train, val = rows.of("train"), rows.of("val")
    if len(val) and len(rows.of("test")):
        return train, val
    groups = None if rows.groups is None else rows.groups[train]
    split = evaluate.hold_out(rows.y[train], share=VALIDATION_SHARE, seed=seed, groups=groups)
    note(
        f"early stopping looks at {int((split == 'test').sum())} of the {len(train)} training rows, which the head "
        "was fitted on: there is no val split besides the rows that measure"
    )
    return train[split != "test"], train[split == "test"]


def _check_start(
    network: FineTuningNetwork,
    images: CachedImages,
    cache: Cache,
    train: NDArray[np.int64],
    head: LoadedHead,
) -> float:
    sample = train[np.unique(np.linspace(0, len(train) - 1, CHECKED_IMAGES).astype(np.int64))]
    prepared = np.concatenate([np.array(batch) for batch in images.batches(sample)])
    exact = cache.spec["precision"] == "float32" and cache.spec["dtype"] == "float32"
    embeddings = cache.layers[head.layer][sample]
    return check_logits(network, prepared, embeddings, head, exact=exact)


def _work_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.training")


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
    with contextlib.suppress(OSError):  # empty: nothing to go on from
        folder.rmdir()


# --- what came out -------------------------------------------------------------------------------------------


def _as_backbone(network: FineTuningNetwork, state: Mapping[str, Tensor], backbone: Backbone, origin: str) -> Backbone:
    """Return the network in a state of its training as a backbone with weights of its own."""
    network.load_state_dict(dict(state))
    network.to("cpu").eval().requires_grad_(False)
    return replace(backbone, weights=Weights(FINE_TUNED, origin, hash_weights(network.backbone.body)))


def _measure(
    tuned: Backbone,
    network: FineTuningNetwork,
    source: Source,
    cache: Cache,
    rows: Rows,
    val: NDArray[np.int64],
    head: LoadedHead,
    settings: FinetuneSettings,
    stop: threading.Event,
    say: Callable[[str], None],
) -> tuple[LoadedHead, dict[str, Any]] | None:
    """Embed the held-out rows with the new backbone, as extract would, and measure its head; None when stopped."""
    held_out = [name for name in ("test", "val") if len(rows.of(name))]
    positions = np.concatenate([rows.of(name) for name in held_out] + [val])
    wanted = np.unique(rows.index[positions])
    decode = decode_of_spec(cache.spec)
    engine, _ = choose_engine(source, tuned, decode, settings.run, rows=wanted, stop=stop, say=say)
    layer, dtype = head.layer, cache.spec["dtype"]
    X = np.empty((len(wanted), network.head.in_features), dtype=dtype)
    done = 0
    try:
        for batch, outputs in embed(source, wanted, tuned, engine, decode, settings.run, stop=stop):
            check_unchanged(cache, batch)
            X[done : done + len(batch.rows)] = outputs[layer][: len(batch.rows)]
            done += len(batch.rows)
    finally:
        engine.close()
    if done < len(wanted):
        return None
    arrays = {
        "coef": network.head.weight.detach().double().numpy().copy(),
        "intercept": network.head.bias.detach().double().numpy().copy(),
    }
    model = HeadModel("linear", arrays, "softmax", len(head.class_names))

    def scores(at: NDArray[np.int64]) -> NDArray[np.float64]:
        return model.scores(X[np.searchsorted(wanted, rows.index[at])])

    model = replace(model, temperature=evaluate.fit_temperature(scores(val), rows.y[val]))
    spec = make_spec(tuned, decode, dtype=dtype, precision=engine.precision)
    tuned_head = replace(head, model=model, spec=spec, fingerprint=fingerprint(spec), head=FINE_TUNED)
    fitted = FittedHead(estimator=None, model=model)
    measured = FitSettings(seed=settings.train.seed, replicates=settings.replicates)
    results = measure_splits(
        rows, {name: scores(rows.of(name)) for name in held_out}, fitted, model.temperature, measured
    )
    predicted = results["predictions"][rows.held_out].argmax(1)
    results["confusion"] = evaluate.confusion_matrix(rows.y[rows.of(rows.held_out)], predicted, len(rows.class_names))
    return tuned_head, results


def _advice(comparison: Comparison) -> str:
    """Say which of the two to use; without evidence the probe, which is cheaper and easier to understand."""
    gain = comparison.difference
    figures = f"{gain.value:+.4f} accuracy ({gain.low:+.4f} to {gain.high:+.4f})"
    if gain.low > 0:
        return f"use the fine-tuned network: {figures} against the probe on the same rows"
    if gain.high < 0:
        return f"keep the probe: fine-tuning did worse, {figures} on the same rows"
    return f"keep the probe: these rows show no difference, {figures}"


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


def _comparison_facts(comparison: Comparison, advice: str, probe: str | os.PathLike[str]) -> dict[str, Any]:
    return {
        "probe": str(probe),
        "difference": comparison.difference.as_dict(),
        "only_probe_right": comparison.only_first,
        "only_fine_tuned_right": comparison.only_this,
        "p_value": comparison.p_value,
        "advice": advice,
    }
