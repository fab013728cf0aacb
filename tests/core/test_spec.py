"""The fingerprint changes with every field that changes numbers, and with no other; a refusal names the fields."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.spec import DESCRIPTIVE, check_same_numbers, fingerprint
from pipeline.errors import FingerprintError

SPEC: dict[str, Any] = {
    "backbone": "timm/resnet50",
    "weights": {"name": "a1_in1k", "origin": "hub", "sha256": "ab" * 32},
    "layers": [
        {"name": "penultimate", "node": "", "pooling": "avg", "width": 2048},
        {"name": "layer3:gem", "node": "layer3", "pooling": "gem", "width": 1024},
    ],
    "preprocess": {
        "resize": [235], "crop": [224, 224], "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
    "decode": {
        "orientation": "exif", "background": "white", "depth": "scale16", "frame": "first",
        "max_pixels": 200_000_000, "jpeg_scale": "full", "formats": ["JPEG", "PNG"],
    },
    "dtype": "float32",
    "precision": "bfloat16",
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, (*path, name))]
    if isinstance(value, list):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, (*path, i))]
    return [path]


LEAVES = leaves(SPEC)


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    at: Any = spec
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return spec


def get(path: tuple[Any, ...]) -> Any:
    at: Any = SPEC
    for step in path:
        at = at[step]
    return at


@given(path=st.sampled_from(LEAVES), data=st.data())
def test_one_changed_field_changes_the_fingerprint_and_is_named(path: tuple[Any, ...], data: st.DataObject) -> None:
    old = get(path)
    strategy: st.SearchStrategy[Any] = {
        str: st.text(max_size=9), int: st.integers(0, 999), float: st.floats(0, 2)
    }[type(old)]  # fmt: skip
    new = data.draw(strategy.filter(lambda value: value != old))
    spec = changed(path, new)
    if ".".join(map(str, path)) in DESCRIPTIVE:
        assert fingerprint(spec) == fingerprint(SPEC)
        check_same_numbers(spec, SPEC, where="c.h5", hint="none")
        return
    assert fingerprint(spec) != fingerprint(SPEC)
    with pytest.raises(FingerprintError) as caught:
        check_same_numbers(spec, SPEC, where="c.h5", hint="use the same settings")
    named = "layers" if path[-1] == "name" else [step for step in path if isinstance(step, str)][-1]
    assert named in str(caught.value)


@given(path=st.sampled_from(LEAVES))
def test_a_missing_field_changes_the_fingerprint(path: tuple[Any, ...]) -> None:
    spec = copy.deepcopy(SPEC)
    at: Any = spec
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    described = ".".join(map(str, path)) in DESCRIPTIVE
    assert (fingerprint(spec) == fingerprint(SPEC)) == described


def test_the_order_of_layers_counts_and_that_of_names_does_not() -> None:
    other = {**SPEC, "layers": SPEC["layers"][::-1]}
    assert fingerprint(other) != fingerprint(SPEC)
    assert fingerprint(dict(reversed(SPEC.items()))) == fingerprint(SPEC)


def test_the_message_gives_both_values() -> None:
    with pytest.raises(FingerprintError, match=r"expected layers\[layer3:gem\].pooling gem, got max"):
        check_same_numbers(changed(("layers", 1, "pooling"), "max"), SPEC, where="c.h5", hint="x")


def test_layers_of_one_side_are_named_once() -> None:
    fewer = {**SPEC, "layers": SPEC["layers"][:1]}
    with pytest.raises(FingerprintError) as caught:
        check_same_numbers(SPEC, fewer, where="c.h5", hint="x")
    assert str(caught.value) == "c.h5: expected layers penultimate, got penultimate, layer3:gem: x"


def test_a_message_names_few_fields() -> None:
    other = {
        **SPEC,
        "backbone": "timm/vit",
        "preprocess": {name: [1] for name in SPEC["preprocess"]},
        "dtype": "float16",
    }
    with pytest.raises(FingerprintError, match=r"expected backbone timm/resnet50.*; and 2 further fields: x"):
        check_same_numbers(other, SPEC, where="c.h5", hint="x")
