"""PyTorch: CUDA, MPS and CPU."""

from __future__ import annotations

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from pipeline.engines.base import Embeddings, Engine
from pipeline.errors import EngineError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine(Engine):
    """Eager PyTorch in inference mode, channels last, normalisation on the device.

    A batch that does not fit the device's memory is passed in halves, down to single images, from then on.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision : str
        Of the layers; the normalisation before and the embeddings after are float32.
    batch_size : int

    Raises
    ------
    EngineError
        No such device here; later, from a future: not even one image fits its memory.
    """

    name = "torch"

    def __init__(self, backbone: Backbone, *, device: str, precision: str, batch_size: int) -> None:
        self._device = pick_device(device)
        self.device = describe_device(self._device)
        self.precision = precision
        self.batch_size = batch_size
        self._at_once = batch_size
        self._names = tuple(layer.name for layer in backbone.layers)
        try:
            network = copy.deepcopy(backbone.network).to(self._device)
        except RuntimeError as error:  # out of memory is one
            raise EngineError(
                f"{self.device} cannot hold the network ({first_line(error)}): free its memory, or use --device cpu"
            ) from None
        network.compute_dtype = _DTYPES[precision]
        network.body.to(_DTYPES[precision]).to(memory_format=torch.channels_last)
        self._network = network.eval()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch on the engine's own thread; see `Engine.submit`."""
        return self._thread.submit(self._forward, images)

    def close(self) -> None:
        """Wait for what was started, and stop the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _forward(self, images: NDArray[np.uint8]) -> Embeddings:
        while True:
            try:
                with torch.inference_mode():
                    parts = [
                        [out.cpu() for out in self._network(part.to(self._device))]
                        for part in torch.split(torch.from_numpy(images), self._at_once)
                    ]
                break
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise EngineError(
                        f"{self.device} has not enough memory for a single image: use --device cpu or a smaller network"
                    ) from None
            # Outside the handler, whose traceback would keep the failed pass's tensors alive.
            self._at_once = -(-self._at_once // 2)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return {name: torch.cat(outs).numpy() for name, outs in zip(self._names, zip(*parts, strict=True), strict=True)}


def pick_device(device: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    EngineError
        The name means nothing, or this machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise EngineError(
            f"expected a device such as cpu, cuda, cuda:1 or mps, found {device!r}: mend --device"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(wanted.type, False):
        raise EngineError(f"there is no device {device} on this machine: use --device cpu, or leave --device out")
    return torch.device("cuda:0") if device == "cuda" else wanted


def default_batch(device: torch.device) -> int:
    """Return the images per batch that suit a device."""
    return {"cuda": 256, "mps": 64}.get(device.type, 16)


def describe_device(device: torch.device) -> str:
    """Return the device's name for people."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
