"""Apply a fitted head to new images: the same decoding, backbone and preprocessing as the cache it was fitted on."""

from __future__ import annotations

import csv
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from pipeline.backbones.finetuned import weights_of_run
from pipeline.core.callbacks import Progress, Say, ignore
from pipeline.core.files import replacing
from pipeline.core.items import LeftOut
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads import load_head
from pipeline.sources import open_source

if TYPE_CHECKING:
    import os

    from pipeline.heads import LoadedHead
    from pipeline.sources import Source


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """How a run went: images in all, how many failed, whether it was stopped, seconds, on what, files left out."""

    total: int
    failed: int
    stopped: bool
    seconds: float
    engine: str
    left_out: LeftOut


def predict(
    run_dir: str | os.PathLike[str],
    images: str,
    output: str | os.PathLike[str],
    settings: RunSettings = RunSettings(),
    *,
    weights: str | None = None,
    trust: bool = False,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> PredictSummary:
    """Write a table with a line per image: key, prediction, and why it failed if it did.

    The prediction is a class with a probability per class, the labels of a set joined by ``|`` with a probability per
    label, or a number.

    Parameters
    ----------
    run_dir : path
        A run folder, or its ``head.safetensors``.
    images : str
        What `pipeline.sources.open_source` takes.
    output : path
        The CSV file; appears when it is whole.
    settings : RunSettings
        ``precision`` is that of the cache unless given.
    weights : str, optional
        The backbone's weights, when the cache was made with those of a file.
    trust : bool
        See `pipeline.heads.load_head`.
    stop, say, progress
        As in `pipeline.extract.extract`; a stopped run writes nothing.

    Raises
    ------
    PipelineError
        Head, weights, images, device or output cannot be used.
    """
    started = time.perf_counter()
    stop = stop or threading.Event()
    path = Path(output)
    _check_output(path)
    head = load_head(run_dir, trust=trust)
    source = open_source(images)
    embedder = Embedder.of_spec(head.spec, head.layer, settings, weights=weights or weights_of_run(run_dir))
    engine = embedder.open_for(source, stop=stop, say=say)
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            failed = _write_lines(file, head, embedder, source, stop, progress)
            if stop.is_set():
                raise _StopRequested(failed)
    except _StopRequested as stopped:
        failed = stopped.failed
    finally:
        embedder.close()
    left_out = LeftOut.of(source.skipped)
    where = f"{engine.name}, {engine.device}, {engine.precision}"
    return PredictSummary(len(source), failed, stop.is_set(), time.perf_counter() - started, where, left_out)


def _check_output(path: Path) -> None:
    """Find out before the work begins whether the table can be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise PipelineError(
            f"expected a file name for the predictions, found {path}: name a file in a folder that exists"
        )


class _StopRequested(Exception):
    """A stop came before the table was whole; nothing is written."""

    def __init__(self, failed: int) -> None:
        super().__init__()
        self.failed = failed


def _write_lines(
    file: TextIO, head: LoadedHead, embedder: Embedder, source: Source, stop: threading.Event, progress: Progress
) -> int:
    """Write the table's header and a line for each image; return how many images failed."""
    task = TASKS[head.task]
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["key", *task.header(head.class_names), "error"])
    ready = failed = 0
    progress(ready, failed, len(source))
    for batch, embeddings, reasons in embedder.embed(source, np.arange(len(source)), stop=stop):
        finite = np.asarray(np.isfinite(embeddings).all(axis=1))
        predictions = head.model.predict_proba(np.where(finite[:, None], embeddings, 0))
        for row, reason, predicted in zip(batch.rows.tolist(), reasons, predictions, strict=True):
            cells = task.cells(predicted, head.class_names)
            failed += bool(reason)
            lines.writerow([source[row].key, *([""] * len(cells) if reason else cells), reason])
        ready += len(batch.rows)
        progress(ready, failed, len(source))
    return failed
