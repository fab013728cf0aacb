"""Names, layers and caches of the networks to compare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.backbones.depth import inner_layers
from pipeline.errors import BackboneError, OptionError
from pipeline.scouting.networks import SETS, Network, named_networks, resolve_layers

TINY = "timm/test_efficientnet"


def tiny(layers: tuple[str, ...] = ("penultimate",)) -> Network:
    return Network(TINY, TINY, "random", Path("t.h5"), layers)


def test_a_network_has_a_cache_of_its_own() -> None:
    names = ("efficientnet_lite0", "timm/resnet18.a1_in1k", "timm/resnet18=w/a.pth", "timm/resnet18=w/b.pth")
    networks = named_networks(names, Path("scout"))
    assert [network.name for network in networks] == [
        "efficientnet_lite0", "timm/resnet18.a1_in1k", "timm/resnet18=a", "timm/resnet18=b",
    ]  # fmt: skip
    of_two_folders = ("timm/resnet18=v/a.pth", "timm/resnet18=w/a.pth")
    assert tuple(network.name for network in named_networks(of_two_folders, Path("scout"))) == of_two_folders
    assert (networks[2].backbone, networks[2].weights) == ("timm/resnet18", "w/a.pth")
    assert networks[1].path == Path("scout/timm-resnet18.a1_in1k.h5")
    assert len({network.path for network in networks}) == 4
    for wrong in (("a", "a"), ("a=",), ("=w",), ("timm/a", "timm-a")):
        with pytest.raises(OptionError, match="--backbones"):
            named_networks(wrong, Path("scout"))


def test_every_list_names_networks_that_can_lie_beside_each_other() -> None:
    for names in SETS.values():
        assert len(named_networks(names, Path("scout"))) == len(names) > 1


def test_candidates_are_layers_alone_and_all_together() -> None:
    assert tiny().candidates() == [(TINY, ("penultimate",))]
    layers = ("blocks.1:avg", "penultimate")
    assert tiny(layers).candidates() == [
        (f"{TINY} blocks.1:avg", ("blocks.1:avg",)),
        (TINY, ("penultimate",)),
        (f"{TINY} concat", layers),
    ]


def test_layers_are_taken_where_a_network_has_them() -> None:
    notes: list[str] = []
    assert resolve_layers(tiny(), ("blocks.1", "stages.2:max"), notes.append) == ("blocks.1:avg", "penultimate")
    assert resolve_layers(tiny(), ("layer3",), notes.append) == ("penultimate",)
    automatic = resolve_layers(tiny(), ("auto",), notes.append)
    assert automatic[-1] == "penultimate"
    assert len(automatic) > 2
    assert all(layer.startswith("blocks.") for layer in automatic[:-1])
    assert notes == []
    with pytest.raises(BackboneError, match="pooling"):
        resolve_layers(tiny(), ("blocks.1:middle",), notes.append)


def test_blocks_that_cannot_be_pooled_leave_the_penultimate_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr("pipeline.backbones.network.inner_layers", lambda body: ("blocks.99",))
    monkeypatch.setattr("pipeline.backbones.known.recall", lambda asked: None)  # else found by an earlier test
    assert resolve_layers(tiny(), ("auto",), notes.append) == ("penultimate",)
    assert "penultimate layer alone" in notes[0]


class Numbered(nn.Module):
    """A network as torchvision's ResNets are made: a stem, then numbered stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        for i in range(1, 5):
            setattr(self, f"layer{i}", nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))


class Wrapped(nn.Module):
    """A network inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Numbered()


class Plain(nn.Module):
    """A network without a row of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def test_where_the_blocks_of_a_network_are_found() -> None:
    assert inner_layers(Numbered()) == ("layer2", "layer3", "layer4")
    assert inner_layers(Wrapped()) == ("encoder.layer2", "encoder.layer3", "encoder.layer4")
    assert inner_layers(Plain()) == ()
    assert inner_layers(nn.Identity()) == ()


def test_the_blocks_of_libraries() -> None:
    import timm
    from torchvision import models

    with torch.device("meta"):
        expected = {
            "blocks.5": timm.create_model("vit_tiny_patch16_224"),
            "blocks.3": timm.create_model("tf_efficientnet_lite0"),
            "layer2": timm.create_model("resnet18"),
            "features.6": models.squeezenet1_1(),
            "features.8": models.mobilenet_v3_large(),
            "encoder.layers.encoder_layer_5": models.vit_b_16(),
        }
    assert {first: inner_layers(body)[0] for first, body in expected.items()} == {first: first for first in expected}
