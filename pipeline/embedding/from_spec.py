"""Specs of caches and heads, and the backbone and decoding that they describe."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pipeline.backbones import load_backbone, request_of_spec
from pipeline.core.spec import PENULTIMATE, check_same_numbers
from pipeline.core.views import of_first_view, views_of_spec
from pipeline.decoding.image import PILLOW, DecodePolicy
from pipeline.errors import FingerprintError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.backbones import Backbone

FULL_SIZE = "full"
"""The one value of ``decode.jpeg_scale`` that can be computed."""


def make_spec(backbone: Backbone, decode: DecodePolicy, *, dtype: str, precision: str) -> dict[str, Any]:
    """Return all that produces a cache's numbers, as JSON-like data."""
    return {**backbone.to_spec(), "decode": spec_of_decode(decode), "dtype": dtype, "precision": precision}


def backbone_of_spec(
    spec: Mapping[str, Any], weights: str | None = None, *, trust_remote_code: bool = False
) -> Backbone:
    """Build the backbone that a cache's spec describes, and check that its numbers are the same.

    Parameters
    ----------
    spec : mapping
        Of a cache or a head.
    weights : str, optional
        Where its weights are, when they came from a file.
    trust_remote_code : bool
        See `pipeline.backbones.load_backbone`.

    Raises
    ------
    BackboneError
        Its weights are not available.
    FingerprintError
        The result does not match the spec; the message names the fields.
    """
    name, weights = request_of_spec(spec, weights)
    layers = tuple(name for name in of_first_view(layer["name"] for layer in spec["layers"]) if name != PENULTIMATE)
    size, views = int(spec["preprocess"].get("size", 0)), views_of_spec(spec)
    backbone = load_backbone(name, weights, layers, size, views, trust_remote_code=trust_remote_code)
    wanted = {name: spec[name] for name in backbone.to_spec()}
    check_same_numbers(
        wanted,
        backbone.to_spec(),
        where="the spec",
        hint="pass --weights FILE with the weights it was made with",
    )
    return backbone


def decode_of_spec(spec: Mapping[str, Any], *, where: str = "the spec") -> DecodePolicy:
    """Return the decode policy that a spec describes.

    Raises
    ------
    FingerprintError
        JPEGs were decoded at a reduced size, which version 0.1.0 could do, or images in a way that this version does
        not know.
    """
    fields = {**spec["decode"], "formats": tuple(spec["decode"]["formats"])}
    if (scale := fields.pop("jpeg_scale", FULL_SIZE)) != FULL_SIZE:
        raise FingerprintError(
            f"{where}: expected JPEGs decoded at {FULL_SIZE} size, got decode.jpeg_scale {scale}, which was removed "
            "after 0.1.0: extract again into another output; what is in the cache stays readable"
        )
    known = {field.name for field in dataclasses.fields(DecodePolicy)}
    policy = DecodePolicy(**{name: value for name, value in fields.items() if name in known})
    check_same_numbers(
        {"decode": {"jpeg_scale": FULL_SIZE, **spec["decode"]}},
        {"decode": spec_of_decode(policy)},
        where=where,
        hint="use the version of this program that made it",
    )
    return policy


def spec_of_decode(decode: DecodePolicy) -> dict[str, Any]:
    """Return a decode policy as a spec's JSON-like ``decode``.

    A JPEG decoder other than Pillow is named. Pillow is not, and the full size is, so that older caches keep their
    fingerprint.
    """
    spec = {**dataclasses.asdict(decode), "formats": list(decode.formats), "jpeg_scale": FULL_SIZE}
    if decode.jpeg_decoder == PILLOW:
        del spec["jpeg_decoder"]
    return spec
