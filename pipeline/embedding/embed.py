"""Images → embeddings, without a cache: what extracting, predicting and searching share.

Chooses the engine and the precision, keeps decoding and the forward pass going side by side, and measures where the
time goes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status
from pipeline.core.system import processor_count
from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
from pipeline.decoding.pool import TASKS_PER_WORKER, Batch, DecodePool, Limits
from pipeline.decoding.worker import TASK_IMAGES, Outcome
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.core.items import Reader
    from pipeline.decoding.preprocess import Preprocess
    from pipeline.engines import Embeddings, Engine
    from pipeline.sources import Source

AUTO = "auto"
CHECK_IMAGES = 16
GROSSLY_OFF = 0.99
"""Least cosine at which more rows of a cache are computed in its precision, though these fall short of the contract."""
STOP_WITHIN_S = 2.0
"""How long a stopped run waits for the batches under way: what is done has to be on the disk within 5 s."""
STOP_CHECK_S = 0.2
LEAST_GPU_COSINE = 0.9995
"""Between embeddings of images prepared on the GPU and by Pillow: as far apart as scaled decoding may bring them."""
RING_IMAGES = 64
"""Prepared images waiting for the engine, at least; more do not make it faster."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How to run on this machine; none of it but the precision changes numbers.

    Attributes
    ----------
    engine, device : str
        See `pipeline.engines.open_engine`.
    precision : str
        ``auto`` takes the fastest that passes the self-check.
    batch_size : int
        Images per forward pass; 0 takes what suits the engine.
    workers : int
        Decode processes; 0 takes one per processor.
    limits : Limits
        What an image may take.
    settled : bool
        The precision is that of a cache: images at hand may be told to fall short of the contract, but change nothing.
    """

    engine: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    batch_size: int = 0
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    settled: bool = False

    def of_cache(self, precision: str) -> RunSettings:
        """Return the settings for more rows of a cache, in its precision."""
        return replace(self, precision=precision, settled=True)


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
        By layer; positions that failed or are beyond the batch's rows hold anything.
    """
    with pool_for(engine, source.reader(), backbone, decode, settings) as pool:
        yield from embed_through(pool, engine, rows, source.locator, stop=stop, seconds=seconds)


def pool_for(
    engine: Engine, reader: Reader, backbone: Backbone, decode: DecodePolicy, settings: RunSettings
) -> DecodePool:
    """Return a decode pool whose ring keeps an engine busy; see `embed`."""
    return _pool(reader, backbone, engine.batch_size, engine.in_flight, decode, settings)


def embed_through(
    pool: DecodePool,
    engine: Engine,
    rows: NDArray[np.int64],
    locator: Callable[[int], Any],
    *,
    stop: threading.Event | None = None,
    seconds: defaultdict[str, float] | None = None,
) -> Iterator[tuple[Batch, Embeddings]]:
    """Yield every batch of ``rows`` with its embeddings, through a pool that is there already; see `embed`."""
    seconds = defaultdict(float) if seconds is None else seconds
    stop = stop or threading.Event()
    for batch, outputs in _forward(pool.batches(rows, locator, stop), engine, stop, seconds):
        seconds["read"] += sum(outcome.read_s for outcome in batch.outcomes)
        seconds["decode"] += sum(outcome.decode_s for outcome in batch.outcomes)
        yield batch, outputs
        batch.release()


def choose_engine(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    rows: NDArray[np.int64] | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Engine, dict[str, Any]]:
    """Open an engine that keeps the numbers contract on images of this source.

    The precision asked for, or with ``auto`` each that the device has, fastest first, is compared with eager float32
    PyTorch on `CHECK_IMAGES` images spread over the source. OpenVINO gives way to torch when even its float32 fails.

    Parameters
    ----------
    source, backbone, decode, settings
        See `embed`.
    rows : (n,) int64, optional
        Which items the sample may come from: a resumed run does not try again what failed.
    stop : threading.Event, optional
        When set, the check is cut short: nothing is going to be computed.
    say : callable
        Is told when ``auto`` had to fall back.

    Returns
    -------
    engine : Engine
    self_check : dict
        ``images``: how many were compared; ``cosine``: the least, by precision that was tried.

    Raises
    ------
    EngineError
        No such device or precision here, or the precision asked for fails the check.
    """
    among = np.arange(len(source)) if rows is None else rows
    sample, _ = _sample(source, backbone, decode, settings, among, stop)
    return engine_for(sample, backbone, settings, say=say)


