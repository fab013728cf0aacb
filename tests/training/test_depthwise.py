"""Gradients of depthwise convolutions in bfloat16: the slow ones in float32, the others as they are."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from pipeline.training.depthwise import FastDepthwiseGradients, gradient_mode


def gradients(
    x: torch.Tensor, weight: torch.Tensor, dout: torch.Tensor, stride: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    dx, dweight = torch.autograd.grad(out, (x, weight), dout)
    return dx, dweight


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_gradients(stride: int, kernel: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 12, 12, generator=generator).bfloat16()
    weight = torch.randn(8, 8 // groups, kernel, kernel, generator=generator).bfloat16()
    dout = torch.randn(2, 8, 12 // stride, 12 // stride, generator=generator).bfloat16()
    plain = gradients(x, weight, dout, stride, groups)
    with FastDepthwiseGradients():
        dx, dweight = gradients(x, weight, dout, stride, groups)
    exact = gradients(x.float(), weight.float(), dout.float(), stride, groups)
    depthwise = groups == 8
    assert dx.dtype == dweight.dtype == torch.bfloat16
    torch.testing.assert_close(dx, exact[0].bfloat16() if depthwise and stride == 2 else plain[0], rtol=0, atol=0)
    torch.testing.assert_close(dweight, exact[1].bfloat16() if depthwise and kernel == 5 else plain[1], rtol=0, atol=0)


def test_only_what_is_wanted() -> None:
    x = torch.randn(2, 8, 12, 12).bfloat16()
    weight = torch.randn(8, 1, 5, 5).bfloat16().requires_grad_()
    with FastDepthwiseGradients():
        (dweight,) = torch.autograd.grad(conv2d(x, weight, padding=2, groups=8).sum(), weight)
    assert dweight.shape == weight.shape


def test_float32_is_left_alone() -> None:
    x, weight = torch.randn(2, 8, 12, 12), torch.randn(8, 1, 5, 5)
    dout = torch.randn(2, 8, 6, 6)
    plain = gradients(x, weight, dout, 2, 8)
    with FastDepthwiseGradients():
        found = gradients(x, weight, dout, 2, 8)
    for here, there in zip(found, plain, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("device", "precision", "there"), [("cpu", "bf16", True), ("cpu", "no", False), ("cuda", "bf16", False)]
)
def test_it_is_there_only_where_it_helps(device: str, precision: str, there: bool) -> None:
    """It costs Python code at every operation, which halves the rate of a GPU."""
    mode = gradient_mode(torch.device(device), precision)
    assert isinstance(mode, FastDepthwiseGradients) == there
