"""Texts in the space of a cache's embeddings: the text half of the dual encoder that made it.

Axes: n texts, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.backbones import FINE_TUNED, load_text_tower, may_read_texts, request_of_spec
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import BackboneError, FingerprintError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.backbones.text import TextTower


def may_read_texts_of(spec: Mapping[str, Any], layer: str) -> bool:
    """Return whether a layer of a cache may share its space with texts; only loading the text half tells surely."""
    return layer == PENULTIMATE and spec["weights"]["name"] != FINE_TUNED and may_read_texts(spec["backbone"])


def text_tower_of_spec(
    spec: Mapping[str, Any], layer: str, weights: str | None = None, *, trust_remote_code: bool = False
) -> TextTower:
    """Load the text tower that belongs to a cache.

    Parameters
    ----------
    spec : mapping
        Of the cache.
    layer : str
        The layer that texts are compared with.
    weights : str, optional
        Where its weights are, when they came from a file or a folder that is somewhere else now.
    trust_remote_code : bool
        See `pipeline.backbones.load_backbone`.

    Raises
    ------
    BackboneError
        The network has none, or was fine-tuned since; the layer is not the one that texts share.
    FingerprintError
        The image half beside it is not the one that made the cache.
    """
    if layer != PENULTIMATE:
        raise BackboneError(f"texts share the space of the layer {PENULTIMATE!r}, got {layer!r}: leave --layer out")
    if spec["weights"]["name"] == FINE_TUNED:
        raise BackboneError(
            "fine-tuning changed the images' half of this network, and texts no longer fit it: take a cache of the "
            "network as it was"
        )
    name, source = request_of_spec(spec, weights)
    tower = load_text_tower(name, source, trust_remote_code=trust_remote_code)
    made_by = spec["weights"]["sha256"]
    if tower.image_sha256 != made_by:
        raise FingerprintError(
            f"the text tower of {name}: expected one beside weights.sha256 {made_by[:12]}…, got "
            f"{tower.image_sha256[:12]}…: pass --weights with the weights that made the cache"
        )
    return tower
