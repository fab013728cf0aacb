"""Images → embeddings, without a cache: concurrent decoding and forward passes, with their times."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from pipeline.embedding.pool import pool_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.pool import Batch, DecodePool
    from pipeline.embedding.settings import RunSettings
    from pipeline.engines import Embeddings, Engine
    from pipeline.sources import Source

STOP_WITHIN_S = 2.0
"""Seconds that a stopped run waits for batches in progress: finished rows must be on the disk within 5 s."""
STOP_CHECK_S = 0.2


def embed(
    source: Source,
    rows: NDArray[np.int64],
    backbone: Backbone,
    engine: Engine,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    stop: threading.Event | None = None,
    seconds: defaultdict[str, float] | None = None,
) -> Iterator[tuple[Batch, Embeddings]]:
    """Yield every batch of ``rows`` with its embeddings, in order.

    Parameters
    ----------
    source : Source
    rows : (n,) int64
        Which items.
    backbone : Backbone
    engine : Engine
        Of that backbone.
    decode : DecodePolicy
    settings : RunSettings
    stop : threading.Event, optional
        When set, batches that the engine finishes within `STOP_WITHIN_S` are still yielded, then no more.
    seconds : defaultdict of str to float, optional
        Receives worker time of ``read`` and ``decode``, and the time this loop waited for either side.

    Yields
    ------
    batch : Batch
        Released when the next one is asked for.
    embeddings : dict of str to (B, D) float32
        By layer; positions that failed or are beyond the batch's rows are undefined.
    """
    with pool_for(engine, source.patient_reader(), backbone, decode, settings, images=len(rows)) as pool:
        yield from embed_through(pool, engine, rows, source.locator, stop=stop, seconds=seconds)


def embed_through(
    pool: DecodePool,
    engine: Engine,
    rows: NDArray[np.int64],
    locator: Callable[[int], Any],
    *,
    stop: threading.Event | None = None,
    seconds: defaultdict[str, float] | None = None,
) -> Iterator[tuple[Batch, Embeddings]]:
    """Yield every batch of ``rows`` with its embeddings, through an existing pool; see `embed`."""
    seconds = defaultdict(float) if seconds is None else seconds
    stop = stop or threading.Event()
    for batch, outputs in _forward(pool.batches(rows, locator, stop), engine, stop, seconds):
        seconds["read"] += sum(outcome.read_s for outcome in batch.outcomes)
        seconds["decode"] += sum(outcome.decode_s for outcome in batch.outcomes)
        yield batch, outputs
        batch.release()


def _forward(
    batches: Iterator[Batch], engine: Engine, stop: threading.Event, seconds: defaultdict[str, float]
) -> Iterator[tuple[Batch, Embeddings]]:
    """Yield batches with their embeddings, with the engine's number in progress; end early after a stop."""
    under_way: deque[tuple[Batch, Future[Embeddings]]] = deque()
    give_up = math.inf
    while True:
        waited = time.perf_counter()
        batch = None if stop.is_set() else next(batches, None)
        seconds["wait for decode"] += time.perf_counter() - waited
        waited = time.perf_counter()
        if batch is not None:
            under_way.append((batch, engine.submit(batch.images)))
        if under_way and (batch is None or len(under_way) >= engine.in_flight):
            first, future = under_way.popleft()
            while not future.done():
                wait([future], timeout=STOP_CHECK_S)
                if stop.is_set():
                    give_up = min(give_up, time.monotonic() + STOP_WITHIN_S)
                if time.monotonic() > give_up:
                    return
            outputs = future.result()
            seconds["wait for forward"] += time.perf_counter() - waited
            yield first, outputs
        if batch is None and not under_way:
            return
