"""Stage 1: run a frozen network once over a source and cache its embeddings.

Reading and decoding (worker processes), the forward pass (the engine's threads) and writing (one thread) run side by
side; this module plans the work and passes batches along from the executor, which computes, to the cache.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import load_backbone
from pipeline.cache import Cache, CacheWriter, open_cache, write_lock
from pipeline.cache.background_writer import BackgroundWriter
from pipeline.cache.beside import check_beside, run_facts_path
from pipeline.cache.format import file_attributes
from pipeline.cache.removed import keep_removed
from pipeline.cache.replace import lay_out, publish, remove, unfinished_path
from pipeline.cache.shard import check_same_shard
from pipeline.cache.update import open_update
from pipeline.core.callbacks import Callbacks, Progress, Say, ignore
from pipeline.core.files import replacing
from pipeline.core.items import AGAIN, ALL, LeftOut, Status, status_name
from pipeline.core.limits import count_limit
from pipeline.core.outputs import check_file
from pipeline.core.results import Result
from pipeline.core.spec import check_same_numbers
from pipeline.core.system import DISTRIBUTION, versions_of
from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
from pipeline.embedding.bottleneck import Bottleneck, find_bottleneck
from pipeline.embedding.executor import Executor, LocalExecutor
from pipeline.embedding.from_spec import decode_of_spec, make_spec
from pipeline.embedding.settings import AUTO, RunSettings
from pipeline.errors import CacheError, FingerprintError, PipelineError
from pipeline.selection import open_selection
from pipeline.sources import Source, open_source, public
from pipeline.sources.retries import READ_TIMEOUT, RETRIES, Patience
from pipeline.sources.shard import ShardSource

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.cache.lease import Lease
    from pipeline.cache.lock import WriteLock
    from pipeline.core.shards import Shard, ShardRecord
    from pipeline.embedding.executor import EmbeddedRows
    from pipeline.engines import Embeddings

DTYPES = ("float32", "float16")
VERSIONS = (DISTRIBUTION, "torch", "torchvision", "timm", "openvino", "numpy", "h5py", "pillow")
"""Distributions whose version a cache records."""
LEAST_FOR_ADVICE = 100
"""Images; below it the start of the workers takes most of the time, and says nothing of where more would go."""


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """The settings of `extract`.

    Attributes
    ----------
    backbone, weights : str, str or None
        See `pipeline.backbones.load_backbone`.
    layers : tuple of str
        Outputs besides ``penultimate``.
    size : int
        Of the network's input; 0 for that of the weights.
    views : str
        Further views of every image, a key of `pipeline.core.views.VIEWS`; empty for none.
    dtype : str
        Of the stored embeddings, ``float32`` or ``float16``.
    decode : DecodePolicy
    run : RunSettings
        Engine, device, precision, batch size, workers, limits.
    allow_missing, labels : bool, str or None
        See `pipeline.sources.open_source`.
    check_content : bool
        Compare the content of every image with the cache, not only its size and time.
    retry_failed : bool
        Try again the images that failed before.
    max_failures : str or None
        How many images may fail before the run ends, ``"20"`` or ``"5%"`` of all; None for any number.
    retries, read_timeout : int, float
        How often a read is repeated that a store could not serve, and for how many seconds in all; what is still out
        of reach then is tried again by the next run. It counts for itself against ``max_failures``.
    allow_removed : str or None
        How many finished rows an update may remove because their images are gone or are others, in the same form;
        None for half of them.
    shard : Shard or None
        Only this part of the source; see `pipeline.core.shards`.
    """

    backbone: str | None = None
    weights: str | None = None
    layers: tuple[str, ...] = ()
    size: int = 0
    views: str = ""
    dtype: str = "float32"
    decode: DecodePolicy = field(default_factory=DecodePolicy)
    run: RunSettings = field(default_factory=RunSettings)
    allow_missing: bool = False
    labels: str | None = None
    check_content: bool = False
    retry_failed: bool = False
    max_failures: str | None = None
    retries: int = RETRIES
    read_timeout: float = READ_TIMEOUT
    allow_removed: str | None = None
    shard: Shard | None = None


@dataclass(slots=True, repr=False)
class Summary(Result):
    """How a run went.

    Attributes
    ----------
    path : Path
        The cache.
    total, already, computed, failed : int
        Rows of the cache; done before; done now; failed, whenever.
    failures : mapping of str to int
        How many rows failed, by status.
    changes : mapping of str to int
        What had happened to the archive since the cache was made: images ``added``, ``changed``, ``deleted``,
        ``renamed``, ``relabelled``, ``unchanged``; empty where nothing had.
    left_out : LeftOut
        Files that are no items.
    stopped : bool
        The run was asked to stop before the end.
    engine : str
        What ran the network.
    bottleneck : Bottleneck or None
        Where the time went; None where nothing was computed.
    seconds : mapping of str to float
        Wall time of the whole and of the loop, worker time of reading and decoding, time the loop waited. Those that
        begin with ``start:`` went before the loop: listing the images, loading the network, opening and checking
        engine, precision and decoder.
    """

    path: Path
    total: int = 0
    already: int = 0
    computed: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    stopped: bool = False
    engine: str = ""
    bottleneck: Bottleneck | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """How many images there are, were done before, were computed and failed, the rate, and the seconds."""
        return {
            "total": self.total,
            "already": self.already,
            "computed": self.computed,
            "failed": self.failed,
            "images_per_second": self._rate,
            "seconds": self.seconds.get("total", 0.0),
        }

    @property
    def _rate(self) -> float:
        seconds = self.seconds.get("total", 0.0)
        return self.computed / seconds if seconds else 0.0

    def headlines(self) -> list[str]:
        """Return how many images are done, where the time went, what had changed, failed and was left out."""
        how = f", {self._rate:.0f} images/s, on {self.engine}" if self.engine else ""  # nothing was computed
        lines = [
            f"{self.path}: {self.already + self.computed} of {self.total} images done ({self.computed} now, "
            f"{self.failed} failed) in {self.seconds.get('total', 0.0):.1f} s{how}"
        ]
        if self.bottleneck is not None and self.computed >= LEAST_FOR_ADVICE:
            lines.append(f"time: {self.bottleneck}")
        if self.changes:
            lines.append("archive: " + ", ".join(f"{count} {what}" for what, count in self.changes.items() if count))
        if self.failures:
            counts = [f"{count} {name.replace('_', ' ')}" for name, count in sorted(self.failures.items())]
            lines.append("failed: " + ", ".join(counts))
        if self.left_out.reasons:
            lines.append(str(self.left_out))
        if self.stopped:
            left = self.total - self.already - self.computed - self.failed
            # None is left where the images were still being compared with the cache.
            lines.append(f"stopped{f', {left} left' if left else ''}: the same command resumes")
        return lines

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows of the cache, done or not, with label, status and columns, without the embeddings."""
        return open_selection(self.path, status=ALL).to_pandas(layer=None)


