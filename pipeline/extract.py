"""Stage 1: run a frozen network once over a source and cache its embeddings.

Reading and decoding (worker processes), the forward pass (the engine's threads) and writing (one thread) go on side by side;
this module plans the work and passes batches along.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import Cache, CacheWriter, Items, check_same_numbers, fingerprint, open_cache, write_lock
from pipeline.cache import format as cache_format
from pipeline.cache.background import BackgroundWriter
from pipeline.decode import DecodePolicy, Status
from pipeline.decode_pool import Batch, DecodePool, Limits
from pipeline.errors import CacheError, PipelineError
from pipeline.sources import Source, open_source

if TYPE_CHECKING:
    from pipeline.backbones import Backbone
    from pipeline.engines import Embeddings, Engine

DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """What `extract` may be told.

    Attributes
    ----------
    backbone, weights : str, str or None
        See `pipeline.backbones.load_backbone`.
    layers : tuple of str
        Outputs besides ``penultimate``.
    device, precision : str
        See `pipeline.engines.open_engine`.
    dtype : str
        Of the stored embeddings, ``float32`` or ``float16``.
    batch_size : int
        Images per forward pass.
    workers : int
        Decode processes; 0 takes one per processor.
    decode : DecodePolicy
    limits : Limits
    allow_missing : bool
        See `pipeline.sources.open_source`.
    """

    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    layers: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "float32"
    dtype: str = "float32"
    batch_size: int = 32
    workers: int = 0
    decode: DecodePolicy = field(default_factory=DecodePolicy)
    limits: Limits = field(default_factory=Limits)
    allow_missing: bool = False


@dataclass(slots=True)
class Summary:
    """How a run went.

    Attributes
    ----------
    total, already, computed, failed : int
        Rows of the cache; done before; done now; failed, whenever.
    failures : mapping of str to int
        How many rows failed, by status.
    skipped : mapping of str to int
        Files that are no items, by reason; ``skipped_examples`` names some.
    stopped : bool
        The run was asked to stop before the end.
    seconds : mapping of str to float
        Wall time of the whole and of the forward pass, worker time of reading and decoding, time the loop waited.
    """

    total: int = 0
    already: int = 0
    computed: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_examples: list[str] = field(default_factory=list)
    stopped: bool = False
    engine: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


Say = Callable[[str], None]
Progress = Callable[[int, int, int], None]
"""Called with (rows ready, rows failed, rows in all)."""


def extract(
    images: str | Source,
    output: str | os.PathLike[str],
    settings: ExtractSettings = ExtractSettings(),  # noqa: B008 - frozen
    *,
    stop: threading.Event | None = None,
    say: Say = lambda text: None,
    progress: Progress = lambda ready, failed, total: None,
) -> Summary:
    """Embed every image of a source into a cache; go on where an earlier run stopped.

    Parameters
    ----------
    images : str or Source
        What `pipeline.sources.open_source` takes, or a source.
    output : path
        The cache file; made, or completed when it holds the same numbers of the same images.
    settings : ExtractSettings
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
    stop = stop or threading.Event()
    path = Path(output)
    _check_output(path)
    source = open_source(images, allow_missing=settings.allow_missing) if isinstance(images, str) else images
    backbone, engine = prepare(settings)
    try:
        with write_lock(path):
            items = Items(**{name: getattr(source.items, name) for name in Items.__dataclass_fields__})
            spec = make_spec(backbone, settings)
            if path.exists():
                _check_same(open_cache(path), items, spec)
            else:
                _create(path, items, source, backbone, engine, spec, settings)
            summary = _fill(path, source, backbone, engine, settings, stop, progress)
    finally:
        engine.close()
    summary.skipped = dict(Counter(skip.reason for skip in source.skipped))
    summary.skipped_examples = [skip.key for skip in source.skipped[:3]]
    summary.engine = f"{engine.name}, {engine.device}, {engine.precision}"
    summary.seconds["total"] = time.perf_counter() - started
    return summary


def prepare(settings: ExtractSettings) -> tuple[Backbone, Engine]:
    """Build the backbone and the engine that runs it."""
    from pipeline.backbones import load_backbone
    from pipeline.engines import open_engine

    backbone = load_backbone(settings.backbone, settings.weights, settings.layers)
    engine = open_engine(
        backbone, device=settings.device, precision=settings.precision, batch_size=settings.batch_size
    )
    return backbone, engine


def make_spec(backbone: Backbone, settings: ExtractSettings) -> dict[str, Any]:
    """Return all that produces a cache's numbers, as JSON-like data."""
    decode = asdict(settings.decode)
    decode["formats"] = list(settings.decode.formats)
    return {**backbone.to_spec(), "decode": decode, "dtype": settings.dtype, "precision": settings.precision}


def _check_output(path: Path) -> None:
    """Find out before the work begins whether the cache can be written."""
    if path.is_dir():
        raise CacheError(f"expected a file name for the cache, found the folder {path}: name a file in it, such as {path}/cache.h5")
    if not path.parent.is_dir():
        raise CacheError(f"expected the folder {path.parent} for the cache, found none: make it first")
    if path.exists():
        open_cache(path)
    elif not os.access(path.parent, os.W_OK):
        raise CacheError(f"cannot write into {path.parent}: choose another output")


