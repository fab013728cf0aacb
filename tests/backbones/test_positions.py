from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone, assemble
from pipeline.backbones.network import Body
from pipeline.backbones.positions import FeatureMap
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError

SIDE = 16


class Small(nn.Module):
    """Two convolutions, then what a test makes of their map."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        found = self.end(self, F.relu(self.second(F.relu(self.first(x)))))
        assert isinstance(found, Tensor)
        return found


def backbone_of(end: Any, layers: tuple[str, ...] = ()) -> Backbone:
    preprocess = Preprocess((SIDE,), (SIDE, SIDE), "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return assemble(Body("python/small", Small(end).eval(), preprocess, "random", "random"), layers)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


MEANS = {
    "adaptive": lambda net, x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean": lambda net, x: x.mean((2, 3)),
    "sum": lambda net, x: x.sum((-1, -2)) / 16,
    "in place": lambda net, x: F.adaptive_avg_pool2d(x.mul_(2.0), (1, 1)).flatten(1),
    "last channels": lambda net, x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "tokens": lambda net, x: net.linear(x.flatten(2).transpose(1, 2)).mean(1),
    "linear after the mean": lambda net, x: net.linear(x.mean((2, 3))),
}


@pytest.mark.parametrize("how", [name for name in MEANS if name != "linear after the mean"])
def test_the_map_behind_a_mean_is_found_however_the_network_writes_it(how: str) -> None:
    found = FeatureMap(backbone_of(MEANS[how]), "penultimate")
    output, features = found(images())
    assert found.grid == (4, 4)
    assert features.shape == (3, 4, 4, 8)
    torch.testing.assert_close(features.mean((1, 2)), output, rtol=1e-5, atol=1e-6)
    # The positions are where they were: a change of one corner of the image leaves the far corner as it was.
    changed = images()
    changed[:, :2, :2] = 255 - changed[:, :2, :2]
    after = found(changed)[1]
    assert not torch.allclose(after[:, 0, 0], features[:, 0, 0])
    torch.testing.assert_close(after[:, 3, 3], features[:, 3, 3])


@pytest.mark.parametrize(
    "end",
    [
        MEANS["linear after the mean"],
        lambda net, x: net.norm(x.mean((2, 3))),
        lambda net, x: x.amax((2, 3)),
        lambda net, x: x.mean((2, 3)) + x.amax((2, 3)),
        lambda net, x: net.linear(x.flatten(2).transpose(1, 2))[:, 0],
        lambda net, x: x.mean((2, 3), keepdim=True).relu().flatten(1) * 1.01,
    ],
    ids=["linear", "norm", "max", "mean and max", "one token", "scaled"],
)
def test_what_is_no_mean_is_refused_by_name(end: Any) -> None:
    with pytest.raises(
        BackboneError, match=r"layer 'penultimate' of python/small is not a mean over positions"
    ) as caught:
        FeatureMap(backbone_of(end), "penultimate")
    assert "\n" not in str(caught.value)


def test_a_layer_inside_is_a_mean_by_its_pooling_alone() -> None:
    backbone = backbone_of(MEANS["linear after the mean"], ("first", "first:max"))
    found = FeatureMap(backbone, "first:avg")
    assert found.grid == (8, 8)
    output, features = found(images())
    torch.testing.assert_close(features.mean((1, 2)), output, rtol=1e-5, atol=1e-6)
    with pytest.raises(BackboneError, match="layer 'first:max'"):
        FeatureMap(backbone, "first:max")


def test_what_a_first_pass_computes_once_does_not_matter() -> None:
    def end(net: Small, x: Tensor) -> Tensor:
        if not hasattr(net, "kept"):
            net.kept = torch.ones(1).exp().log()
        return torch.mul(x, torch.as_tensor(net.kept)).mean((2, 3))

    backbone = backbone_of(end)
    del backbone.network.body.kept  # filled when the network was assembled
    assert FeatureMap(backbone, "penultimate").grid == (4, 4)


def test_a_network_that_pools_otherwise_for_other_images_is_refused_then() -> None:
    def end(net: Small, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        return mean if len(x) < 3 else mean * 2

    found = FeatureMap(backbone_of(end), "penultimate")
    found(images(2))
    with pytest.raises(BackboneError, match="of some images and not of others"):
        found(images(3))


@pytest.mark.parametrize("name", ["torchvision/resnet18", "efficientnet_lite0", "torchvision/squeezenet1_1"])
def test_published_networks_that_pool_by_a_mean(name: str) -> None:
    backbone = load_backbone(name, "random")
    found = FeatureMap(backbone, "penultimate")
    height, width, _ = backbone.preprocess.shape
    some = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    output, features = found(some)
    assert features.shape[1] > 5
    torch.testing.assert_close(features.mean((1, 2)), output, rtol=1e-4, atol=1e-5 * float(output.abs().max()))


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/convnext_atto", "timm/test_vit"])
def test_published_networks_with_more_after_the_mean_are_refused(name: str) -> None:
    with pytest.raises(BackboneError, match="is not a mean over positions"):
        FeatureMap(load_backbone(name, "random"), "penultimate")


def test_tokens_of_a_transformer_lie_on_the_grid_of_its_patches() -> None:
    backbone = load_backbone("timm/test_vit", "random", ("blocks.3",))
    found = FeatureMap(backbone, "blocks.3:avg")
    side = backbone.preprocess.crop[0] // 16
    assert found.grid == (side, side)
