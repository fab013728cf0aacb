"""How a name finds its family, and how a spec is built again."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pipeline import backbones
from pipeline.backbones import FAMILIES, Family, finetuned, load_backbone, request_of_spec
from pipeline.backbones.network import Body, hash_weights
from pipeline.core.spec import fingerprint
from pipeline.decoding.preprocess import Preprocess
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.backbones import Backbone

HALF = (0.5, 0.5, 0.5)


class Made:
    """A family whose networks depend on what its name stands for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.stands_for = "first"
        self.moves = True

    def names(self) -> list[str]:
        return []

    def build(self, name: str, weights: str | None) -> Body:
        self.asked.append((name, weights))
        torch.manual_seed(len(self.stands_for))
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        return Body(
            name="made:net",
            module=module,
            preprocess=Preprocess((8,), (8, 8), "bilinear", HALF, HALF),
            weights_name="here",
            weights_origin="a test",
            source=f"made:net@{self.stands_for}",
            description=self.stands_for,
        )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    family, module = Made(), ModuleType("made_family")
    module.names, module.build = family.names, family.build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_family", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setitem(backbones.FAMILIES, "made", Family("made_family", lambda rest: [rest, family.stands_for]))
    return family


def test_a_name_that_stands_for_something_else_is_asked_again(made: Made) -> None:
    first = load_backbone("made:net")
    assert load_backbone("made:net").weights == first.weights
    assert made.asked == [("made:net", None)]
    made.stands_for = "second one"
    assert load_backbone("made:net").weights != first.weights
    assert len(made.asked) == 2


def test_a_family_without_an_identity_is_never_remembered(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.FAMILIES, "made", Family("made_family", None))
    for _ in range(2):
        load_backbone("made:net")
    assert len(made.asked) == 2


def test_a_spec_is_built_again_from_where_its_network_came_from(made: Made) -> None:
    spec = load_backbone("made:net").to_spec()
    assert spec["weights"]["source"] == "made:net@first"
    made.asked.clear()
    backbone_of_spec(spec).network.eval()
    assert made.asked[-1] == ("made:net@first", None)


def test_where_a_network_came_from_changes_no_number() -> None:
    weights = {"name": "a", "origin": "b", "sha256": "c"}
    assert fingerprint({"weights": weights}) == fingerprint({"weights": {**weights, "source": "d"}})


def _spec(backbone: str, **weights: str) -> dict[str, Any]:
    return {"backbone": backbone, "weights": {"origin": "x", "sha256": "y", **weights}}


@pytest.mark.parametrize(
    ("spec", "weights", "request_"),
    [
        (_spec("efficientnet_lite0", name="imagenet1k"), None, ("efficientnet_lite0", None)),
        (_spec("timm/resnet18", name="resnet18.a1_in1k"), None, ("timm/resnet18", "a1_in1k")),
        (_spec("torchvision/vgg11", name="IMAGENET1K_V1"), None, ("torchvision/vgg11", "IMAGENET1K_V1")),
        (_spec("torchvision/vgg11", name="random"), None, ("torchvision/vgg11", "random")),
        (_spec("torchvision/vgg11", name="file"), "w.pth", ("torchvision/vgg11", "w.pth")),
        (_spec("local-dir:net", name="path", source="local-dir:/a/net"), None, ("local-dir:/a/net", None)),
        (_spec("local-dir:net", name="path", source="local-dir:/a/net"), "/b/net", ("local-dir:/b/net", None)),
        (_spec("hf-hub:o/n", name="file", source="hf-hub:o/n@1"), "w.pth", ("hf-hub:o/n@1", "w.pth")),
        (_spec("hf-hub:o/n", name="fine-tuned", source="hf-hub:o/n@1"), "RUN", ("hf-hub:o/n", "RUN")),
    ],
)
def test_what_a_spec_asks_for(spec: dict[str, Any], weights: str | None, request_: tuple[str, str | None]) -> None:
    assert request_of_spec(spec, weights) == request_


@pytest.mark.parametrize("kind", ["file", "fine-tuned"])
def test_weights_that_only_the_user_has_are_asked_for(kind: str) -> None:
    with pytest.raises(BackboneError, match="pass it with --weights"):
        request_of_spec(_spec("timm/resnet18", name=kind), None)


def test_the_fine_tuned_are_built_from_the_same_source(made: Made, tmp_path: Path) -> None:
    backbone: Backbone = load_backbone("made:net")
    file = tmp_path / "run" / finetuned.BACKBONE_FILE
    file.parent.mkdir()
    finetuned.save_backbone(file, backbone)
    tuned = load_backbone(None, str(file.parent))
    assert made.asked[-1] == ("made:net@first", str(file))
    assert tuned.weights.name == finetuned.NAME
    assert tuned.weights.source == "made:net@first"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family("no.such.module", None, extra="onnx", packages=("no_such_package",))
    monkeypatch.setitem(backbones.FAMILIES, "made", family)
    with pytest.raises(BackboneError, match=r"needs no_such_package, .*pip install 'embedding-pipeline\[onnx\]'"):
        load_backbone("made:net")
    assert "made" not in {name.partition(":")[0] for name in backbones.list_backbones("made")}


def test_a_description_is_part_of_the_weights_identity() -> None:
    module = nn.Linear(2, 2)
    assert hash_weights(module, "one") != hash_weights(module, "two")
    assert hash_weights(module, "") == hash_weights(module)


@pytest.mark.parametrize("family", [key for key, each in FAMILIES.items() if not backbones._missing(each)])
def test_families_that_read_texts_are_those_with_text_towers(family: str) -> None:
    assert hasattr(importlib.import_module(FAMILIES[family].module), "text_tower") is FAMILIES[family].reads_texts
