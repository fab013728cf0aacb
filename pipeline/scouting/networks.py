"""The networks to compare: how they are named, which of their layers count, and where their caches lie."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backbones import DEFAULT_BACKBONE, load_backbone
from pipeline.backbones.layers import AUTO
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import BackboneError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT = (DEFAULT_BACKBONE,)
"""What is compared where nothing is named: the bundled network, with its layers."""

SETS: dict[str, tuple[str, ...]] = {
    "small": (
        DEFAULT_BACKBONE,
        "torchvision/mobilenet_v3_large",
        "torchvision/regnet_y_800mf",
        "torchvision/resnet18",
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
    ),
    "clip": (
        "timm/vit_base_patch32_clip_224.openai",
        "timm/vit_base_patch16_clip_224.openai",
        "timm/convnext_base.clip_laion2b",
    ),
    "dino": (
        "timm/vit_small_patch16_224.dino",
        "timm/vit_small_patch14_dinov2.lvd142m",
        "timm/convnext_tiny.dinov3_lvd1689m",
    ),
}
"""Lists that one word stands for. Their weights are downloaded, except those of the bundled network."""

CONCAT = "concat"

_ENDINGS = r"\.(safetensors|pth|pt|bin)$"
"""Endings of weights files, which tell nobody anything."""


@dataclass
class Network:
    """A network to compare.

    Attributes
    ----------
    name : str
        For people: as it was named, of a weights file without its folder and ending.
    backbone, weights : str, str or None
        See `pipeline.backbones.load_backbone`.
    layers : tuple of str
        Its layers, ``penultimate`` last.
    path : Path
        Its cache.
    images, seconds : int, float
        What was embedded for it in all, and how long that took.
    dropped : str
        Why it is no longer compared; empty where it is.
    """

    name: str
    backbone: str
    weights: str | None
    path: Path
    layers: tuple[str, ...] = (PENULTIMATE,)
    images: int = 0
    seconds: float = 0.0
    dropped: str = field(default="")

    @property
    def inner(self) -> tuple[str, ...]:
        """The layers besides ``penultimate``."""
        return self.layers[:-1]

    @property
    def images_per_second(self) -> float:
        """The speed on this machine; NaN before it was measured."""
        return self.images / self.seconds if self.images and self.seconds else float("nan")

    def candidates(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return name and layers of each candidate: the layers one by one, and all of them together."""
        found: list[tuple[str, tuple[str, ...]]] = [
            (self.name if layer == PENULTIMATE else f"{self.name} {layer}", (layer,)) for layer in self.layers
        ]
        return [*found, (f"{self.name} {CONCAT}", self.layers)] if self.inner else found


def named_networks(names: Sequence[str], folder: Path) -> list[Network]:
    """Return the networks of a list of ``NAME`` and ``NAME=WEIGHTS``.

    Raises
    ------
    OptionError
        One is named twice.
    """
    found = []
    for text in names:
        name, _, weights = text.partition("=")
        if not name or text.endswith("="):
            raise OptionError(f"--backbones: expected NAME or NAME=WEIGHTS, got {text!r}: give both parts")
        shown = f"{name}={re.sub(_ENDINGS, '', Path(weights).name)}" if weights else name
        found.append(Network(shown, name, weights or None, folder / f"{_file_name(name, weights)}.h5"))
    for network, text in zip(found, names, strict=True):
        if [other.path for other in found].count(network.path) > 1:
            raise OptionError(f"--backbones: expected each network once, got {text} twice: leave one out")
    shown_names = [network.name for network in found]
    for network, text in zip(found, names, strict=True):
        if shown_names.count(network.name) > 1:  # files of one name in different folders
            network.name = text
    return found


def _file_name(name: str, weights: str) -> str:
    """Return a name for a cache: that of the network, with a part that tells weights apart."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return f"{plain}-{hashlib.sha256(weights.encode()).hexdigest()[:8]}" if weights else plain


def resolve_layers(
    network: Network, asked: Sequence[str], note: Callable[[str], None], *, trust_remote_code: bool = False
) -> tuple[str, ...]:
    """Return the layers of a network that count, ``penultimate`` last; builds the network.

    Parameters
    ----------
    network : Network
    asked : sequence of str
        ``NODE`` or ``NODE:POOLING``, of which the network takes those that it has; or ``auto`` alone.
    note : callable
        Called with a line where ``auto`` finds no layers that can be taken.
    trust_remote_code : bool
        See `pipeline.backbones.load_backbone`.

    Raises
    ------
    BackboneError
        The network cannot be built.
    """
    wanted = tuple(asked)
    if wanted != (AUTO,):
        built = load_backbone(network.backbone, network.weights, trust_remote_code=trust_remote_code).network
        nodes = {name for name, _ in built.body.named_modules()}
        wanted = tuple(layer for layer in asked if layer.partition(":")[0] in nodes)
    try:
        found = load_backbone(network.backbone, network.weights, wanted, trust_remote_code=trust_remote_code).layers
    except BackboneError as error:
        if wanted != (AUTO,):
            raise
        note(f"{network.name}: compared by its penultimate layer alone ({error})")
        return (PENULTIMATE,)
    return (*(layer.name for layer in found if layer.name != PENULTIMATE), PENULTIMATE)
