"""Batch normalisation folded into the convolution before it: the same function with one operation less.

A frozen normalisation is y = γ (x − μ) / √(σ² + ε) + β, an affine map per channel, so its scale goes into the
convolution's weights and the rest into its bias.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.engines.agreement import LEAST_COSINE

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone
    from pipeline.backbones.network import EmbeddingNetwork

CHECK_IMAGES = 2


def fold_batchnorm(backbone: Backbone) -> EmbeddingNetwork:
    """Return a copy of a backbone's network with the batch normalisations folded that can be.

    The graph of operations only serves to find normalisations that are the sole user of a convolution. The modules are
    then replaced in the copy, whose Python code and hooks stay. A network whose code cannot be traced, or whose numbers
    would change, is returned unchanged.

    Parameters
    ----------
    backbone : Backbone
        Float32, on the CPU.

    Returns
    -------
    EmbeddingNetwork
    """
    plain = copy.deepcopy(backbone.network)
    pairs = _pairs(plain.body)
    if not pairs:
        return plain
    changed = copy.deepcopy(plain)
    for conv, norm in pairs:
        _replace_modules(changed.body, conv, norm)
    generator = torch.Generator().manual_seed(0)
    shape = (CHECK_IMAGES, *backbone.preprocess.shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        agree = all(
            _cosine(a, b) >= LEAST_COSINE["float32"] for a, b in zip(plain(images), changed(images), strict=True)
        )
    return changed if agree else plain


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double()).min())


class _Tracer(fx.Tracer):
    """Traces convolutions and normalisations of any library as single operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the normalisations that may be folded into them."""
    modules = dict(module.named_modules())
    if not any(isinstance(m, nn.BatchNorm2d) for m in modules.values()):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = [node for node in _Tracer().trace(module).nodes if node.op == "call_module"]
    except Exception:  # control flow that depends on the images, or another obstacle in the network's code
        return []
    targets = [str(node.target) for node in nodes]
    pairs = []
    for node in nodes:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (modules[name] for name in names)
        if _foldable(conv, norm) and all(targets.count(name) == 1 for name in names):
            pairs.append(names)
    return pairs


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    # Exact types: a subclass may do other things with its weights, such as standardising them.
    plain_conv = type(conv) is nn.Conv2d or type(conv).__name__ == "Conv2dSame"
    plain_norm = type(norm) is nn.BatchNorm2d or type(norm).__name__ == "BatchNormAct2d"
    if not (plain_conv and plain_norm and isinstance(norm, nn.BatchNorm2d)):
        return False
    watched = conv._forward_hooks or norm._forward_hooks  # a requested layer stays as it is
    return norm.running_mean is not None and norm.running_var is not None and not watched


def _replace_modules(body: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    body.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
    # timm's BatchNormAct2d normalises and then applies these two.
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    body.set_submodule(norm_name, nn.Sequential(*rest) if rest else nn.Identity())
