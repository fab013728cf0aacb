"""Apply a fitted head to new images: the same decoding, backbone and preprocessing as the cache it was fitted on."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from pipeline.backbones.finetuned import weights_of_run
from pipeline.cache import is_cache, open_cache
from pipeline.cache.same_images import rows_of_same_images
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
from pipeline.errors import HeadError, PipelineError, SourceError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads import load_head
from pipeline.heads.blocks import joined_layers
from pipeline.heads.calibration import load_calibration
from pipeline.heads.columns import FurtherColumns
from pipeline.heads.grouped import GroupAnswers, Grouping
from pipeline.heads.trust import Trust, TrustOptions
from pipeline.sources import open_source
from pipeline.sources.reopen import reopen_source

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.heads import LoadedHead
    from pipeline.heads.calibration import Calibration
    from pipeline.sources import Source
    from pipeline.stages.explanation import ExplanationFolder

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
    remarks : tuple of str
        What is to be known of the table: labels that were not given, calibration rows that are few, what was explained.
    groups : Path, str or None
        The table of the answers for groups, or its text; None where they were not asked for.
    """

    total: int
    failed: int
    stopped: bool
    seconds: float
    engine: str
    task: str
    table: Path | str
    left_out: LeftOut = field(default_factory=LeftOut)
    remarks: tuple[str, ...] = ()
    groups: Path | str | None = None

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
        lines += [f"{self.groups}: one line per group"] if isinstance(self.groups, Path) else []
        return [*lines, *([str(self.left_out)] if self.left_out.reasons else []), *self.remarks]

    def to_pandas(self) -> pd.DataFrame:
        """Return the predictions: what was predicted, probabilities, and ``error``, empty where an image is fine.

        Raises
        ------
        PipelineError
            The run was stopped: there are none.
        """
        return self._read(self.table)

    def groups_to_pandas(self) -> pd.DataFrame:
        """Return the answers for groups: name, number of images, how many failed, and what was predicted.

        Raises
        ------
        PipelineError
            There are none: they were not asked for, or the run was stopped.
        """
        if self.groups is None and not self.stopped:
            raise PipelineError("expected answers for groups, found none: predict with per=COLUMN")
        return self._read(self.groups or "")

    def _read(self, table: Path | str) -> pd.DataFrame:
        if self.stopped:
            raise PipelineError("expected predictions, found none, since the run was stopped: predict again")
        file = table if isinstance(table, Path) else io.StringIO(table)
        return read_predictions(file, numeric=self.task == "regression")