def _check_same(cache: Cache, items: Items, spec: dict[str, Any]) -> None:
    check_same_numbers(cache.spec, spec, where=str(cache.path), way_out="use the same settings, or another output")
    if not np.array_equal(cache.items.keys, items.keys):
        raise CacheError(f"the images of {cache.path} are not those of the source: use another output")


def _create(
    path: Path,
    items: Items,
    source: Source,
    backbone: Backbone,
    engine: Engine,
    spec: dict[str, Any],
    settings: ExtractSettings,
) -> None:
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)  # of a run that was killed just here; the lock is ours
    try:
        cache_format.create(
            unfinished,
            items,
            widths={layer.name: layer.width for layer in backbone.layers},
            dtype=settings.dtype,
            attributes={
                "spec": cache_format.canonical_json(spec),
                "fingerprint": fingerprint(spec),
                "versions": cache_format.canonical_json(_versions(engine)),
                "self_check": "{}",
                "source": cache_format.canonical_json(source.describe()),
            },
        )
        unfinished.rename(path)
        _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _fill(
    path: Path,
    source: Source,
    backbone: Backbone,
    engine: Engine,
    settings: ExtractSettings,
    stop: threading.Event,
    progress: Progress,
) -> Summary:
    """Compute every row that is to do."""
    status = np.array(open_cache(path).status)
    todo = np.flatnonzero(status == Status.TODO).astype(np.int64)
    total, failed = len(status), int((status > Status.DONE).sum())
    summary = Summary(total=total, already=int((status == Status.DONE).sum()))
    seconds: Counter[str] = Counter()
    progress(total - len(todo), failed, total)
    if len(todo):
        writer = BackgroundWriter(CacheWriter(path))
        try:
            with DecodePool(
                source.reader(),
                settings.decode,
                backbone.preprocess,
                batch_size=settings.batch_size,
                workers=settings.workers or os.cpu_count() or 1,
                slots=engine.in_flight + 2,
                limits=settings.limits,
            ) as pool:
                ready = total - len(todo)
                for batch, outputs in _forward(pool.batches(todo, source.locator), engine, stop, seconds):
                    good = _write(batch, outputs, source, writer)
                    seconds["read"] += sum(outcome.read_s for outcome in batch.outcomes)
                    seconds["decode"] += sum(outcome.decode_s for outcome in batch.outcomes)
                    ready, failed = ready + len(batch.rows), failed + len(batch.rows) - good
                    summary.computed += good
                    progress(ready, failed, total)
        finally:
            writer.close()
        seconds["write"] = writer.seconds
    status = np.array(open_cache(path).status)
    names = Counter(Status(code).name.lower() for code in status[status > Status.DONE].tolist())
    return replace(summary, failed=int((status > Status.DONE).sum()), failures=dict(names), stopped=stop.is_set(), seconds=dict(seconds))


def _forward(
    batches: Iterable[Batch], engine: Engine, stop: threading.Event, seconds: Counter[str]
) -> Iterable[tuple[Batch, Embeddings]]:
    """Yield batches with their embeddings, keeping as many under way as the engine likes; end early when told to stop."""
    under_way: deque[tuple[Batch, Future[Embeddings]]] = deque()
    source = iter(batches)
    while True:
        waited = time.perf_counter()
        batch = None if stop.is_set() else next(source, None)
        seconds["wait for decode"] += time.perf_counter() - waited
        if batch is not None:
            under_way.append((batch, engine.submit(batch.images)))
        if under_way and (batch is None or len(under_way) >= engine.in_flight):
            first, future = under_way.popleft()
            waited = time.perf_counter()
            outputs = future.result()
            seconds["wait for forward"] += time.perf_counter() - waited
            yield first, outputs
        if batch is None and not under_way:
            return


def _write(batch: Batch, outputs: Embeddings, source: Source, writer: BackgroundWriter) -> int:
    """Hand a batch to the writer; return how many images came through."""
    good = np.array([outcome.status == Status.DONE for outcome in batch.outcomes])
    finite = np.all([np.isfinite(rows[: len(good)]).all(axis=1) for rows in outputs.values()], axis=0)
    positions = np.flatnonzero(good & finite)
    for position in np.flatnonzero(~(good & finite)).tolist():
        outcome, row = batch.outcomes[position], int(batch.rows[position])
        status, reason = outcome.status, outcome.reason
        if good[position]:
            status, reason = Status.NOT_FINITE, "the network gave a value that is not finite"
        writer.fail(row, source[row].key, status, reason, outcome.content_hash)
    if len(positions):
        hashes = np.frombuffer(b"".join(batch.outcomes[i].content_hash for i in positions), np.uint8).reshape(len(positions), -1)
        writer.write(batch.rows[positions], {name: rows[positions] for name, rows in outputs.items()}, hashes)
    batch.release()
    return len(positions)


def _versions(engine: Engine) -> dict[str, str]:
    names = ("embedding-pipeline", "torch", "torchvision", "timm", "numpy", "h5py", "pillow")
    found = {"python": platform.python_version(), "engine": engine.name, "device": engine.device}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


