"""Backbones: frozen pretrained networks. One file per family; each names its networks and builds one of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline.backbones import finetuned, known
from pipeline.backbones.base import Backbone, assemble
from pipeline.backbones.layers import Layer
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import BackboneError, near_names

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["DEFAULT_BACKBONE", "FINE_TUNED", "PENULTIMATE", "Backbone", "Layer", "list_backbones", "load_backbone"]

DEFAULT_BACKBONE = "efficientnet_lite0"
FINE_TUNED = finetuned.NAME

# What a name begins with -> the module that builds it. A family is imported only when it is needed.
FAMILIES = {
    "efficientnet_lite0": "pipeline.backbones.efficientnet_lite",
    "torchvision": "pipeline.backbones.torchvision",
    "timm": "pipeline.backbones.timm",
}


def load_backbone(name: str | None = None, weights: str | None = None, layers: tuple[str, ...] = ()) -> Backbone:
    """Build a frozen network with its weights.

    Parameters
    ----------
    name : str, optional
        ``efficientnet_lite0``, ``torchvision/NAME`` or ``timm/NAME``; None for a fine-tuned run's own, or the
        default.
    weights : str, optional
        A name that the family knows, a ``.safetensors`` or ``.pth`` file, the run folder of a fine-tuning, or
        ``"random"``.
    layers : tuple of str
        Outputs besides ``penultimate``, ``NODE`` or ``NODE:POOLING``.

    Raises
    ------
    BackboneError
        Unknown name, weights or layer; weights that are not available or do not fit.
    """
    file = finetuned.backbone_file(weights)
    asked = known.question(name or ("" if file else DEFAULT_BACKBONE), str(file) if file else weights, layers)
    spec = known.recall(asked)
    if spec is not None:
        return Backbone.of_spec(spec, lambda: _rebuilt(asked, name, weights, layers))
    backbone = _build(name, weights, layers)
    known.remember(asked, backbone.to_spec())
    return backbone


def _rebuilt(asked: str, name: str | None, weights: str | None, layers: tuple[str, ...]) -> Backbone:
    """Build a backbone whose spec is known, and keep what its spec is now."""
    backbone = _build(name, weights, layers)
    known.remember(asked, backbone.to_spec())
    return backbone


def _build(name: str | None, weights: str | None, layers: tuple[str, ...]) -> Backbone:
    """Build the network; imports torch."""
    file = finetuned.backbone_file(weights)
    if file is None:
        name = name or DEFAULT_BACKBONE
        return assemble(_family(name).build(name, weights), layers)
    facts = finetuned.read_facts(file)
    if name not in (None, facts["backbone"]):
        raise BackboneError(f"{weights} holds a {facts['backbone']}, found --backbone {name}: leave it out")
    body = _family(facts["backbone"]).build(facts["backbone"], str(file))
    return assemble(finetuned.with_preprocess(body, facts, file), layers)


def list_backbones(family: str | None = None) -> list[str]:
    """Return the names of all backbones, or of one family."""
    return [
        name for key in FAMILIES if family in (None, key) for name in importlib.import_module(FAMILIES[key]).names()
    ]


def _near(name: str) -> str:
    """Return the networks of that name in every family, or names like it."""
    known, own = list_backbones(), name.rpartition("/")[2]
    same = [other for other in known if other.rpartition("/")[2] == own]
    return f"did you mean {', '.join(same)}?" if same else near_names(name, known)


def _family(name: str) -> ModuleType:
    family = FAMILIES.get(name.partition("/")[0])
    if family is None:
        raise BackboneError(f"there is no backbone {name!r}: {_near(name)}")
    return importlib.import_module(family)
