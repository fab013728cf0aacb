"""OpenVINO: several times eager PyTorch's speed on a CPU, the same numbers.

The traced network is converted once per backbone and kept, as OpenVINO's own files, in the user's cache folder.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
import shutil
import tempfile
import warnings
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.core.ending import unfinished
from pipeline.core.system import cache_folder, processor_count
from pipeline.engines.base import Embeddings, Engine
from pipeline.engines.openvino_mixed import keep_float32, prepare
from pipeline.engines.openvino_quiet import ov
from pipeline.errors import EngineError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

# Small batches stay in the processor's caches; measured in docs/performance.md.
DEFAULT_BATCH = 4
NETWORK_FILE = "network.xml"
TRACE_BATCH = 2  # a batch of one would be baked into the graph of some networks
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
        self.batch_size = batch_size
        self._names = tuple(layer.name for layer in backbone.layers)
        core = ov.Core()
        try:
            model = _network(core, backbone, mixed=precision == "mixed")
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
        except Exception as error:  # tracing and conversion raise any error of the network's code
            raise EngineError(
                f"OpenVINO cannot run {backbone.name} ({first_line(error)}): use --engine torch"
            ) from None
        streams = int(compiled.get_property("NUM_STREAMS"))
        self.in_flight = 2 * streams
        self._queue = ov.AsyncInferQueue(compiled, self.in_flight)
        self._queue.set_callback(self._finish)

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch on a free stream; see `Engine.submit`."""
        future: Future[Embeddings] = Future()
        # The request reads the images in place; the reference here keeps their memory alive until it ends.
        self._queue.start_async([images], userdata=(future, images), share_inputs=True)
        return future

    def close(self) -> None:
        """Wait for the batches that were started."""
        self._queue.wait_all()

    def _finish(self, request: Any, job: tuple[Future[Embeddings], NDArray[np.uint8]]) -> None:
        future, _ = job
        try:
            future.set_result({name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(self._names)})
        except BaseException as error:
            future.set_exception(error)


def supported_precisions() -> tuple[str, ...]:
    """Return the precisions that this processor computes in, slowest first."""
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", "mixed", "bfloat16") if "BF16" in capabilities else ("float32",)


def _network(core: ov.Core, backbone: Backbone, *, mixed: bool) -> ov.Model:
    """Return the converted network, from the cache folder if possible."""
    try:
        return core.read_model(_converted(backbone, mixed=mixed))
    except (OSError, RuntimeError):  # the folder cannot be written, or what is kept there is damaged
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, unfinished(folder):
            return core.read_model(_save(backbone, Path(folder), mixed=mixed))


def _converted(backbone: Backbone, *, mixed: bool) -> Path:
    """Return the file of the converted network; convert it first if necessary."""
    versions = [metadata.version(name) for name in ("embedding-pipeline", "torch", "torchvision", "timm", "openvino")]
    identity = f"{backbone.to_spec()}|{versions}" + "|mixed" * mixed
    folder = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]
    file = folder / NETWORK_FILE
    if file.is_file():
        return file
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    with unfinished(part):
        try:
            part.mkdir()
            _save(backbone, part, mixed=mixed)
            try:
                part.rename(folder)
            except OSError:
                if not file.is_file():  # another process may have written it first
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return file


def _save(backbone: Backbone, folder: Path, *, mixed: bool) -> Path:
    """Convert, and write OpenVINO's own files into a folder; return the one to read."""
    file = folder / NETWORK_FILE
    model = _convert(backbone)
    kept = prepare(model) if mixed else set()
    ov.save_model(model, file, compress_to_fp16=False)
    if kept:
        keep_float32(file, kept)
    return file


def _convert(backbone: Backbone) -> ov.Model:
    example = torch.zeros(TRACE_BATCH, *backbone.preprocess.shape, dtype=torch.uint8)
    network = copy.deepcopy(backbone.network)
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape that Python code looks at
        traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=example)
