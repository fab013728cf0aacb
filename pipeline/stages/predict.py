"""Apply a fitted head to new images: the same decoding, backbone and preprocessing as the cache it was fitted on."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from pipeline.backbones.finetuned import weights_of_run
from pipeline.cache import is_cache, open_cache
from pipeline.core.callbacks import Progress, Say, ignore
from pipeline.core.csv_rows import csv_writer
from pipeline.core.files import replacing
from pipeline.core.items import LeftOut, Status
from pipeline.core.names import SHOWN
from pipeline.core.outputs import check_file
from pipeline.core.results import Result, read_predictions
from pipeline.core.spec import check_same_numbers, spec_of_layers
from pipeline.embedding.embedder import Embedder, reasons_of
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads import load_head
from pipeline.sources import open_source

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.heads import LoadedHead
    from pipeline.sources import Source

    _Batch = tuple[list[str], NDArray[np.float32], list[str]]
    """Keys, features (n, D), and why each image has none."""

_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True, repr=False)
class PredictSummary(Result):
    """How a run went.

    Attributes
    ----------
    total, failed : int
        Images in all, and those that failed.
    stopped : bool
        A stop came: there are no predictions.
    seconds : float
    engine : str
        What ran the network.
    task : str
        What is predicted: classes, numbers or label sets.
    table : Path or str
        The CSV file, or its text where no file was asked for.
    left_out : LeftOut
        Files that are no items.
    """

    total: int
    failed: int
    stopped: bool
    seconds: float
    engine: str
    task: str
    table: Path | str
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def metrics(self) -> dict[str, Any]:
        """How many images there are and how many failed, and the seconds."""
        return {"total": self.total, "failed": self.failed, "seconds": self.seconds}

    def headlines(self) -> list[str]:
        """Return how many images, how many failed, how long, on what; and what was left out."""
        where = f"{self.table}: " if isinstance(self.table, Path) else ""
        if self.stopped:
            return [f"stopped; {where.removesuffix(': ') or 'nothing'} was {'not ' if where else ''}written"]
        lines = [f"{where}{self.total} images, {self.failed} failed, in {self.seconds:.1f} s, on {self.engine}"]
        return [*lines, str(self.left_out)] if self.left_out.reasons else lines

    def to_pandas(self) -> pd.DataFrame:
        """Return the predictions: what was predicted, probabilities, and ``error``, empty where an image is fine.

        Raises
        ------
        PipelineError
            The run was stopped: there are none.
        """
        if self.stopped:
            raise PipelineError("expected predictions, found none, since the run was stopped: predict again")
        table = self.table if isinstance(self.table, Path) else io.StringIO(self.table)
        return read_predictions(table, numeric=self.task == "regression")


def predict(
    run_dir: str | os.PathLike[str],
    images: str | Source,
    output: str | os.PathLike[str] | None,
    settings: RunSettings = RunSettings(),
    *,
    weights: str | None = None,
    trust: bool = False,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> PredictSummary:
    """Make a table with a line per image: key, prediction, and why it failed if it did.

    The prediction is a class or a label set (joined by ``|``) with probabilities, or a number.

    Parameters
    ----------
    run_dir : path
        A run folder, or its ``head.safetensors``.
    images : str or Source
        What `pipeline.sources.open_source` takes, or a source; or a cache, whose embeddings are used as they are.
    output : path or None
        The CSV file; appears when it is whole. None keeps the table in memory.
    settings : RunSettings
        ``precision`` is that of the cache unless given.
    weights : str, optional
        The backbone's weights, when the cache was made with those of a file.
    trust : bool
        See `pipeline.heads.load_head`.
    stop, say, progress
        As in `pipeline.stages.extract.extract`; a stopped run writes nothing.

    Raises
    ------
    PipelineError
        Head, weights, images, device or output cannot be used.
    """
    started = time.perf_counter()
    stop = stop or threading.Event()
    path = None if output is None else check_file(output)
    head = load_head(run_dir, trust=trust)
    if isinstance(images, str) and is_cache(images):
        return _predict_rows(head, open_cache(images), path, started, stop, progress)
    source = open_source(images) if isinstance(images, str) else images
    embedder = Embedder.of_spec(
        head.spec, head.layers, settings, weights=weights or weights_of_run(run_dir), alone=True
    )
    engine = embedder.open_for(source, stop=stop, say=say)
    batches = (
        ([source[row].key for row in batch.rows.tolist()], embeddings, reasons)
        for batch, embeddings, reasons in embedder.embed(source, np.arange(len(source)), stop=stop)
    )
    try:
        failed, stopped, table = _write_table(path, head, batches, len(source), stop, progress)
    finally:
        embedder.close()
    left_out = LeftOut.of(source.skipped)
    where, seconds = f"{engine.name}, {engine.device}, {engine.precision}", time.perf_counter() - started
    return PredictSummary(len(source), failed, stopped, seconds, where, head.task, table, left_out)


def _predict_rows(
    head: LoadedHead, cache: Cache, path: Path | None, started: float, stop: threading.Event, progress: Progress
) -> PredictSummary:
    """Predict the rows of a cache from its embeddings.

    Raises
    ------
    FingerprintError
        The head was fitted on other embeddings.
    """
    found, wanted = (spec_of_layers(spec, head.layers) for spec in (cache.spec, head.spec))
    check_same_numbers(found, wanted, where=str(cache.path), hint="extract with the network of the head")
    failed, stopped, table = _write_table(path, head, _rows_of(cache, head, stop), len(cache), stop, progress)
    seconds = time.perf_counter() - started
    return PredictSummary(len(cache), failed, stopped, seconds, f"the rows of {cache.path}", head.task, table)


def _rows_of(cache: Cache, head: LoadedHead, stop: threading.Event) -> Iterator[_Batch]:
    """Yield the rows of a cache, with their embeddings or the reason why they have none; none after a stop."""
    why, status = cache.reasons(), np.asarray(cache.status)
    names = {int(kind): kind.name.lower().replace("_", " ") for kind in Status}
    for start in range(0, len(cache), _BLOCK_ROWS):
        if stop.is_set():
            return
        rows = np.arange(start, min(start + _BLOCK_ROWS, len(cache)))
        embeddings = head.features({name: cache.layer(name)[rows].astype(np.float32) for name in head.layers})
        reasons = [
            "" if status[row] == Status.DONE else why.get(row, names.get(int(status[row]), "failed"))
            for row in rows.tolist()
        ]
        yield cache.keys_of(rows).tolist(), embeddings, reasons_of(embeddings, reasons)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Open the table for writing, in memory where it has no path."""
    if path is None:
        yield io.StringIO(newline="")
        return
    with replacing(path) as part, part.open("w", encoding="utf-8", errors=SHOWN, newline="") as file:
        yield file


