"""Networks as the families build them, and how layers become embeddings.

Axis letters: B batch, C channels, H W pixels or positions, T tokens, D embedding width.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pipeline.backbones.depth import inner_layers
from pipeline.backbones.layers import AUTO, POOLINGS, Layer
from pipeline.core.spec import PENULTIMATE
from pipeline.core.views import layer_of_view, parts_of, views_of
from pipeline.errors import BackboneError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.decoding.preprocess import Preprocess

GEM_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """An ONNX file of any batch size, which an engine may read instead of the module.

    Attributes
    ----------
    file : str
    layout : {"NCHW", "NHWC"}
        Of its images, normalised float.
    outputs : mapping of str to str
        Names of modules, which layers have as their node, and of the outputs that they give.
    feature, pooling : str
        Which output gives the penultimate layer, and how.
    """

    file: str
    layout: Literal["NCHW", "NHWC"]
    outputs: Mapping[str, str]
    feature: str
    pooling: str


@dataclass(frozen=True, slots=True)
class Body:
    """The network that a family builds, without its classifier, and all that belongs to it.

    Attributes
    ----------
    name : str
        Full name, e.g. ``"torchvision/resnet50"``.
    module : nn.Module
        (B, 3, H, W) normalised float → (B, D) penultimate output.
    preprocess : Preprocess
        Of the weights.
    weights_name, weights_origin : str
        See `Weights`.
    maps : {"NCHW", "NHWC"}
        Axis order of the network's four-dimensional feature maps.
    prefix_tokens : int
        How many tokens (class token, registers) precede those of the image patches.
    source : str
        See `Weights`.
    description : str
        What the numbers depend on besides the module's tensors, where the name and the versions of libraries do not
        decide it: an architecture that a folder describes, the bytes of a file. Part of the weights' SHA-256.
    at_size : callable or None
        Changes the module's input to a size in place and returns the body of it; None where the size is fixed.
    onnx : OnnxGraph or None
        The file that the module runs, if it is one.

    Notes
    -----
    A layer is a module inside ``module``. An output that no module gives, such as one token of several, is passed
    through an `nn.Identity` of that name.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    weights_name: str
    weights_origin: str
    maps: Literal["NCHW", "NHWC"] = "NCHW"
    prefix_tokens: int = 0
    source: str = ""
    description: str = ""
    at_size: Callable[[int], Body] | None = None
    onnx: OnnxGraph | None = None


class EmbeddingNetwork(nn.Module):
    """uint8 images in, one embedding per layer out. Engines run, export or compile it.

    Parameters
    ----------
    body : Body
        The network.
    layers : tuple of Layer
        The outputs, in order.

    Notes
    -----
    ``compute_dtype`` is the type of the layers' arithmetic; normalisation is always float32, and so is the output.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.body = body.module
        self.layers = layers
        self.description = body.description
        self.onnx = body.onnx
        self.compute_dtype = torch.float32
        self.maps = body.maps
        self.prefix_tokens = body.prefix_tokens
        self.views = views_of(body.preprocess.views)
        self.height = body.preprocess.crop[0]
        self._taken: dict[str, Any] = {}
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (body.preprocess.mean, body.preprocess.std))
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        modules = dict(self.body.named_modules())
        for node in {layer.node for layer in layers if layer.node}:
            if node not in modules:
                raise BackboneError(f"{body.name} has no layer {node!r}: {near_names(node, [n for n in modules if n])}")
            # A partial of a method, not a closure: a deep copy of the network then stores into its own dictionary.
            modules[node].register_forward_hook(functools.partial(self._take, node))

    def with_layers(self, layers: tuple[Layer, ...]) -> EmbeddingNetwork:
        """Return a network that shares the body, with some of the outputs."""
        found = copy.copy(self)  # also what the hooks of the body fill
        found.layers = layers
        return found

    def _take(self, node: str, module: nn.Module, args: Any, output: Any) -> None:
        self._taken[node] = output

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Embed a batch.

        Parameters
        ----------
        images : (B, H, W, 3) uint8
            As `Preprocess.apply` makes them: H is the sum of the views that are cut from an image.

        Returns
        -------
        tuple of (B, D) float32
            One per layer.
        """
        self._taken.clear()  # left over by a pass that ran out of memory
        names = {parts_of(layer.name)[1] for layer in self.layers}
        views = [view.name for view in self.views if view.name in names]
        if len(self.views) > 1:
            images = self._side_by_side(images, names)
        # ToTensor's and Normalize's own arithmetic; the permuted NHWC bytes are channels_last already.
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        x = ((x - self.mean) / self.std).to(self.compute_dtype)
        penultimate = self.body(x)
        outputs = []
        for layer in self.layers:
            if layer.node and layer.node not in self._taken:
                raise BackboneError(f"layer {layer.node!r} is never run by this network: choose another")
            taken = self._taken[layer.node] if layer.node else penultimate
            pooled = self._pool(taken, layer).to(torch.float32)
            outputs.append(pooled.chunk(len(views))[views.index(parts_of(layer.name)[1])] if len(views) > 1 else pooled)
        self._taken.clear()
        return tuple(outputs)

    def _side_by_side(self, images: Tensor, wanted: set[str]) -> Tensor:
        """Return the views that are wanted (V · B, H, W, 3), one after the other, of prepared images."""
        parts, start = [], 0
        for view in self.views:
            if view.mirrored:
                part = images[:, : self.height].flip(2)
            else:
                part = images[:, start : start + self.height]
                start += self.height
            if view.name in wanted:
                parts.append(part)
        return torch.cat(parts)

    def _pool(self, x: Any, layer: Layer) -> Tensor:
        if not isinstance(x, Tensor):
            raise BackboneError(
                f"layer {layer.node!r} gives a {type(x).__name__}, not a tensor: choose a layer inside it"
            )
        if not layer.node:
            return x.flatten(1)
        return pool(x, layer.pooling, maps=self.maps, prefix_tokens=self.prefix_tokens)


