"""What attributes and datasets a cache must have for its readers, whichever program wrote it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.cache import format as fmt
from pipeline.core.items import HASH_BYTES
from pipeline.core.shards import ShardRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.cache.format import Extent

JSON_ATTRIBUTES = ("spec", "versions", "self_check", "source")
_SPEC = {"backbone": str, "weights": dict, "preprocess": dict, "decode": dict, "precision": str}
"""Members of the spec that may be absent from a cache of another program, and what they are where they are there."""
_DTYPES = {"float32": "f4", "float16": "f2"}
_COLUMN_KINDS = "Sbuif"

Expected = tuple[tuple[int | None, ...], str]
"""The shape of a dataset, None for any length, and its type or kind."""


def structural_faults(attributes: Mapping[str, Any], extents: Mapping[str, Extent]) -> list[str]:
    """Return what is wrong about a file that says it is a cache; nothing where its readers can rely on it.

    Parameters
    ----------
    attributes : mapping
        Of the file.
    extents : mapping of str to Extent
        Its datasets.
    """
    try:
        layers, kind = _stated_layers(attributes)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        return [f"its attributes make no sense ({_in_words(error)})"]
    status = extents.get(fmt.STATUS)
    rows = status.shape[:1] if status else ()
    expected = _expected(layers, kind, rows)
    found = [fault for name, what in expected.items() if (fault := _fault(name, extents.get(name), what))]
    return [*found, *_faults_of_others(extents, rows, kind, expected)]


def _stated_layers(attributes: Mapping[str, Any]) -> tuple[list[tuple[str, int]], str]:
    """Return name and width of every layer, and the type of their datasets.

    Raises
    ------
    KeyError, ValueError, TypeError, AttributeError
        The attributes are no JSON, or not of the form that `docs/format.md` describes.
    """
    if not isinstance(attributes["fingerprint"], str):
        raise TypeError("fingerprint is no text")
    parsed = {name: _parsed_object(attributes, name) for name in JSON_ATTRIBUTES}
    if "shard" in attributes:
        _parsed_object(attributes, "shard")
        ShardRecord.from_json(attributes["shard"])
    for name, value in parsed["source"].items():
        if not isinstance(value, str):
            raise TypeError(f"source.{name} is no text")
    spec = parsed["spec"]
    for name, kind in _SPEC.items():
        if not isinstance(spec.get(name, kind()), kind):
            raise TypeError(f"spec.{name} is no {'text' if kind is str else 'object'}")
    layers = [(str(layer["name"]), int(layer["width"])) for layer in spec["layers"]]
    if not layers or min(width for _, width in layers) < 1:
        raise ValueError("spec.layers has no layer, or one without a width")
    if spec["dtype"] not in _DTYPES:
        raise ValueError(f"spec.dtype is {spec['dtype']!r}")
    return layers, _DTYPES[spec["dtype"]]


def _parsed_object(attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(attributes, name))
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise TypeError(f"{name} is no JSON object")
    return found


def _text(attributes: Mapping[str, Any], name: str) -> str:
    if not isinstance(attributes[name], str):
        raise TypeError(f"{name} is no text")
    return str(attributes[name])


def _in_words(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def _expected(layers: list[tuple[str, int]], kind: str, rows: tuple[int, ...]) -> dict[str, Expected]:
    (_, main), *others = layers
    return {
        fmt.EMBEDDINGS: ((*rows, main), kind),
        **{f"{fmt.LAYERS}/{name}": ((*rows, width), kind) for name, width in others},
        fmt.STATUS: (rows or (None,), "u1"),
        fmt.CRC: (rows, "u4"),
        fmt.LEDGER_CRC: (rows, "u4"),
        fmt.CONTENT_HASH: ((*rows, HASH_BYTES), "u1"),
        fmt.STATIC_SHA256: ((32,), "u1"),
        fmt.KEYS: (rows, "S"),
        fmt.LABELS: (rows, "i4"),
        fmt.LABEL_NAMES: ((None,), "S"),
        fmt.SIZES: (rows, "i8"),
        fmt.MTIMES: (rows, "i8"),
    }


def _fault(name: str, extent: Extent | None, expected: Expected) -> str | None:
    shape, kind = expected
    if extent is None:
        return f"/{name} is missing"
    if len(extent.shape) != len(shape) or any(w not in (None, s) for w, s in zip(shape, extent.shape, strict=True)):
        return f"/{name} has shape {extent.shape}, not {shape}"
    if kind not in (extent.dtype.str.lstrip("|<"), extent.dtype.kind):
        return f"/{name} has type {extent.dtype.str}"
    return None


def _faults_of_others(
    extents: Mapping[str, Extent], rows: tuple[int, ...], kind: str, known: Mapping[str, Expected]
) -> Iterator[str]:
    """Yield what is wrong about columns, and about layers that the spec does not name."""
    for name, extent in extents.items():
        if name.startswith(fmt.COLUMNS + "/"):
            if extent.shape != rows:
                yield f"/{name} has shape {extent.shape}, not {rows}"
            elif extent.dtype.kind not in _COLUMN_KINDS or extent.dtype.str.startswith(">"):
                yield f"/{name} has type {extent.dtype.str}"
        elif name.startswith(fmt.LAYERS + "/") and name not in known:
            yield f"/{name} is no layer of the spec"
