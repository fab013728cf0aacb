"""``torchvision/NAME``: any classification network of torchvision, weights by enum name.

The weights entry brings its own transforms; the classifier's last layer is replaced by the identity, so that the
network's output is the input of that layer.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision.models as models
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms._presets import ImageClassification

from pipeline.backbones.network import Body
from pipeline.backbones.weights import (
    RANDOM,
    RANDOM_SEED,
    cannot_download,
    is_file,
    load_strictly,
    read_weights,
)
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, near_names

PREFIX = "torchvision/"
NUM_CLASSES = 1000
# Training-time side branches are left out, and the input rescaling that the pretrained weights expect is put in.
_INCEPTION_ARGUMENTS = {"aux_logits": False, "transform_input": True, "init_weights": False}
_SIDE_BRANCHES = ("aux1.", "aux2.", "AuxLogits.")


def names() -> list[str]:
    """Return the names of this family."""
    return [PREFIX + name for name in models.list_models(module=models)]


def build(name: str, weights: str | None) -> Body:
    """Build a torchvision classification network.

    Parameters
    ----------
    name : str
        ``torchvision/NAME``.
    weights : str or None
        A name in the network's weights enum, a file, ``"random"``; None takes the enum's default, resolved to its name.

    Raises
    ------
    BackboneError
        Unknown name or weights, weights that are not available or do not fit.
    """
    short = name.removeprefix(PREFIX)
    if name not in names():
        raise BackboneError(f"there is no backbone {name!r}: {near_names(name, names())}")
    entry = _weights_entry(short, weights)
    module, head = _without_head(short)
    if weights == RANDOM:
        weights_name, origin = RANDOM, f"seed {RANDOM_SEED}"
    else:
        if weights is not None and is_file(weights):
            weights_name, origin = "file", Path(weights).name
            state = read_weights(weights)
        else:
            weights_name, origin = entry.name, entry.url
            try:
                state = dict(entry.get_state_dict(progress=False, check_hash=True))
            except Exception as error:  # urllib, http, ssl and hash errors alike
                raise cannot_download(name, error) from None
        # DenseNet's published files still spell their layers as an older version did.
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}
        load_strictly(module, state, origin=origin, ignore=(f"{head}.", *_SIDE_BRANCHES))
    is_transformer = isinstance(module, models.VisionTransformer)
    body = Body(
        name=name,
        module=module,
        preprocess=_preprocess(name, entry),
        weights_name=weights_name,
        weights_origin=origin,
        maps="NHWC" if isinstance(module, models.SwinTransformer) else "NCHW",
        prefix_tokens=1 if is_transformer else 0,
    )
    if isinstance(module, models.MaxVit):  # whose windows divide one size only
        return body
    return replace(body, at_size=functools.partial(_at_size, body))


def _at_size(body: Body, size: int) -> Body:
    """Change the input to ``size`` × ``size``; position embeddings are interpolated by torchvision."""
    module = body.module
    if isinstance(module, models.VisionTransformer):
        if size % module.patch_size:
            raise BackboneError(
                f"--size: {body.name} takes a multiple of its patches of {module.patch_size} pixels, found {size}: "
                f"pass {max(size // module.patch_size, 1) * module.patch_size}"
            )
        state = interpolate_embeddings(size, module.patch_size, module.state_dict())
        module.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"], requires_grad=False)
        module.image_size, module.seq_length = size, (size // module.patch_size) ** 2 + 1
    return replace(body, preprocess=body.preprocess.at_size(size))


def _weights_entry(short: str, weights: str | None) -> Any:
    known = models.get_model_weights(short)
    if weights is not None and is_file(weights):
        # A copy of published weights keeps its name and needs the transforms of its publication.
        published = {member.url.rpartition("/")[2]: member for member in known}
        return published.get(Path(weights).name, known.DEFAULT)
    if weights in (None, "DEFAULT", RANDOM):
        return known.DEFAULT
    if weights not in known.__members__:
        raise BackboneError(
            f"{PREFIX}{short} has no weights {weights!r}: {near_names(weights, [member.name for member in known])}"
        )
    return known[weights]


def _without_head(short: str) -> tuple[nn.Module, str]:
    """Build the network with random weights; return it with its last layer replaced, and that layer's name."""
    arguments = _INCEPTION_ARGUMENTS if short in ("inception_v3", "googlenet") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = models.get_model(short, weights=None, **arguments)
    head = [
        name
        for name, part in module.named_modules()
        if NUM_CLASSES in (getattr(part, "out_features", None), getattr(part, "out_channels", None))
    ][-1]
    module.set_submodule(head, nn.Identity())
    return module, head


def _preprocess(name: str, entry: Any) -> Preprocess:
    transforms = entry.transforms()
    if not isinstance(transforms, ImageClassification):
        raise BackboneError(
            f"{name} has transforms of an unknown kind, {type(transforms).__name__}: choose another backbone"
        )
    return preprocess_of_preset(transforms)


def preprocess_of_preset(transforms: ImageClassification) -> Preprocess:
    """Return what the transforms of a weights entry do."""
    resize, crop = (tuple(transforms.resize_size), tuple(transforms.crop_size))
    mean, std = (tuple(map(float, values)) for values in (transforms.mean, transforms.std))
    return Preprocess(
        resize=resize,
        crop=(crop[0], crop[-1]),
        interpolation=transforms.interpolation.value,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