def pool(x: Tensor, pooling: str, *, maps: str = "NCHW", prefix_tokens: int = 0) -> Tensor:
    """Reduce a layer's output to one vector per image.

    Parameters
    ----------
    x : (B, C, H, W), (B, H, W, C), (B, T, C) or (B, C) Tensor
        Feature map, tokens, or a vector already.
    pooling : str
        ``avg``, ``max``; ``gem``: generalised mean with power 3 [1]_; ``cls``: the first token; ``flatten``: all of it.
    maps : {"NCHW", "NHWC"}
        Axis order of a four-dimensional ``x``.
    prefix_tokens : int
        Tokens left out of ``avg``, ``max`` and ``gem``.

    Returns
    -------
    (B, D) Tensor

    Raises
    ------
    BackboneError
        The pooling does not fit the shape.

    References
    ----------
    .. [1] Radenović, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation. TPAMI 2019, eq. 4.
    """
    if pooling == "flatten" or x.ndim == 2:
        return x.flatten(1)
    if pooling == "cls":
        if x.ndim != 3 or prefix_tokens < 1:
            raise BackboneError(
                "pooling 'cls' needs a class token, and this layer has none: choose avg, max, gem or flatten"
            )
        return x[:, 0]
    if x.ndim == 3:
        positions = x[:, prefix_tokens:] if x.shape[1] > prefix_tokens else x
    elif x.ndim == 4:
        positions = (x.flatten(2).transpose(1, 2)) if maps == "NCHW" else x.flatten(1, 2)
    else:
        raise BackboneError(f"a layer of {x.ndim} dimensions cannot be pooled by {pooling!r}: choose flatten")
    if pooling == "avg":
        return positions.mean(1)
    if pooling == "max":
        return positions.amax(1)
    floored = positions.clamp(min=GEM_FLOOR)
    # Products, since OpenVINO 2026.4 computes pow(3) of a fused convolution's output wrongly.
    return (floored * floored * floored).mean(1).pow(1.0 / 3.0)


def build_network(body: Body, layer_names: tuple[str, ...] = ()) -> EmbeddingNetwork:
    """Freeze a body and attach its outputs.

    Parameters
    ----------
    body : Body
        From a family.
    layer_names : tuple of str
        Further layers: ``NODE`` (pooling ``avg``), ``NODE:POOLING``, or ``auto`` for those of
        `pipeline.backbones.depth.inner_layers`.

    Raises
    ------
    BackboneError
        A layer is unknown, its pooling does not fit, or ``auto`` finds none.
    """
    body.module.eval().requires_grad_(False)
    asked = [Layer(PENULTIMATE, "", "network", 0)]
    for name in _without_auto(body, layer_names):
        layer = _parse_layer(name)
        if layer.name != PENULTIMATE and layer.name not in {known.name for known in asked}:
            asked.append(layer)
    asked = [
        replace(layer, name=layer_of_view(layer.name, view))
        for view in views_of(body.preprocess.views)
        for layer in asked
    ]
    network = EmbeddingNetwork(body, tuple(asked)).eval()
    with torch.inference_mode():
        outputs = network(torch.zeros(2, *body.preprocess.shape, dtype=torch.uint8))
    for layer, out in zip(asked, outputs, strict=True):
        if len(out) != 2:
            raise BackboneError(f"layer {layer.node!r} does not give one output per image: choose a layer around it")
    network.layers = tuple(replace(layer, width=out.shape[1]) for layer, out in zip(asked, outputs, strict=True))
    return network


def _without_auto(body: Body, names: tuple[str, ...]) -> list[str]:
    """Return the names of layers, with those of the network's blocks in the place of ``auto``."""
    found = inner_layers(body.module) if AUTO in names else ()
    if AUTO in names and not found:
        raise BackboneError(f"{body.name} has no row of blocks whose ends {AUTO} could take: name the layers")
    return [layer for name in names for layer in (found if name == AUTO else (name,))]


def _parse_layer(name: str) -> Layer:
    if name == PENULTIMATE:
        return Layer(PENULTIMATE, "", "network", 0)
    node, _, pooling = name.partition(":")
    pooling = pooling or "avg"
    if pooling not in POOLINGS:
        raise BackboneError(
            f"expected a pooling of {', '.join(POOLINGS)}, found {pooling!r} in {name!r}: correct --layer"
        )
    return Layer(f"{node}:{pooling}", node, pooling, 0)


def hash_weights(module: nn.Module, description: str = "") -> str:
    """Return the SHA-256 of all tensors of a network: sorted by name, each with its type, shape and bytes.

    ``description`` is hashed after them where it is not empty; see `Body`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(description.encode())
    return digest.hexdigest()
