"""Decode pools that are large enough to keep an engine busy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.system import processor_count
from pipeline.decoding.image import GPU
from pipeline.decoding.pool import TASKS_PER_WORKER, DecodePool
from pipeline.decoding.worker import TASK_IMAGES
from pipeline.embedding.settings import AUTO

if TYPE_CHECKING:
    from pipeline.backbones import Backbone
    from pipeline.core.items import Reader
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.preprocess import Preprocess
    from pipeline.embedding.settings import RunSettings
    from pipeline.engines import Engine

RING_IMAGES = 64
"""Least number of prepared images in the ring; more do not make the engine faster."""


def pool_for(
    engine: Engine,
    reader: Reader,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    images: int | None = None,
) -> DecodePool:
    """Return a decode pool that keeps an engine busy with so many images, or with any number; see `embed`."""
    return ring_pool(reader, backbone, engine.batch_size, engine.in_flight, decode, settings, images=images)


def worker_count(settings: RunSettings) -> int:
    """Return the number of decode processes."""
    return settings.workers or processor_count()


def ring_pool(
    reader: Reader,
    backbone: Backbone,
    batch_size: int,
    in_flight: int,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    images: int | None = None,
) -> DecodePool:
    """Return a pool with room for the batches of an engine, and for every worker to decode into."""
    workers = worker_count(settings)
    if images is not None:  # a worker without a task would only cost its start
        workers = max(1, min(workers, -(-images // TASK_IMAGES)))
    waiting = max(RING_IMAGES, workers * TASKS_PER_WORKER * TASK_IMAGES)  # every worker has room to decode into
    return open_pool(
        reader,
        decode,
        backbone.preprocess,
        batch_size=batch_size,
        workers=workers,
        slots=in_flight + max(2, -(-waiting // batch_size)),
        limits=settings.limits,
        device=settings.device,
    )


def open_pool(
    reader: Reader, decode: DecodePolicy, preprocess: Preprocess, *, device: str = AUTO, **sizes: Any
) -> DecodePool:
    """Return a decode pool for a policy; it decodes on ``device`` too, if the policy asks for it.

    Parameters
    ----------
    reader, decode, preprocess, **sizes
        See `pipeline.decoding.pool.DecodePool`.
    device : str
        See `pipeline.engines.open_engine`.

    Raises
    ------
    EngineError
        The policy asks for a GPU, and there is none, or the GPU lacks the weights' resampling.
    """
    if decode.jpeg_decoder != GPU:
        return DecodePool(reader, decode, preprocess, **sizes)
    from pipeline.decoding.gpu import GpuDecodePool, decode_device  # imports torch

    return GpuDecodePool(reader, decode, preprocess, device=decode_device(device), **sizes)
