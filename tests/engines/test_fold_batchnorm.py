"""Folding changes no number beyond rounding, and leaves alone what it does not understand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backbones import Backbone, load_backbone
from pipeline.backbones.base import LazyNetwork, assemble
from pipeline.backbones.network import Body
from pipeline.engines.fold_batchnorm import fold_batchnorm
from pipeline.engines.selfcheck import least_cosine, reference

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def rows(backbone: Backbone, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return reference(replace(backbone, lazy=LazyNetwork(lambda: fold_batchnorm(backbone))), images)


@pytest.mark.parametrize(
    ("name", "weights", "before", "after"),
    [
        ("efficientnet_lite0", None, 49, 0),
        ("torchvision/resnet18", "random", 20, 0),
        ("timm/test_vit", "random", 0, 0),
    ],
)
def test_a_folded_network_gives_the_same_rows(
    name: str, weights: str | None, before: int, after: int, crops: list[Image.Image]
) -> None:
    backbone = load_backbone(name, weights)
    images = np.stack([backbone.preprocess.apply(crop) for crop in crops[:4]])
    expected = reference(backbone, images)
    assert norms(backbone.network) == before
    assert norms(fold_batchnorm(backbone)) == after
    for layer, found in rows(backbone, images).items():
        assert least_cosine(found, expected[layer]) >= 0.9999999
        assert np.allclose(found, expected[layer], rtol=1e-3, atol=1e-4)
    assert norms(backbone.network) == before  # a copy was changed, not the backbone


def test_a_layer_that_was_asked_for_stays_what_it_is(crops: list[Image.Image]) -> None:
    """The output of a convolution, before its normalisation, is another thing than after."""
    backbone = load_backbone("torchvision/resnet18", "random", layers=("layer1.0.conv1:avg", "layer1.1.bn2:avg"))
    images = np.stack([backbone.preprocess.apply(crop) for crop in crops[:2]])
    assert norms(fold_batchnorm(backbone)) == 2
    expected = reference(backbone, images)
    for layer, found in rows(backbone, images).items():
        assert least_cosine(found, expected[layer]) >= 0.9999999


class Standardised(nn.Conv2d):
    """A convolution that does something with its weights first."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias)


class Parts(nn.Module):
    """Convolution and normalisation, put together as a test wants."""

    def __init__(self, conv: nn.Conv2d, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = conv, nn.BatchNorm2d(conv.out_channels), how
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.how == "looks at values" and float(y.sum()) > 1e30:
            return x
        if self.how == "looks at types" and isinstance(y, torch.Tensor):
            y = y * 2  # unseen when traced: a proxy is no tensor
        z = self.norm(y)
        if self.how == "used twice":
            z = z + y
        elif self.how == "run twice":
            z = self.norm(self.conv(z))
        return z.mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("conv", "how", "folds"),
    [
        (nn.Conv2d(3, 3, 1), "plain", True),
        (Standardised(3, 3, 1), "plain", False),
        (nn.Conv2d(3, 3, 1), "used twice", False),
        (nn.Conv2d(3, 3, 1), "run twice", False),
        (nn.Conv2d(3, 3, 1), "looks at values", False),
        (nn.Conv2d(3, 3, 1), "looks at types", False),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_folded_safely_is_left_alone(conv: nn.Conv2d, how: str, folds: bool) -> None:
    torch.manual_seed(0)
    preprocess = replace(load_backbone("timm/test_vit", "random").preprocess, crop=(16, 16))
    backbone = assemble(Body("parts", Parts(conv, how), preprocess, "random", "here"))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    assert norms(fold_batchnorm(backbone)) == (0 if folds else 1)
    for layer, found in rows(backbone, images).items():
        assert np.allclose(found, reference(backbone, images)[layer], rtol=1e-4, atol=1e-5)
