"""Gradients of depthwise convolutions in bfloat16 on a CPU, without oneDNN's slow algorithms.

oneDNN computes most gradients of a depthwise convolution in bfloat16 as fast as the convolution itself, but two of them
8 to 60 times slower than in float32: that of the input where the stride is not 1, and that of the weights where the
kernel is larger than 3 × 3 (docs/results.md). These two are computed in float32 here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_SMALL_KERNEL = 9
"""Weights of a kernel (3 × 3) up to which their gradient is fast in bfloat16."""


def gradient_mode(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return what ``backward()`` runs within: `FastDepthwiseGradients` where it helps.

    It sees every operation, which costs as much again as launching it on a GPU does.

    Parameters
    ----------
    device : torch.device
    precision : str
        As accelerate names it: ``bf16``, ``fp16`` or ``no``.
    """
    slow = device.type == "cpu" and precision == "bf16"
    return FastDepthwiseGradients() if slow else contextlib.nullcontext()


class FastDepthwiseGradients(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Within it, ``backward()`` computes the slow gradients of depthwise convolutions in float32.

    Gradients on other devices, in other types and of other layers are left as they are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = func
        if func is torch.ops.aten.convolution_backward.default:
            dout, x, weight = args[:3]
            if x.device.type == "cpu" and x.dtype == torch.bfloat16 and weight.shape[1] == 1 < x.shape[1]:
                return _gradients(call, dout, x, weight, args[3:-1], args[-1])
        return call(*args, **(kwargs or {}))


def _gradients(
    backward: Callable[..., Any], dout: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...], wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias, where wanted."""
    strides = how[1]
    in_float32 = (max(strides) > 1, weight[0].numel() > _SMALL_KERNEL, False)
    exact: dict[bool, list[Tensor | None]] = {}
    for wide in (False, True):
        mask = [want and slow == wide for want, slow in zip(wanted, in_float32, strict=True)]
        if any(mask):
            tensors = (tensor.float() if wide else tensor for tensor in (dout, x, weight))
            exact[wide] = list(backward(*tensors, *how, mask))
    found = [exact[slow][i] if want else None for i, (want, slow) in enumerate(zip(wanted, in_float32, strict=True))]
    dx, dweight, dbias = (None if gradient is None else gradient.to(x.dtype) for gradient in found)
    return dx, dweight, dbias
