"""Choosing engine, precision and JPEG decoder: each is tried on a sample and compared with the slow reference."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.callbacks import Say, ignore
from pipeline.core.devices import is_cpu
from pipeline.core.items import Status
from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
from pipeline.embedding.pool import ring_pool
from pipeline.embedding.settings import AUTO
from pipeline.engines import first_precision, idle_gpus, open_engine, selfcheck
from pipeline.engines.agreement import LEAST_COSINE, LEAST_GPU_COSINE, Agreement, agreement
from pipeline.errors import EngineError

if TYPE_CHECKING:
    import threading

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.decoding.worker import Outcome
    from pipeline.embedding.settings import RunSettings
    from pipeline.engines import Engine
    from pipeline.sources import Source

CHECK_IMAGES = 16

OpenWith = Callable[[str, str], "Engine"]
"""Opens an engine of a precision and a name."""


def choose_engine(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    rows: NDArray[np.int64] | None = None,
    stop: threading.Event | None = None,
    say: Say = ignore,
) -> tuple[Engine, dict[str, Any]]:
    """Open an engine that satisfies the numbers contract on images of this source.

    The precision asked for, or with ``auto`` each that the device has, fastest first, is compared with float32 on
    `CHECK_IMAGES` images spread over the source; see `_expected`. If even float32 on OpenVINO fails, torch replaces it.

    Parameters
    ----------
    source, backbone, decode, settings
        See `embed`.
    rows : (n,) int64, optional
        Items for the sample: a resumed run does not retry failed items.
    stop : threading.Event, optional
        When set, the check ends early, since nothing will be computed.
    say : callable
        Called with a message when ``auto`` had to fall back.

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
    asked = (source, backbone, decode, settings, among, stop)
    if decode.jpeg_decoder == GPU or not (settings.engine == "openvino" or is_cpu(settings.device)):
        return engine_for(_sample(*asked)[0], backbone, settings, say=say)
    # On a CPU the engine to open first does not depend on the sample: both take some tenths of a second.
    with ThreadPoolExecutor(1, "sample") as thread:
        sampled = thread.submit(_sample, *asked)
        engine = _opened(backbone, settings, True, say)
        try:
            sample, _ = sampled.result()
        except BaseException:
            engine.close()
            raise
    return _checked(engine, sample, backbone, settings, say)


