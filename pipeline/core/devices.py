"""PyTorch devices: names, availability, and the precisions in which they are fast."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EngineError

if TYPE_CHECKING:
    import torch

BFLOAT16_SINCE, FLOAT16_SINCE = (8, 0), (7, 0)
"""Compute capabilities whose tensor cores work in these types; older ones lack them or are slower than in float32."""


_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""What drivers of NVIDIA, of WSL and of AMD leave in Linux; without any of them PyTorch finds no GPU."""


def may_have_gpu() -> bool:
    """Return whether PyTorch might find a GPU here, without importing it; where in doubt, yes."""
    if "torch" in sys.modules or platform.system() != "Linux":
        return True
    return any(Path(node).exists() for node in _GPU_NODES)


def has_cuda() -> bool:
    """Return whether there is a CUDA device; PyTorch is imported only where there may be one."""
    if not may_have_gpu():
        return False
    import torch  # takes seconds

    return bool(torch.cuda.is_available())


def is_cpu(device: str) -> bool:
    """Return whether a name stands for the processor; PyTorch is imported only where that is not plain.

    Raises
    ------
    EngineError
        See `pick_devices`.
    """
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return True
    return pick_devices(device)[0].type == "cpu"


def pick_devices(device: str) -> tuple[torch.device, ...]:
    """Return the devices that a name stands for.

    Parameters
    ----------
    device : str
        ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``mps``, ``cuda`` (the first), ``cuda:1``, ``cuda:all``, or
        several separated by commas.

    Raises
    ------
    EngineError
        The name is unknown, this machine has no such device, or the devices cannot be combined.
    """
    import torch  # takes a second: only where a device is asked for

    if device == "auto":
        if torch.cuda.is_available():
            return (torch.device("cuda:0"),)
        return (torch.device("mps" if torch.backends.mps.is_available() else "cpu"),)
    if device == "cuda:all" and torch.cuda.is_available():
        return tuple(torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count()))
    devices = tuple(_device(name.strip()) for name in device.split(","))
    if len(devices) > 1 and ({d.type for d in devices} != {"cuda"} or len(set(devices)) < len(devices)):
        raise EngineError(f"--device: expected distinct GPUs such as cuda:0,cuda:1, got {device!r}: name each GPU once")
    return devices


def _device(name: str) -> torch.device:
    import torch  # takes a second: only where a device is asked for

    try:
        wanted = torch.device("cuda:0" if name in ("cuda", "cuda:all") else name)
    except RuntimeError:
        raise EngineError(
            f"expected a device such as cpu, cuda, cuda:1, cuda:all or mps, found {name!r}: correct --device"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(wanted.type, False):
        raise EngineError(f"there is no device {name} on this machine: use --device cpu, or leave --device out")
    return wanted


def device_precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions in which a device is fast, fastest first."""
    import torch  # takes a second: only where a device is asked for

    if device.type != "cuda":
        return ("float32",)
    capability = torch.cuda.get_device_capability(device)
    fast = (("bfloat16", BFLOAT16_SINCE), ("float16", FLOAT16_SINCE))
    return (*(name for name, since in fast if capability >= since), "float32")


def describe_device(device: torch.device) -> str:
    """Return the name of a device for display."""
    import torch  # takes a second: only where a device is asked for

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
