"""OpenVINO: several times eager PyTorch's speed on a CPU, the same numbers.

The traced network is converted once per backbone and kept, as OpenVINO's own files, in the user's cache folder.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.ending import unfinished
from pipeline.core.system import DISTRIBUTION, cache_folder, give_memory_back, processor_count, versions_of
from pipeline.engines.base import Embeddings, Engine, Probes
from pipeline.engines.openvino_quiet import ov
from pipeline.engines.openvino_trial import crash_of
from pipeline.errors import EngineError, PipelineError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

# Small batches stay in the processor's caches; measured in docs/performance.md.
DEFAULT_BATCH = 4
NETWORK_FILE, REFERENCE_FILE = "network.xml", "reference.npz"
_LAYOUT = 3
"""Of a folder of converted networks: a change leaves older ones unused."""
_CONVERTED_BY = (DISTRIBUTION, "torch", "torchvision", "timm", "openvino")
"""Packages whose versions a converted network depends on."""
_OTHER_LIBRARIES = ("transformers", "open_clip_torch")
_PRECISIONS = {"float32": "f32", "mixed": "bf16", "bfloat16": "bf16"}


class OpenVinoEngine(Engine):
    """The network compiled for this CPU, one stream per core.

    A stream runs a whole batch on one core. Streams never wait for each other, so decode workers on the same cores take
    only their own processor time from the forward pass.

    Parameters
    ----------
    backbone : Backbone
    precision : str
        ``float32``; where the processor computes in it, ``bfloat16`` and ``mixed`` (`pipeline.engines.openvino_mixed`).
    batch_size : int

    Raises
    ------
    EngineError
        The network cannot be converted, or the processor lacks the precision.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, backbone: Backbone, *, precision: str, batch_size: int) -> None:
        if precision not in supported_precisions():
            raise EngineError(
                f"this processor computes in {' or '.join(supported_precisions())} under OpenVINO, found --precision "
                f"{precision}: choose one of these, or --engine torch"
            )
        self.precision = precision
        self.precisions = tuple(reversed(supported_precisions()))
        self.batch_size = batch_size
        self._names = tuple(layer.name for layer in backbone.layers)
        core = ov.Core()
        try:
            model, self.probes = _network(core, backbone, mixed=precision == "mixed")
            model.reshape([batch_size, *backbone.preprocess.shape])
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
                    "PERFORMANCE_HINT": "THROUGHPUT",
                    "NUM_STREAMS": processor_count(),
                },
            )
        except PipelineError:
            raise
        except Exception as error:  # tracing and conversion raise any error of the network's code
            raise EngineError(
                f"OpenVINO cannot run {backbone.name} ({first_line(error)}): use --engine torch"
            ) from None
        streams = int(compiled.get_property("NUM_STREAMS"))
        self.in_flight = 2 * streams
        self._queue: Any = ov.AsyncInferQueue(compiled, self.in_flight)
        # Not a method: the queue, which Python's garbage collection does not look into, would keep the engine alive.
        self._queue.set_callback(functools.partial(_finish, self._names))

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch on a free stream; see `Engine.submit`."""
        future: Future[Embeddings] = Future()
        # The request reads the images in place; the reference here keeps their memory alive until it ends.
        self._queue.start_async([images], userdata=(future, images), share_inputs=True)
        return future

    def close(self) -> None:
        """Wait for the batches that were started, and give the memory back; the engine cannot be used again."""
        if self._queue is not None:
            self._queue.wait_all()
            self._queue = None
            give_memory_back()


def _finish(names: tuple[str, ...], request: Any, job: tuple[Future[Embeddings], NDArray[np.uint8]]) -> None:
    future, _ = job
    try:
        future.set_result({name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)})
    except BaseException as error:
        future.set_exception(error)


def supported_precisions() -> tuple[str, ...]:
    """Return the precisions that this processor computes in, slowest first."""
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", "mixed", "bfloat16") if "BF16" in capabilities else ("float32",)


def _network(core: ov.Core, backbone: Backbone, *, mixed: bool) -> tuple[ov.Model, Probes]:
    """Return the converted network and its reference, from the cache folder if possible."""
    try:
        return _read(core, _converted(backbone, mixed=mixed), backbone, mixed=mixed)
    except (OSError, RuntimeError, ValueError, KeyError):  # the folder cannot be written, or its files are damaged
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, unfinished(folder):
            return _read(core, _convert(backbone, Path(folder), mixed=mixed), backbone, mixed=mixed)


def _read(core: ov.Core, folder: Path, backbone: Backbone, *, mixed: bool) -> tuple[ov.Model, Probes]:
    model = core.read_model(folder / NETWORK_FILE)
    if mixed:
        return model, None
    with np.load(folder / REFERENCE_FILE) as arrays:
        images, *rows = (arrays[name] for name in sorted(arrays.files, key=lambda name: int(name.removeprefix("arr_"))))
    return model, (images, dict(zip((layer.name for layer in backbone.layers), rows, strict=True)))


def _converted(backbone: Backbone, *, mixed: bool) -> Path:
    """Return the folder of the converted network; convert it first if necessary."""
    found = versions_of(_CONVERTED_BY)
    versions: list[Any] = [found[name] for name in _CONVERTED_BY]
    if ":" in backbone.name:  # of another library; the converted networks of all others stay
        versions += sorted(versions_of(_OTHER_LIBRARIES).items())
    identity = f"{_LAYOUT}|{backbone.to_spec()}|{versions}" + "|mixed" * mixed
    folder = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if (folder / NETWORK_FILE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    with unfinished(part):
        try:
            part.mkdir()
            _convert(backbone, part, mixed=mixed)
            try:
                part.rename(folder)
            except OSError:
                if not (folder / NETWORK_FILE).is_file():  # another process may have written it first
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(backbone: Backbone, folder: Path, *, mixed: bool) -> Path:
    from pipeline.engines.openvino_convert import save_converted, save_reference  # imports torch

    save_converted(backbone, folder / NETWORK_FILE, mixed=mixed)
    named = ("mixed",) if mixed else {*supported_precisions()} - {"mixed"}
    shape = (DEFAULT_BATCH, *backbone.preprocess.shape)
    if crash := crash_of(folder / NETWORK_FILE, shape, (_PRECISIONS[name] for name in named)):
        raise EngineError(f"OpenVINO cannot run {backbone.name} (its process ends by {crash}): use --engine torch")
    if not mixed:
        save_reference(backbone, folder / REFERENCE_FILE)
    return folder