def choose_decode(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    rows: NDArray[np.int64],
    stop: threading.Event | None = None,
    say: Say = ignore,
) -> tuple[DecodePolicy, dict[str, Any]]:
    """Let the GPU decode only if the embeddings stay equal within the tolerance.

    Those of a sample prepared on the GPU are compared with those of the same images prepared by Pillow, both computed
    by eager float32 PyTorch.

    Parameters
    ----------
    source, backbone, decode, settings, rows, stop, say
        See `choose_engine`.

    Returns
    -------
    decode : DecodePolicy
        The policy given, or the same with Pillow if the least cosine is below `LEAST_GPU_COSINE`.
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
    if len(backbone.preprocess.cuts) > 1:
        raise EngineError(
            f"--decode gpu cuts one view of an image, and --views {backbone.preprocess.views} has "
            f"{len(backbone.preprocess.cuts)}: leave one of them out"
        )
    cosine, compared = _cosine_of_gpu_decoding(source, backbone, decode, settings, rows, stop)
    if not compared:
        return decode, {"gpu_decode": {"images": 0}}
    verdict = agreement(cosine, LEAST_GPU_COSINE, fixed=settings.fixed_precision)
    if verdict is Agreement.TOLERATED:
        say(
            f"warning: on these images decoding on the GPU gives cosine {cosine:.5f} to Pillow's, below "
            f"{LEAST_GPU_COSINE}"
        )
    elif verdict is Agreement.REFUSED:
        say(
            f"decoding on the CPU: images decoded on the GPU gave cosine {cosine:.5f} to Pillow's, expected "
            f"{LEAST_GPU_COSINE} or more"
        )
        decode = replace(decode, jpeg_decoder=PILLOW)
    return decode, {"gpu_decode": {"images": compared, "cosine": cosine}}


def _cosine_of_gpu_decoding(
    source: Source,
    backbone: Backbone,
    decode: DecodePolicy,
    settings: RunSettings,
    rows: NDArray[np.int64],
    stop: threading.Event | None,
) -> tuple[float, int]:
    """Return the least cosine between images prepared on the GPU and by Pillow, and how many were compared.

    The cosine is -1 where an image fails in one way and not in the other.
    """
    pillow = replace(decode, jpeg_decoder=PILLOW)
    images, outcomes = _sample(source, backbone, decode, settings, rows, stop)
    expected, pillow_outcomes = _sample(source, backbone, pillow, settings, rows, stop)
    by_gpu = np.array([outcome.encoded > 0 for outcome in outcomes if outcome.status == Status.DONE], dtype=bool)
    if not by_gpu.any() or [outcome.status for outcome in outcomes] != [outcome.status for outcome in pillow_outcomes]:
        return -1.0, int(by_gpu.sum())
    found, wanted = (selfcheck.reference(backbone, each[by_gpu]) for each in (images, expected))
    return round(min(selfcheck.least_cosine(found[name], wanted[name]) for name in wanted), 7), int(by_gpu.sum())


def engine_for(
    sample: NDArray[np.uint8], backbone: Backbone, settings: RunSettings, *, say: Say
) -> tuple[Engine, dict[str, Any]]:
    """Open an engine that satisfies the numbers contract on prepared images (n, H, W, 3); see `choose_engine`."""
    return _checked(_opened(backbone, settings, len(sample) > 0, say), sample, backbone, settings, say)


def _opener(backbone: Backbone, settings: RunSettings, say: Say) -> OpenWith:
    def open_with(precision: str, name: str) -> Engine:
        return open_engine(
            backbone,
            engine=name,
            device=settings.device,
            precision=precision,
            batch_size=settings.batch_size,
            say=say,
        )

    return open_with


def _opened(backbone: Backbone, settings: RunSettings, will_compare: bool, say: Say) -> Engine:
    """Open the engine that is tried first."""
    first = settings.precision
    if first == AUTO:
        first = first_precision(settings.engine, settings.device) if will_compare else "float32"
    engine = _opener(backbone, settings, say)(first, settings.engine)
    if settings.device == AUTO and (idle := idle_gpus(engine)):
        say(f"{idle} more GPUs are idle: --device cuda:all takes all of them")
    return engine


def _checked(
    engine: Engine, sample: NDArray[np.uint8], backbone: Backbone, settings: RunSettings, say: Say
) -> tuple[Engine, dict[str, Any]]:
    """Return the engine, or one in its place that agrees with the reference on the sample."""
    open_with = _opener(backbone, settings, say)
    wanted = engine.precisions if settings.precision == AUTO else (settings.precision,)
    if not len(sample):  # no images to compare: only the requested precision, or float32
        return engine, {"images": 0, "cosine": {}}
    expected, trust = _expected(engine, backbone, sample, open_with)
    cosines: dict[str, float] = {}
    for precision in wanted:
        if precision != engine.precision:
            engine.close()
            engine = open_with(precision, engine.name)
        least = LEAST_COSINE[precision]
        cosine = round(min(trust, *(selfcheck.check(replica, sample, expected) for replica in engine.replicas)), 7)
        cosines[precision] = cosine
        # What is compared with a reference that is off itself says nothing.
        trusted = settings.fixed_precision or trust >= LEAST_COSINE["float32"]
        verdict = agreement(cosine, least, fixed=settings.fixed_precision) if trusted else Agreement.REFUSED
        if verdict is Agreement.TOLERATED:
            say(
                f"warning: on these images {precision} gives cosine {cosine:.5f} to float32, below "
                f"{least}; the cache is in {precision}, so they are computed in it"
            )
        if verdict is not Agreement.REFUSED:
            return engine, {"images": len(sample), "cosine": cosines}
        if not trusted:
            break
    engine.close()
    return _instead(engine.name, wanted, cosines, settings, len(sample), open_with, say)


def _instead(
    name: str,
    wanted: tuple[str, ...],
    cosines: dict[str, float],
    settings: RunSettings,
    images: int,
    open_with: OpenWith,
    say: Say,
) -> tuple[Engine, dict[str, Any]]:
    """Open torch where OpenVINO was refused and not asked for.

    Raises
    ------
    EngineError
        It was asked for, or is torch.
    """
    what = f"cosine {min(cosines.values()):.6f} to eager float32 on {images} images"
    if name == "openvino" and settings.engine == AUTO and "float32" in wanted:
        say(f"running on PyTorch, which is slower: OpenVINO gave {what}")
        return open_with("float32", "torch"), {"images": images, "cosine": cosines}
    raise EngineError(
        f"expected cosine {LEAST_COSINE[wanted[-1]]} or more from {name} in {wanted[-1]}, found {what}: "
        "use --precision float32, or auto, and a new cache"
    )


def _expected(
    engine: Engine, backbone: Backbone, sample: NDArray[np.uint8], open_with: OpenWith
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return the reference's embeddings of the sample, and the least cosine that the reference itself had.

    The reference is eager float32 PyTorch. Beside OpenVINO it is the converted network in float32, which is compared
    with rows that PyTorch gave when it was converted: PyTorch itself would take longer to start than small jobs take.
    """
    if engine.name != "openvino":
        return selfcheck.reference(backbone, sample), 1.0
    own = engine if engine.precision == "float32" else open_with("float32", "openvino")
    try:
        if own.probes is None:
            return selfcheck.reference(backbone, sample), 1.0
        return selfcheck.embeddings(own, sample), selfcheck.check_probes(own, *own.probes)
    finally:
        if own is not engine:
            own.close()


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

    The outcomes include those of images that failed and are not returned.
    """
    rows = sample_rows(among)
    with ring_pool(source.patient_reader(), backbone, len(rows), 0, decode, settings, images=len(rows)) as pool:
        batch = next(pool.batches(rows, source.locator, stop), None)
        if batch is None:
            return np.empty((0, *backbone.preprocess.shape), dtype=np.uint8), []
        good = [i for i, outcome in enumerate(batch.outcomes) if outcome.status == Status.DONE]
        return np.array(batch.images[good]), batch.outcomes