@dataclass(frozen=True, slots=True)
class Job:
    """An extraction: what is embedded, into which cache, how and where."""

    path: Path
    source: Source
    backbone: Backbone
    settings: ExtractSettings
    executor: Executor
    callbacks: Callbacks


@dataclass(frozen=True, slots=True)
class Work:
    """The rows that a job has to compute.

    Attributes
    ----------
    target : Path
        The file whose rows they are: the cache, or an update that will take its place.
    rows : (n,) int64
    settings : ExtractSettings
        Those of the job, with what an existing cache settles.
    sampled : Source
    among : (m,) int64
        Where the sample for the self-check comes from, and from which of its rows.
    start : callable
        Given the self-check of the open executor, makes the file ready; False where the run is to end there.
    changes : mapping of str to int
        What had happened to the archive; see `Summary`.
    """

    target: Path
    rows: NDArray[np.int64]
    settings: ExtractSettings
    sampled: Source
    among: NDArray[np.int64]
    start: Callable[[dict[str, Any]], bool]
    changes: dict[str, int] = field(default_factory=dict)


def extract(
    images: str | Source,
    output: str | os.PathLike[str],
    settings: ExtractSettings = ExtractSettings(),
    *,
    executor: Executor | None = None,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> Summary:
    """Embed every image of a source into a cache; continue where an earlier run stopped.

    Parameters
    ----------
    images : str or Source
        What `pipeline.sources.open_source` takes, or a source.
    output : path
        The cache file; made, or completed when it holds the same numbers of the same images.
    settings : ExtractSettings
    executor : Executor, optional
        Where to compute; on this machine where left out.
    stop : threading.Event, optional
        When set, what is finished is committed and the run ends.
    say, progress : callable
        Receive lines for people and counts.

    Returns
    -------
    Summary

    Raises
    ------
    PipelineError
        Images, backbone, device or output cannot be used; nothing is left half written.
    """
    started = time.perf_counter()
    count_limit(settings.max_failures, 0, "--max-failures")
    count_limit(settings.allow_removed, 0, "--allow-removed")
    path = check_file(output, CacheError, replaceable=False)
    check_beside(path)
    start = {}
    source = _open(images, path, settings) if isinstance(images, str) else images
    start["start: images"] = time.perf_counter() - started
    if settings.shard is not None:
        source = ShardSource(source, settings.shard)
    # The time limit of an image would end the worker that still reads.
    source.patience = Patience(settings.retries, min(settings.read_timeout, 0.75 * settings.run.limits.seconds))
    begun = time.perf_counter()
    backbone = _load(settings)
    start["start: network"] = time.perf_counter() - begun
    callbacks = Callbacks(stop or threading.Event(), say, progress)
    job = Job(path, source, backbone, settings, executor or LocalExecutor(), callbacks)
    with write_lock(path) as lock:
        summary = _extract_locked(job, lock)
    summary.left_out = LeftOut.of(source.skipped)
    summary.seconds |= start
    summary.seconds["total"] = time.perf_counter() - started
    if summary.bottleneck is not None:
        _write_run(path, summary, settings)
    return summary


def _load(settings: ExtractSettings) -> Backbone:
    return load_backbone(
        settings.backbone,
        settings.weights,
        settings.layers,
        settings.size,
        settings.views,
        trust_remote_code=settings.run.trust_remote_code,
    )


def _open(images: str, path: Path, settings: ExtractSettings) -> Source:
    known = None
    if path.exists():
        items = open_cache(path).items
        known = items.keys, items.sizes, items.mtimes_ns
    return open_source(images, allow_missing=settings.allow_missing, labels=settings.labels, known=known)


def _extract_locked(job: Job, lock: WriteLock | Lease) -> Summary:
    try:
        work = resume(job, open_cache(job.path)) if job.path.exists() else begin(job)
    except _StopRequested:
        return replace(_summarise(job.path, already=len(open_cache(job.path))), stopped=True)
    lock.computing(len(job.source) - len(work.rows))
    summary = fill(job, work)
    if not (summary.stopped or (open_cache(work.target).status == Status.TODO).any()):
        keep_removed(job.path, work.target)
        if work.target != job.path:
            publish(work.target, job.path)
    summary.path, summary.changes = job.path, work.changes
    return summary


class _StopRequested(Exception):
    """A stop came while the archive was being compared with the cache; nothing was changed."""


def begin(job: Job) -> Work:
    """Return the work of a cache that does not exist yet: all rows, in a file made once precision is chosen."""
    source, settings = job.source, job.settings
    remove(unfinished_path(job.path))  # the update of a cache that is no more

    def start(self_check: dict[str, Any]) -> bool:
        if job.callbacks.stop.is_set():  # perhaps before the check was through: the next run measures
            return False
        executor = job.executor
        spec = make_spec(job.backbone, executor.decode, dtype=settings.dtype, precision=executor.precision)
        lay_out(
            job.path,
            source.items,
            widths={layer.name: layer.width for layer in job.backbone.layers},
            dtype=settings.dtype,
            attributes=_attributes(spec, _versions(executor), self_check, source),
        )
        return True

    # Of shards every job takes the same sample, and so the same precision.
    sampled = source.whole if isinstance(source, ShardSource) else source
    rows = np.arange(len(source), dtype=np.int64)
    return Work(job.path, rows, settings, sampled, np.arange(len(sampled)), start)


def resume(job: Job, old: Cache) -> Work:
    """Return the work that an existing cache leaves, in its precision and with its decoder.

    Raises
    ------
    FingerprintError
        It holds other numbers.
    CacheError
        It is another shard, or another archive's.
    """
    settings = _settings_of(old, job)
    target, changes = _update(job, old, settings)
    rows = _rows_to_do(target, retry_failed=settings.retry_failed)

    def start(self_check: dict[str, Any]) -> bool:
        if job.executor.decode != settings.decode:
            raise FingerprintError(
                f"{job.path} holds images decoded on a GPU (decode.jpeg_decoder), but decoding on this one failed its "
                "check: go on where it was begun, or use another output"
            )
        if not job.callbacks.stop.is_set():
            _warn_of_versions(old.versions, _versions(job.executor), job.path, job.callbacks.say)
        return True

    return Work(target, rows, settings, job.source, rows, start, changes)


def fill(job: Job, work: Work) -> Summary:
    """Open the executor, make the file ready, and compute the rows."""
    if not len(work.rows):
        return _summarise(work.target, already=len(job.source))
    executor, settings, callbacks = job.executor, work.settings, job.callbacks
    begun = time.perf_counter()
    self_check = executor.open(
        work.sampled,
        work.among,
        job.backbone,
        settings.decode,
        settings.run,
        stop=callbacks.stop,
        say=callbacks.say,
    )
    opened = time.perf_counter() - begun
    try:
        if not work.start(self_check):
            return Summary(job.path, total=len(job.source), stopped=True)
        summary = _compute(job, work)
    finally:
        executor.close()
    summary.engine = str(executor)
    summary.seconds["start: engine"] = opened
    return summary


def _settings_of(old: Cache, job: Job) -> ExtractSettings:
    """Return the job's settings with what a cache settles; refuse a cache of other numbers or another shard."""
    settings = job.settings
    decode_of_spec(old.spec, where=str(job.path))  # refuses what can no longer be computed
    if settings.run.precision == AUTO:
        settings = replace(settings, run=replace(settings.run, precision=old.spec["precision"]))
    if settings.decode.jpeg_decoder == GPU and _gave_up_the_gpu(old):
        settings = replace(settings, decode=replace(settings.decode, jpeg_decoder=PILLOW))
        job.callbacks.say(f"decoding on the CPU, as {job.path} was begun: decoding on the GPU had failed its check")
    spec = make_spec(job.backbone, settings.decode, dtype=settings.dtype, precision=settings.run.precision)
    check_same_numbers(old.spec, spec, where=str(job.path), hint="use the same settings, or another output")
    check_same_shard(job.path, old.shard, _record(job.source))
    return replace(settings, run=settings.run.of_cache(old.spec["precision"]))


def _update(job: Job, old: Cache, settings: ExtractSettings) -> tuple[Path, dict[str, int]]:
    """Return the file whose rows are to be completed, and what had happened to the archive."""

    def check() -> None:
        if job.callbacks.stop.is_set():
            raise _StopRequested

    spec = make_spec(job.backbone, settings.decode, dtype=settings.dtype, precision=settings.run.precision)
    target, plan, damaged = open_update(
        job.path,
        job.source.items,
        job.source.content_hashes(check=check),
        dtype=settings.dtype,
        # Most rows stay those of the old file: so do the versions that made them.
        attributes=_attributes(spec, old.versions, old.self_check, job.source),
        check_content=settings.check_content,
        allow_removed=settings.allow_removed,
        check=check,
    )
    if damaged:
        job.callbacks.say(f"{damaged} rows of {job.path} were damaged and are computed again")
    return target, {} if plan is None else plan.counts()


def _rows_to_do(path: Path, *, retry_failed: bool) -> NDArray[np.int64]:
    status = open_cache(path).status
    again = status > Status.DONE if retry_failed else np.isin(status, AGAIN)
    if (failed := np.flatnonzero(again)).size:
        writer = CacheWriter(path)
        try:
            writer.reopen(failed)
        finally:
            writer.close()
    return np.flatnonzero(open_cache(path).status == Status.TODO)


def _gave_up_the_gpu(cache: Cache) -> bool:
    """Return whether the GPU was to decode, as the self-check records, and failed it."""
    return "gpu_decode" in cache.self_check and cache.spec["decode"].get("jpeg_decoder", PILLOW) == PILLOW


def _attributes(
    spec: dict[str, Any], versions: Mapping[str, str], self_check: Mapping[str, Any], source: Source
) -> dict[str, str]:
    return file_attributes(
        spec, versions=versions, self_check=self_check, source=source.describe(), shard=_record(source)
    )


def _record(source: Source) -> ShardRecord | None:
    return source.record if isinstance(source, ShardSource) else None


def _compute(job: Job, work: Work) -> Summary:
    """Compute the rows of the work, and write them as they come."""
    target, stop, progress = work.target, job.callbacks.stop, job.callbacks.progress
    status = np.array(open_cache(target).status)
    total, failed = len(status), int((status > Status.DONE).sum())
    already, computed, ready = int((status == Status.DONE).sum()), 0, total - len(work.rows)
    out_of_reach = 0  # those of earlier runs are among the rows to do
    limit = count_limit(work.settings.max_failures, total, "--max-failures")
    seconds: defaultdict[str, float] = defaultdict(float)
    progress(ready, failed, total)
    started = time.perf_counter()
    writer = BackgroundWriter(CacheWriter(target))
    try:
        for batch, outputs in job.executor.embed(job.source, work.rows, stop=stop, seconds=seconds):
            good = _write(batch, outputs, job.source, writer, work.settings.dtype)
            ready, failed, computed = (
                ready + len(batch.rows),
                failed + len(batch.rows) - good,
                computed + good,
            )
            lost = [outcome.reason for outcome in batch.outcomes if outcome.status == Status.OUT_OF_REACH]
            if lost and not out_of_reach:
                job.callbacks.say(f"images are out of reach ({lost[0]}): going on; the next run tries them again")
            out_of_reach += len(lost)
            progress(ready, failed, total)
            if max(failed - out_of_reach, out_of_reach) > limit:
                break
    finally:
        writer.close()
    if failed - out_of_reach > limit:
        raise PipelineError(
            f"{failed - out_of_reach} of {total} images failed, more than --max-failures {work.settings.max_failures}: "
            f"look at what 'pipeline info --failed {target}' lists, fix it, and run again with --retry-failed; what "
            "was computed is kept"
        )
    if out_of_reach > limit:
        raise PipelineError(
            f"{out_of_reach} of {total} images were out of reach, more than --max-failures "
            f"{work.settings.max_failures}: run the same command again when the store answers; what was computed "
            "is kept"
        )
    seconds["write"], seconds["loop"] = writer.seconds, time.perf_counter() - started
    return replace(
        _summarise(target, already),
        computed=computed,
        stopped=stop.is_set() and ready < total,
        seconds=dict(seconds),
        bottleneck=find_bottleneck(seconds, workers=job.executor.workers),
    )


def _write_run(path: Path, summary: Summary, settings: ExtractSettings) -> None:
    """Leave beside the cache how the run that last computed something went."""
    shown = replace(settings, labels=settings.labels and public(settings.labels))
    figures = {name: value for name, value in asdict(summary).items() if name != "path"}  # the file may be moved
    facts = {"settings": asdict(shown), "summary": figures}
    with replacing(run_facts_path(path), CacheError) as part:
        part.write_text(json.dumps(facts, indent=2, ensure_ascii=True) + "\n", encoding="ascii")


def _summarise(path: Path, already: int) -> Summary:
    status = open_cache(path).status
    failed = status[status > Status.DONE]
    names = Counter(map(status_name, failed.tolist()))
    return Summary(
        path,
        total=len(status),
        already=min(already, len(status) - len(failed)),
        failed=len(failed),
        failures=dict(names),
    )


def _write(batch: EmbeddedRows, outputs: Embeddings, source: Source, writer: BackgroundWriter, dtype: str) -> int:
    """Hand a batch to the writer; return how many images came through."""
    with np.errstate(over="ignore"):  # what the file's type cannot hold is not finite, and fails below
        outputs = {name: rows.astype(dtype, copy=False) for name, rows in outputs.items()}
    good = np.array([outcome.status == Status.DONE for outcome in batch.outcomes])
    finite = np.all([np.isfinite(rows[: len(good)]).all(axis=1) for rows in outputs.values()], axis=0)
    positions = np.flatnonzero(good & finite)
    for position in np.flatnonzero(~(good & finite)).tolist():
        outcome, row = batch.outcomes[position], int(batch.rows[position])
        status, reason = outcome.status, outcome.reason
        if good[position]:
            status, reason = Status.NOT_FINITE, f"the network gave a value that is not finite in {dtype}"
        writer.fail(row, source[row].key, status, reason, outcome.content_hash)
    if len(positions):
        hashes = np.frombuffer(b"".join(batch.outcomes[i].content_hash for i in positions), np.uint8).reshape(
            len(positions), -1
        )
        writer.write(batch.rows[positions], {name: rows[positions] for name, rows in outputs.items()}, hashes)
    return len(positions)


def _versions(executor: Executor) -> dict[str, str]:
    found = dict.fromkeys(("python", "engine", "device", *VERSIONS), "not installed")
    return found | versions_of(VERSIONS) | {"engine": executor.name, "device": executor.device}


def _warn_of_versions(then: Mapping[str, str], now: Mapping[str, str], path: Path, say: Say) -> None:
    differing = [f"{name} {then.get(name, 'unknown')}, now {now[name]}" for name in now if then.get(name) != now[name]]
    if differing:
        say(
            f"warning: {path} was made with {'; '.join(differing)}: new rows may differ from old ones "
            "in the last digits"
        )
