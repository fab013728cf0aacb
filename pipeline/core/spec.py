"""What produced a cache, and the fingerprint of all fields that change numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import CacheError, FingerprintError

FORMAT = "embedding-pipeline"
"""The attribute ``format`` of a cache file."""
PENULTIMATE = "penultimate"
"""The layer that every backbone has: its output before the classifier."""
# Where weights came from and what an engine is called do not change a number; the tensors' hash and the precision do.
DESCRIPTIVE = frozenset({"weights.name", "weights.origin", "weights.source"})
_ORDER = ".order"
"""What the names of a list's elements, in their order, are called among the fields."""
_ELEMENT = re.compile(r"(?P<list>[^\[]+)\[(?P<name>.*)\]\.\w+$", re.DOTALL)
_MOST_NAMED = 5
"""Differing fields that a message names."""


class StatedFacts(dict[str, Any]):
    """An object of a file's JSON, of which asking for a member that is missing is an error that names it.

    Other programs write caches too, and may leave out what their readers do not need.

    Attributes
    ----------
    where : str
        Which object of which file it is.
    """

    where: str

    def __missing__(self, name: str) -> Any:
        raise CacheError(
            f"expected {name!r} in {self.where}, found none: extract the images again, or let the program that wrote "
            "it add this fact"
        )


def stated(value: Any, where: str) -> Any:
    """Return JSON-like data whose objects name what is missing.

    Examples
    --------
    >>> spec = stated({"weights": {"name": "a"}}, "the spec of c.h5")
    >>> spec["weights"]["name"], spec["weights"].get("sha256"), spec["weights"].where
    ('a', None, 'weights of the spec of c.h5')
    """
    if isinstance(value, dict):
        facts = StatedFacts({name: stated(inner, f"{name} of {where}") for name, inner in value.items()})
        facts.where = where
        return facts
    return [stated(inner, where) for inner in value] if isinstance(value, list) else value


def canonical_json(data: Any) -> str:
    """Return JSON in one spelling: sorted names, no spaces, ASCII; see `docs/format.md`."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the fields of a spec that change numbers.

    Parameters
    ----------
    spec : mapping
        JSON-like: ``backbone``, ``weights``, ``layers``, ``preprocess``, ``decode``, ``dtype``, ``precision``.

    Examples
    --------
    >>> a = {"weights": {"name": "file", "sha256": "12"}, "dtype": "float32"}
    >>> b = {"weights": {"name": "IMAGENET1K_V1", "sha256": "12"}, "dtype": "float32"}
    >>> fingerprint(a) == fingerprint(b)
    True
    """
    return hashlib.sha256(canonical_json(_numeric(spec)).encode()).hexdigest()


def check_same_numbers(found: Mapping[str, Any], wanted: Mapping[str, Any], *, where: str, hint: str) -> None:
    """Refuse two specs of different fingerprints.

    Raises
    ------
    FingerprintError
        Names the first fields that differ, with both values.
    """
    if fingerprint(found) == fingerprint(wanted):
        return
    have, want = _numeric(found), _numeric(wanted)
    fields = [
        name
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name) and not _is_of_one_side(name, have, want)
    ]
    differences = "; ".join(
        f"expected {name.removesuffix(_ORDER)} {_short(want.get(name))}, got {_short(have.get(name))}"
        for name in fields[:_MOST_NAMED]
    )
    more = f"; and {len(fields) - _MOST_NAMED} further fields" if len(fields) > _MOST_NAMED else ""
    raise FingerprintError(f"{where}: {differences}{more}: {hint}")


def _is_of_one_side(field: str, have: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    """Return whether a field is of an element, such as a layer, that one side lacks: the list's names say that."""
    element = _ELEMENT.match(field)
    if element is None:
        return False
    return any(element["name"] not in side.get(element["list"] + _ORDER, [element["name"]]) for side in (have, want))


def spec_of_layers(spec: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a spec as if a cache held these of its layers only."""
    return {**spec, "layers": [layer for layer in spec["layers"] if layer["name"] in names]}


def _numeric(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flat(spec).items() if name not in DESCRIPTIVE}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves by dotted path; a list of named elements is keyed by name, any other list is a leaf."""
    if isinstance(value, Mapping):
        return {
            path: leaf
            for name, inner in value.items()
            for path, leaf in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(inner, Mapping) and "name" in inner for inner in value)
    ):
        order = {prefix + _ORDER: [inner["name"] for inner in value]}
        return order | {
            path: leaf for inner in value for path, leaf in _flat(inner, f"{prefix}[{inner['name']}]").items()
        }
    return {prefix: list(value) if isinstance(value, tuple) else value}


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    text = "absent" if value is None else canonical_json(value).strip('"')
    return text if len(text) <= 60 else text[:12] + "…"