def choose_decode(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    rows: NDArray[np.int64],
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[DecodePolicy, dict[str, Any]]:
    """Let the GPU decode only where that keeps the embeddings what they are.

    Those of a sample prepared on the GPU are compared with those of the same images prepared by Pillow, both computed
    by eager float32 PyTorch.

    Parameters
    ----------
    source, backbone, decode, settings, rows, stop, say
        See `choose_engine`.

    Returns
    -------
    decode : DecodePolicy
        The one given, or the same with Pillow where the least cosine is below `LEAST_GPU_COSINE`.
    self_check : dict
        ``gpu_decode`` where the GPU was to decode: how many ``images`` of the sample it decoded, and the least
        ``cosine`` where it decoded any; -1 where an image failed in one way and not in the other.

    Raises
    ------
    EngineError
        There is no CUDA device.
    """
    if decode.jpeg_decoder != GPU:
        return decode, {}
    from pipeline.engines.selfcheck import least_cosine, reference

    pillow = replace(decode, jpeg_decoder=PILLOW)
    images, outcomes = _sample(source, backbone, decode, settings, rows, stop)
    expected, pillow_outcomes = _sample(source, backbone, pillow, settings, rows, stop)
    by_gpu = np.array([outcome.encoded > 0 for outcome in outcomes if outcome.status == Status.DONE], dtype=bool)
    if not by_gpu.any():
        return decode, {"gpu_decode": {"images": 0}}
    cosine = -1.0
    if [outcome.status for outcome in outcomes] == [outcome.status for outcome in pillow_outcomes]:
        found, wanted = (reference(backbone, each[by_gpu]) for each in (images, expected))
        cosine = round(min(least_cosine(found[name], wanted[name]) for name in wanted), 7)
    if cosine < LEAST_GPU_COSINE and settings.settled and cosine >= GROSSLY_OFF:
        say(
            f"warning: on these images decoding on the GPU gives cosine {cosine:.5f} to Pillow's, below "
            f"{LEAST_GPU_COSINE}"
        )
    elif cosine < LEAST_GPU_COSINE:
        say(
            f"decoding on the CPU: images decoded on the GPU gave cosine {cosine:.5f} to Pillow's, expected "
            f"{LEAST_GPU_COSINE} or more"
        )
        decode = pillow
    return decode, {"gpu_decode": {"images": int(by_gpu.sum()), "cosine": cosine}}


def engine_for(
    sample: NDArray[np.uint8], backbone: Backbone, settings: RunSettings, *, say: Callable[[str], None]
) -> tuple[Engine, dict[str, Any]]:
    """Open an engine that keeps the numbers contract on prepared images, (n, H, W, 3) uint8; see `choose_engine`."""
    from pipeline.engines import idle_gpus, open_engine, precisions
    from pipeline.engines.selfcheck import LEAST_COSINE, check, reference

    def open_with(precision: str, name: str) -> Engine:
        return open_engine(
            backbone,
            engine=name,
            device=settings.device,
            precision=precision,
            batch_size=settings.batch_size,
            say=say,
        )

    expected = reference(backbone, sample) if len(sample) else {}
    cosines: dict[str, float] = {}
    engine = open_with("float32" if settings.precision == AUTO else settings.precision, settings.engine)
    if settings.device == AUTO and (idle := idle_gpus(engine)):
        say(f"{idle} more GPUs are idle: --device cuda:all takes all of them")
    wanted = precisions(engine) if settings.precision == AUTO else (settings.precision,)
    if not len(sample):  # nothing to compare with: only what was asked for, or float32
        return engine, {"images": 0, "cosine": {}}
    for precision in wanted:
        if precision != engine.precision:
            engine.close()
            engine = open_with(precision, engine.name)
        found = min(check(replica, sample, expected) for replica in engine.replicas)
        cosine = cosines[precision] = round(found, 7)
        if settings.settled and GROSSLY_OFF <= cosine < LEAST_COSINE[precision]:
            say(
                f"warning: on these images {precision} gives cosine {cosine:.5f} to float32, below "
                f"{LEAST_COSINE[precision]}; the cache is in {precision}, so they are computed in it"
            )
            return engine, {"images": len(sample), "cosine": cosines}
        if cosine >= LEAST_COSINE[precision]:
            return engine, {"images": len(sample), "cosine": cosines}
    engine.close()
    what = f"cosine {min(cosines.values()):.6f} to eager float32 on {len(sample)} images"
    if engine.name == "openvino" and settings.engine == AUTO and "float32" in wanted:
        say(f"running on PyTorch, which is slower: OpenVINO gave {what}")
        return open_with("float32", "torch"), {"images": len(sample), "cosine": cosines}
    raise EngineError(
        f"expected cosine {LEAST_COSINE[wanted[-1]]} or more from {engine.name} in {wanted[-1]}, found {what}: "
        "use --precision float32, or auto, and a new cache"
    )


def sample_rows(among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return up to `CHECK_IMAGES` of the rows given, evenly spread."""
    return among[np.unique(np.linspace(0, len(among) - 1, CHECK_IMAGES).astype(np.int64))]


def _sample(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    among: NDArray[np.int64],
    stop: threading.Event | None,
) -> tuple[NDArray[np.uint8], list[Outcome]]:
    """Return up to `CHECK_IMAGES` prepared images, (n, H, W, 3) uint8, spread over the rows given.

    The outcomes are also those of the images that failed and are not among them.
    """
    rows = sample_rows(among)
    with _pool(source.reader(), backbone, len(rows), 0, decode, settings) as pool:
        batch = next(pool.batches(rows, source.locator, stop), None)
        if batch is None:
            return np.empty((0, *backbone.preprocess.shape), dtype=np.uint8), []
        good = [i for i, outcome in enumerate(batch.outcomes) if outcome.status == Status.DONE]
        return np.array(batch.images[good]), batch.outcomes


def worker_count(settings: RunSettings) -> int:
    """Return how many decode processes there will be."""
    return settings.workers or processor_count()


def _pool(
    reader: Reader,
    backbone: Backbone,
    batch_size: int,
    in_flight: int,
    decode: DecodePolicy,
    settings: RunSettings,
) -> DecodePool:
    workers = worker_count(settings)
    waiting = max(RING_IMAGES, workers * TASKS_PER_WORKER * TASK_IMAGES)  # no worker is short of room to decode into
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
    """Return a decode pool that keeps the policy: on ``device`` too, where the policy says so.

    Parameters
    ----------
    reader, decode, preprocess, **sizes
        See `pipeline.decoding.pool.DecodePool`.
    device : str
        See `pipeline.engines.open_engine`.

    Raises
    ------
    EngineError
        The policy asks for a GPU, and there is none, or the weights' resampling is not to be had on it.
    """
    if decode.jpeg_decoder != GPU:
        return DecodePool(reader, decode, preprocess, **sizes)
    from pipeline.decoding.gpu import GpuDecodePool, decode_device

    return GpuDecodePool(reader, decode, preprocess, device=decode_device(device), **sizes)


def _forward(
    batches: Iterator[Batch], engine: Engine, stop: threading.Event, seconds: defaultdict[str, float]
) -> Iterator[tuple[Batch, Embeddings]]:
    """Yield batches with their embeddings, as many under way as the engine likes; end early when told to stop."""
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


def backbone_of_spec(spec: Mapping[str, Any], weights: str | None = None) -> Backbone:
    """Build the backbone that a cache's spec describes, and check that its numbers are the same.

    Parameters
    ----------
    spec : mapping
        Of a cache or a head.
    weights : str, optional
        Where its weights are, when they came from a file.

    Raises
    ------
    BackboneError
        Its weights cannot be had.
    FingerprintError
        What was built is not what the spec says; the message names the fields.
    """
    from pipeline.backbones import DEFAULT_BACKBONE, FINE_TUNED, load_backbone
    from pipeline.core.spec import PENULTIMATE, check_same_numbers
    from pipeline.errors import BackboneError

    name = spec["weights"]["name"]
    if weights is None and name in ("file", FINE_TUNED):
        what = "file" if name == "file" else "fine-tuned run"
        raise BackboneError(f"the weights came from the {what} {spec['weights']['origin']}: pass it with --weights")
    if name == "random":
        weights = name
    elif weights is None and spec["backbone"] != DEFAULT_BACKBONE:
        weights = name.partition(".")[2] or name  # timm's names are ARCHITECTURE.TAG
    layers = tuple(layer["name"] for layer in spec["layers"] if layer["name"] != PENULTIMATE)
    backbone = load_backbone(spec["backbone"], weights, layers)
    wanted = {name: spec[name] for name in backbone.to_spec()}
    check_same_numbers(
        wanted,
        backbone.to_spec(),
        where="the spec",
        way_out="pass --weights FILE with the weights it was made with",
    )
    return backbone


def decode_of_spec(spec: Mapping[str, Any]) -> DecodePolicy:
    """Return the decode policy that a spec describes."""
    return DecodePolicy(**{**spec["decode"], "formats": tuple(spec["decode"]["formats"])})


def spec_of_decode(decode: DecodePolicy) -> dict[str, Any]:
    """Return a decode policy as a spec's JSON-like ``decode``.

    A decoder of JPEGs other than Pillow is named; Pillow is not, as in the caches made before there was another.
    """
    spec = {**asdict(decode), "formats": list(decode.formats)}
    if decode.jpeg_decoder == PILLOW:
        del spec["jpeg_decoder"]
    return spec
