"""Engines, which run a backbone on this machine. One file per engine; `open_engine` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.devices import device_precisions, is_cpu, pick_devices
from pipeline.core.optional import optional_part
from pipeline.engines.base import PRECISIONS, Embeddings, Engine
from pipeline.engines.multi_device import MultiEngine
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.backbones.base import Backbone

__all__ = ["ENGINES", "PRECISIONS", "Embeddings", "Engine", "first_precision", "idle_gpus", "open_engine"]

ENGINES = ("auto", "openvino", "torch")


def open_engine(
    backbone: Backbone,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "float32",
    batch_size: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Engine:
    """Prepare a backbone to run.

    Parameters
    ----------
    backbone : Backbone
    engine : str
        One of `ENGINES`; ``auto`` takes OpenVINO on a CPU, and torch where there is a GPU or OpenVINO cannot convert.
    device : str
        ``auto``, ``cpu``, ``mps``, ``cuda`` (the first GPU), ``cuda:1``, ``cuda:all``, or ``cuda:0,cuda:2``.
    precision : str
        One of `PRECISIONS`.
    batch_size : int
        Images per batch; 0 chooses by engine and device.
    say : callable
        Called with a message when ``auto`` had to fall back.

    Raises
    ------
    EngineError
        The device or the precision is not available here.
    """
    if precision == "mixed" and device == "auto":
        device = "cpu"  # which alone has it, also beside a GPU
    on_cpu = is_cpu(device)
    if engine == "openvino" and not on_cpu and device != "auto":
        raise EngineError(f"OpenVINO runs on the CPU, found --device {device}: leave one of the two out")
    if engine == "openvino" or (engine == "auto" and on_cpu):
        try:
            return _open_openvino(backbone, precision, batch_size)
        except EngineError as error:
            problem = error
        if engine == "openvino" or precision == "mixed":
            raise problem
        say(f"running on PyTorch, which is slower: {problem}")
    if precision == "mixed":
        raise EngineError("--precision mixed is OpenVINO's on a CPU: leave --engine and --device out")
    return _open_torch(backbone, device, precision, batch_size)


def _open_openvino(backbone: Backbone, precision: str, batch_size: int) -> Engine:
    with optional_part("this needs OpenVINO", "pip install openvino, or use --engine torch", EngineError):
        from pipeline.engines.openvino import DEFAULT_BATCH, OpenVinoEngine  # it may not be installed

        images = batch_size or max(DEFAULT_BATCH // backbone.preprocess.view_count, 1)
        return OpenVinoEngine(backbone, precision=precision, batch_size=images)


def _open_torch(backbone: Backbone, device: str, precision: str, batch_size: int) -> Engine:
    # Not at the top: torch takes seconds to import.
    from pipeline.engines.torch import TorchEngine, default_batch

    devices = pick_devices(device)
    height, width = backbone.preprocess.crop
    of_views = (backbone.preprocess.view_count * height, width, 3)
    images = batch_size or min(default_batch(each, of_views) for each in devices)
    replicas = [TorchEngine(backbone, device=each, precision=precision, batch_size=images) for each in devices]
    return replicas[0] if len(replicas) == 1 else MultiEngine(replicas)


def first_precision(engine: str, device: str) -> str:
    """Return the precision in which ``auto`` opens an engine first: each further one opens it again.

    On a GPU it is the fastest, which nearly always passes. On a CPU it is float32, which the others are compared with.
    """
    if engine == "openvino" or is_cpu(device):
        return "float32"
    return device_precisions(pick_devices(device)[0])[0]


def idle_gpus(engine: Engine) -> int:
    """Return how many GPUs of this machine an engine on a GPU leaves idle."""
    if not engine.device.startswith("cuda"):
        return 0
    import torch  # loaded already

    return torch.cuda.device_count() - len(engine.replicas)