def predict(
    run_dir: str | os.PathLike[str],
    images: str | Source | list[str],
    output: str | os.PathLike[str] | None,
    settings: RunSettings = RunSettings(),
    *,
    weights: str | None = None,
    trust: bool = False,
    doubt: TrustOptions | None = None,
    explain: str | os.PathLike[str] | None = None,
    per: str | None = None,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> PredictSummary:
    """Make a table with a line per image: key, prediction, novelty, and why it failed if it did.

    The prediction is a class or a label set (joined by ``|``) with probabilities, or a number.

    Parameters
    ----------
    run_dir : path
        A run folder, or its ``head.safetensors``.
    images : str, Source or list of str
        What `pipeline.sources.open_source` takes, or a source; or a cache, whose embeddings are used as they are; for
        a head on several networks, their caches in the order of its fit.
    output : path or None
        The CSV file; appears when it is whole. None keeps the table in memory.
    settings : RunSettings
        ``precision`` is that of the cache unless given.
    weights : str, optional
        The backbone's weights, when the cache was made with those of a file; of several networks separated by commas.
    trust : bool
        See `pipeline.heads.load_head`.
    doubt : TrustOptions, optional
        Label sets or intervals, and where no label is given.
    explain : path, optional
        A folder to write maps over the images and the nearest training images into.
    per : str, optional
        A column: images with the same value get one answer together, in a table beside the other.
    stop, say, progress
        As in `pipeline.stages.extract.extract`; a stopped run writes nothing.

    Raises
    ------
    PipelineError
        Head, weights, images, device or output cannot be used.
    """
    started, stop = time.perf_counter(), stop or threading.Event()
    path = None if output is None else check_file(output)
    head, calibration = load_head(run_dir, trust=trust), load_calibration(run_dir)
    further = Trust(head, calibration, doubt or TrustOptions())
    groups = _groups_of(head, run_dir, per, path)
    table = _Table(path, head, further, _explaining(explain, head), groups, stop, progress)

    def embedder() -> Embedder:
        return _embedder(head, weights or weights_of_run(run_dir), settings)

    summary, found = _predict(table, images, embedder, say, started)
    return _explained(summary, table, calibration, found)


def _embedder(head: LoadedHead, weights: str | None, settings: RunSettings) -> Embedder:
    """Return the embedder of the network of a head, or of all its networks."""
    if not head.more:
        return Embedder.of_spec(head.spec, head.layers, settings, weights=weights, alone=True)
    from pipeline.embedding.several import SeveralEmbedders  # few heads take several networks

    files = weights.split(",") if weights else [""] * len(head.networks)
    if len(files) != len(head.networks):
        raise HeadError(
            f"--weights: expected one for each of the {len(head.networks)} networks, separated by commas, found "
            f"{len(files)}: leave that of a network empty whose weights need no file"
        )
    return SeveralEmbedders(  # type: ignore[return-value]  # has what predict calls
        [
            Embedder.of_spec(of.spec, of.layers, settings, weights=file.strip() or None, alone=True)
            for of, file in zip(head.networks, files, strict=True)
        ]
    )


def _predict(
    table: _Table,
    images: str | Source | list[str],
    embedder: Callable[[], Embedder],
    say: Say,
    started: float,
) -> tuple[PredictSummary, _Images]:
    """Write the table; return how that went, and what an explanation reads."""
    if caches := _caches_of(table.head, images):
        cache = caches[0]
        _check_explained(table, len(cache))
        table.open(cache.columns, str(cache.path))
        return _predict_rows(table, caches, started), _Images(_images_of(cache), embedder, cache)
    assert not isinstance(images, list)
    source = open_source(images) if isinstance(images, str) else images
    _check_explained(table, len(source))
    table.open(source.items.columns, source.location)
    opened = embedder()
    return _predict_images(table, source, opened, say, started), _Images(source, lambda: opened, None)


def _caches_of(head: LoadedHead, images: str | Source | list[str]) -> list[Cache]:
    """Return the caches that the images are, one for each network of the head; none where they are no caches.

    Raises
    ------
    HeadError
        Another number of caches.
    """
    if isinstance(images, str) and is_cache(images):
        images = [images]
    if not isinstance(images, list):
        return []
    for path in images:
        if not is_cache(path):
            raise HeadError(
                f"expected one source of images, or caches, found {len(images)} and {path}: name one source"
            )
    if len(images) != len(head.networks):
        raise HeadError(
            f"expected {len(head.networks)} caches, one of each network of the head in the order of its fit, found "
            f"{len(images)}: name as many, or images"
        )
    return [open_cache(path) for path in images]


def _predict_images(table: _Table, source: Source, embedder: Embedder, say: Say, started: float) -> PredictSummary:
    """Predict images through the network."""
    engine = embedder.open_for(source, stop=table.stop, say=say)
    batches = (
        ([source[row].key for row in batch.rows.tolist()], table.beside(embeddings, batch.rows), reasons)
        for batch, embeddings, reasons in embedder.embed(source, np.arange(len(source)), stop=table.stop)
    )
    try:
        failed, stopped, text = _write_table(table, batches, len(source))
    finally:
        embedder.close()
    where, seconds = f"{engine.name}, {engine.device}, {engine.precision}", time.perf_counter() - started
    left_out, groups = LeftOut.of(source.skipped), table.groups
    remarks = (*table.trust.lines(), *table.columns.lines(), *groups.lines())
    return PredictSummary(
        *(len(source), failed, stopped, seconds, where, table.head.task, text, left_out, remarks), groups.table
    )


@dataclass(frozen=True, slots=True)
class _Images:
    """What an explanation reads.

    Attributes
    ----------
    source : Source or None
        The images, where they can be read.
    embedder : callable
        Returns that of the network.
    cache : Cache or None
        Whose rows were predicted.
    """

    source: Source | None
    embedder: Callable[[], Embedder]
    cache: Cache | None


def _explaining(folder: str | os.PathLike[str] | None, head: LoadedHead) -> ExplanationFolder | None:
    if folder is None:
        return None
    head.check_embeddings_alone("--explain")
    from pipeline.stages.explanation import ExplanationFolder  # few predictions are explained

    return ExplanationFolder(folder)


def _check_explained(table: _Table, images: int) -> None:
    if table.explaining is not None:
        table.explaining.check(images)


def _explained(
    summary: PredictSummary, table: _Table, calibration: Calibration | None, images: _Images
) -> PredictSummary:
    """Explain the predictions where that was asked for."""
    if table.explaining is None or summary.stopped:
        return summary
    remarks = table.explaining.write(
        table.head, calibration, images.source, images.embedder, own=images.cache, stop=table.stop
    )
    return replace(summary, remarks=(*summary.remarks, *remarks))


def _images_of(cache: Cache) -> Source | None:
    """Return the images of a cache as they are now; None where they cannot be opened any more."""
    try:
        return reopen_source(cache.source, cache.items, cache.path.parent)
    except SourceError:
        return None


@dataclass(slots=True)
class _Groups:
    """The table of the answers for groups, where they were asked for.

    Attributes
    ----------
    path : Path or None
        None keeps it in memory.
    grouping : Grouping or None
        None where none were asked for.
    answers : GroupAnswers or None
        Filled once the images are known.
    table : Path, str or None
        What was written.
    """

    path: Path | None
    grouping: Grouping | None
    answers: GroupAnswers | None = None
    table: Path | str | None = None

    def open(self, columns: Mapping[str, NDArray[Any]], where: str) -> None:
        """Look for the groups among the columns of the images."""
        if self.grouping is not None:
            self.answers = GroupAnswers(self.grouping, columns, where)

    def write(self) -> None:
        """Write the table."""
        if self.answers is None:
            return
        with _opened(self.path) as file:
            self.answers.write(file)
            self.table = self.path or (file.getvalue() if isinstance(file, io.StringIO) else None)

    def lines(self) -> list[str]:
        """Return what is to be known of it."""
        return [] if self.grouping is None else self.grouping.lines()


def _groups_of(head: LoadedHead, run_dir: str | os.PathLike[str], per: str | None, path: Path | None) -> _Groups:
    """Return the table of the answers for groups, which goes beside the other."""
    if per is None:
        return _Groups(None, None)
    beside = None if path is None else check_file(path.with_name(f"{path.stem}-per-group{path.suffix}"))
    return _Groups(beside, Grouping.of(head, run_dir, per))


@dataclass(slots=True)
class _Table:
    """The table to write, and what takes part in it.

    Attributes
    ----------
    path : Path or None
    head : LoadedHead
    trust : Trust
        The further columns.
    explaining : ExplanationFolder or None
        Collects what is to be explained.
    groups : _Groups
        The answers for groups.
    stop, progress
        As in `predict`.
    columns : FurtherColumns
        What stands beside the embeddings, once the images are known.
    """

    path: Path | None
    head: LoadedHead
    trust: Trust
    explaining: ExplanationFolder | None
    groups: _Groups
    stop: threading.Event
    progress: Progress
    columns: FurtherColumns = field(default_factory=lambda: FurtherColumns(None, {}, ""))

    def open(self, columns: Mapping[str, NDArray[Any]], where: str) -> None:
        """Look for what the table needs among the columns of the images."""
        self.columns = FurtherColumns(self.head.columns, columns, where)
        self.groups.open(columns, where)

    def beside(self, embeddings: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features of some of the images from their embeddings."""
        return self.columns.beside(embeddings, rows)


def _predict_rows(table: _Table, caches: list[Cache], started: float) -> PredictSummary:
    """Predict the rows of a cache from its embeddings, and from those of further networks where the head takes them.

    Raises
    ------
    FingerprintError
        The head was fitted on other embeddings.
    CacheError
        The caches hold other images.
    """
    head, cache = table.head, caches[0]
    for network, its in zip(head.networks, caches, strict=True):
        found, wanted = (spec_of_layers(spec, network.layers) for spec in (its.spec, network.spec))
        check_same_numbers(found, wanted, where=str(its.path), hint="extract with the network of the head")
    failed, stopped, text = _write_table(table, _rows_of(caches, table), len(cache))
    seconds, where = time.perf_counter() - started, f"the rows of {', '.join(str(its.path) for its in caches)}"
    groups = table.groups
    remarks = (*table.trust.lines(), *table.columns.lines(), *groups.lines())
    return PredictSummary(
        *(len(cache), failed, stopped, seconds, where, head.task, text), remarks=remarks, groups=groups.table
    )


def _rows_of(caches: list[Cache], table: _Table) -> Iterator[_Batch]:
    """Yield the rows of the first cache, with their features or the reason why they have none; none after a stop."""
    cache, *others = caches
    orders = [np.arange(len(cache)), *(rows_of_same_images(cache, other) for other in others)]
    reasons = [_reasons_of(its) for its in caches]
    for start in range(0, len(cache), _BLOCK_ROWS):
        if table.stop.is_set():
            return
        rows = np.arange(start, min(start + _BLOCK_ROWS, len(cache)))
        parts = [
            joined_layers(of.layers, {name: its.layer(name)[order[rows]].astype(np.float32) for name in of.layers})
            for of, its, order in zip(table.head.networks, caches, orders, strict=True)
        ]
        embeddings = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        why = [
            next(filter(None, (of(int(order[row])) for of, order in zip(reasons, orders, strict=True))), "")
            for row in rows.tolist()
        ]
        yield cache.keys_of(rows).tolist(), table.beside(embeddings, rows), reasons_of(embeddings, why)


def _reasons_of(cache: Cache) -> Callable[[int], str]:
    """Return a function from a row of a cache to why it has no embedding."""
    why, status = cache.reasons(), np.asarray(cache.status)
    names = {int(kind): kind.name.lower().replace("_", " ") for kind in Status}

    def reason(row: int) -> str:
        return "" if status[row] == Status.DONE else why.get(row, names.get(int(status[row]), "failed"))

    return reason


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


def _write_table(table: _Table, batches: Iterator[_Batch], total: int) -> tuple[int, bool, Path | str]:
    """Write the table; return how many images failed, whether a stop came, and the table's path or text."""
    text, path = "", table.path
    try:
        with _opened(path) as file:
            failed = _write_lines(file, table, batches, total)
            if table.stop.is_set():
                raise _StopRequested(failed)
            table.groups.write()
            text = file.getvalue() if isinstance(file, io.StringIO) else ""
    except _StopRequested as request:
        return request.failed, True, text if path is None else path
    return failed, False, text if path is None else path


def _write_lines(file: TextIO, table: _Table, batches: Iterator[_Batch], total: int) -> int:
    """Write the table's header and a line for each image; return how many images failed."""
    head, trust, task = table.head, table.trust, TASKS[table.head.task]
    lines = csv_writer(file)
    lines.writerow(["key", *task.header(head.class_names), *trust.header, "error"])
    ready = failed = 0
    table.progress(ready, failed, total)
    for keys, embeddings, reasons in batches:
        finite = np.asarray(np.isfinite(embeddings).all(axis=1))
        features = np.where(finite[:, None], embeddings, 0)
        predictions = head.model.predict_proba(features)
        further, doubted = trust.columns(features, predictions)
        trust.count(doubted[[not reason for reason in reasons]])
        if table.explaining is not None:
            table.explaining.predicted.add(keys, features, reasons, predictions)
        if table.groups.answers is not None:
            table.groups.answers.add(keys, features, reasons, predictions)
        for i, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
            failed += bool(reason)
            first, *probabilities = task.cells(predictions[i], head.class_names)
            cells = ["" if doubted[i] else first, *probabilities, *further[i]]
            if reason:
                cells = [""] * len(cells)
            lines.writerow([key, *cells, reason])
        ready += len(keys)
        table.progress(ready, failed, total)
    return failed
