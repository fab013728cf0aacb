"""Stage 1: run a frozen network once over a source and cache its embeddings.

Reading and decoding (worker processes), the forward pass (the engine's threads) and writing (one thread) go on side by side;
this module plans the work and passes batches along.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable
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
from pipeline.decode_pool import Batch
from pipeline.embed import AUTO, RunSettings, choose_engine, embed
from pipeline.errors import CacheError
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
    dtype : str
        Of the stored embeddings, ``float32`` or ``float16``.
    decode : DecodePolicy
    run : RunSettings
        Engine, device, precision, batch size, workers, limits.
    allow_missing : bool
        See `pipeline.sources.open_source`.
    """

    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    layers: tuple[str, ...] = ()
    dtype: str = "float32"
    decode: DecodePolicy = field(default_factory=DecodePolicy)
    run: RunSettings = field(default_factory=RunSettings)
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
    from pipeline.backbones import load_backbone

    path = Path(output)
    _check_output(path)
    source = open_source(images, allow_missing=settings.allow_missing) if isinstance(images, str) else images
    backbone = load_backbone(settings.backbone, settings.weights, settings.layers)
    with write_lock(path):
        summary = _extract_locked(path, source, backbone, settings, stop, say, progress)
    summary.skipped = dict(Counter(skip.reason for skip in source.skipped))
    summary.skipped_examples = [skip.key for skip in source.skipped[:3]]
    summary.seconds["total"] = time.perf_counter() - started
    return summary


def _extract_locked(
    path: Path,
    source: Source,
    backbone: Backbone,
    settings: ExtractSettings,
    stop: threading.Event,
    say: Say,
    progress: Progress,
) -> Summary:
    items = Items(**{name: getattr(source.items, name) for name in Items.__dataclass_fields__})
    if path.exists():
        cache = open_cache(path)
        if settings.run.precision == AUTO:  # what it was begun in
            settings = replace(settings, run=replace(settings.run, precision=cache.spec["precision"]))
        _check_same(cache, items, make_spec(backbone, settings, settings.run.precision))
        if not (cache.status == Status.TODO).any():
            return _summarise(path, already=len(cache))
    engine, self_check = choose_engine(source, backbone, settings.decode, settings.run, say=say)
    try:
        if not path.exists():
            _create(path, items, source, backbone, engine, make_spec(backbone, settings, engine.precision), self_check)
        summary = _fill(path, source, backbone, engine, settings, stop, progress)
    finally:
        engine.close()
    summary.engine = f"{engine.name}, {engine.device}, {engine.precision}"
    return summary


def make_spec(backbone: Backbone, settings: ExtractSettings, precision: str) -> dict[str, Any]:
    """Return all that produces a cache's numbers, as JSON-like data."""
    decode = asdict(settings.decode)
    decode["formats"] = list(settings.decode.formats)
    return {**backbone.to_spec(), "decode": decode, "dtype": settings.dtype, "precision": precision}


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
    self_check: dict[str, Any],
) -> None:
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)  # of a run that was killed just here; the lock is ours
    try:
        cache_format.create(
            unfinished,
            items,
            widths={layer.name: layer.width for layer in backbone.layers},
            dtype=spec["dtype"],
            attributes={
                "spec": cache_format.canonical_json(spec),
                "fingerprint": fingerprint(spec),
                "versions": cache_format.canonical_json(_versions(engine)),
                "self_check": cache_format.canonical_json(self_check),
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
    already, computed, ready = int((status == Status.DONE).sum()), 0, total - len(todo)
    seconds: Counter[str] = Counter()
    progress(ready, failed, total)
    writer = BackgroundWriter(CacheWriter(path))
    try:
        batches = embed(source, todo, backbone, engine, settings.decode, settings.run, stop=stop, seconds=seconds)
        for batch, outputs in batches:
            good = _write(batch, outputs, source, writer)
            ready, failed, computed = ready + len(batch.rows), failed + len(batch.rows) - good, computed + good
            progress(ready, failed, total)
    finally:
        writer.close()
    seconds["write"] = writer.seconds
    return replace(_summarise(path, already), computed=computed, stopped=stop.is_set(), seconds=dict(seconds))


def _summarise(path: Path, already: int) -> Summary:
    status = open_cache(path).status
    failed = status[status > Status.DONE]
    names = Counter(Status(code).name.lower() for code in failed.tolist())
    return Summary(total=len(status), already=min(already, len(status) - len(failed)), failed=len(failed), failures=dict(names))


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


