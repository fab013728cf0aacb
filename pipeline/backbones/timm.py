"""``timm/NAME``: the networks of the timm library, with the preprocessing of their pretrained configuration."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from pipeline.backbones.hub import quick_to_fail
from pipeline.backbones.network import Body
from pipeline.backbones.weights import (
    RANDOM,
    RANDOM_SEED,
    cannot_download,
    is_file,
    load_strictly,
    read_weights,
)
from pipeline.decoding.preprocess import RESAMPLING, Preprocess
from pipeline.errors import BackboneError, near_names

PREFIX = "timm/"


def names() -> list[str]:
    """Return the names of this family."""
    return [PREFIX + name for name in timm.list_models()]


def build(name: str, weights: str | None) -> Body:
    """Build a timm network.

    Parameters
    ----------
    name : str
        ``timm/ARCHITECTURE`` or ``timm/ARCHITECTURE.TAG``.
    weights : str or None
        A tag of that architecture, a file, ``"random"``; None takes timm's default tag.

    Raises
    ------
    BackboneError
        Unknown name or tag, weights that are not available or do not fit.
    """
    wanted = name.removeprefix(PREFIX)
    architecture, _, tag = wanted.partition(".")
    if architecture not in timm.list_models():
        raise BackboneError(f"there is no backbone {name!r}: {near_names(name, names())}")
    if weights == RANDOM:
        return body_of(architecture, PREFIX + architecture)
    if weights is not None and is_file(weights):
        # The tag still chooses the preprocessing.
        module = timm.create_model(wanted, pretrained=False, num_classes=0)
        load_strictly(module, read_weights(weights), origin=weights, ignore=head_prefixes(module))
        return body_of(
            architecture,
            PREFIX + wanted,  # the tag chose the preprocessing: without it the spec could not be rebuilt
            module=module,
            weights_name="file",
            weights_origin=Path(weights).name,
        )
    tag = weights or tag
    known = timm.list_pretrained(f"{architecture}*")
    known = [full for full in known if full.partition(".")[0] == architecture]
    full_name = f"{architecture}.{tag}" if tag else architecture
    # Without weights timm would continue with random features.
    if not known or (tag and full_name not in known):
        found = f"there is no {full_name!r}, {near_names(full_name, known)}" if known else "timm has none"
        raise BackboneError(f"expected pretrained weights for {name}: {found}: pass --weights with a tag or a file")
    try:
        with quick_to_fail():
            module = timm.create_model(full_name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many kinds of errors
        raise cannot_download(name, error) from None
    config: Any = module.pretrained_cfg
    resolved = f"{architecture}.{config['tag']}"
    origin = str(config.get("hf_hub_id") or config.get("url"))
    return body_of(architecture, PREFIX + architecture, module=module, weights_name=resolved, weights_origin=origin)


def body_of(
    architecture: str,
    name: str,
    *,
    module: nn.Module | None = None,
    weights_name: str = RANDOM,
    weights_origin: str = f"seed {RANDOM_SEED}",
) -> Body:
    """Wrap a timm network that was built without its classifier; without ``module``, one with random weights."""
    if module is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            module = timm.create_model(architecture, pretrained=False, num_classes=0)
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    body = Body(
        name=name,
        module=module,
        preprocess=preprocess_of(name, config),
        weights_name=weights_name,
        weights_origin=weights_origin,
        maps="NHWC" if str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC") else "NCHW",
        prefix_tokens=int(getattr(module, "num_prefix_tokens", 0)),
    )
    cfg: Any = module.pretrained_cfg
    takes_sizes = hasattr(module, "set_input_size") or not cfg.get("fixed_input_size", False)
    return replace(body, at_size=functools.partial(_at_size, body, config) if takes_sizes else None)


def _at_size(body: Body, config: dict[str, Any], size: int) -> Body:
    """Change the input to ``size`` × ``size``; timm interpolates what depends on it."""
    if hasattr(body.module, "set_input_size"):
        body.module.set_input_size(img_size=(size, size))  # type: ignore[operator]
    changed = preprocess_of(body.name, {**config, "input_size": (3, size, size)})
    return replace(body, preprocess=replace(changed, size=size))


def head_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Return how the names of the classifier's tensors begin, as timm's configuration says."""
    config: Any = getattr(module, "pretrained_cfg", {})
    classifier = config.get("classifier", ())
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{head}." for head in heads)


def preprocess_of(name: str, config: dict[str, Any]) -> Preprocess:
    """Return what timm's evaluation transform does, by its description in a configuration.

    Raises
    ------
    BackboneError
        It is not described here; ``name`` is the backbone's.
    """
    channels, height, width = config["input_size"]
    interpolation, mode = str(config["interpolation"]), str(config["crop_mode"])
    if channels != 3:
        raise BackboneError(f"{name} takes images of {channels} channels, not of red, green and blue: choose another")
    if interpolation not in RESAMPLING or mode not in ("center", "squash", "border"):
        raise BackboneError(
            f"{name} wants crop mode {mode!r} with {interpolation!r}, which is not supported: choose another backbone"
        )
    resize = tuple(math.floor(size / config["crop_pct"]) for size in (height, width))
    mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
    plain = Preprocess(
        resize=resize,
        crop=(height, width),
        interpolation=interpolation,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
    if mode == "squash":
        return plain
    if mode == "border":
        red, green, blue = (round(255 * value) for value in mean)
        return replace(plain, fit="contain", fill=(red, green, blue))
    return replace(plain, resize=resize[:1]) if resize[0] == resize[1] else replace(plain, fit="cover")