class _StopRequested(Exception):
    """A stop came before the table was whole; nothing is written."""

    def __init__(self, failed: int) -> None:
        super().__init__()
        self.failed = failed


def _write_table(
    path: Path | None,
    head: LoadedHead,
    batches: Iterator[_Batch],
    total: int,
    stop: threading.Event,
    progress: Progress,
) -> tuple[int, bool, Path | str]:
    """Write the table; return how many images failed, whether a stop came, and the table's path or text."""
    text = ""
    try:
        with _opened(path) as file:
            failed = _write_lines(file, head, batches, total, progress)
            if stop.is_set():
                raise _StopRequested(failed)
            text = file.getvalue() if isinstance(file, io.StringIO) else ""
    except _StopRequested as request:
        return request.failed, True, text if path is None else path
    return failed, False, text if path is None else path


def _write_lines(
    file: TextIO,
    head: LoadedHead,
    batches: Iterator[_Batch],
    total: int,
    progress: Progress,
) -> int:
    """Write the table's header and a line for each image; return how many images failed."""
    task = TASKS[head.task]
    lines = csv_writer(file)
    lines.writerow(["key", *task.header(head.class_names), "error"])
    ready = failed = 0
    progress(ready, failed, total)
    for keys, embeddings, reasons in batches:
        finite = np.asarray(np.isfinite(embeddings).all(axis=1))
        predictions = head.model.predict_proba(np.where(finite[:, None], embeddings, 0))
        for key, reason, predicted in zip(keys, reasons, predictions, strict=True):
            cells = task.cells(predicted, head.class_names)
            failed += bool(reason)
            lines.writerow([key, *([""] * len(cells) if reason else cells), reason])
        ready += len(keys)
        progress(ready, failed, total)
    return failed
