"""A cache of another program is read where it has what is asked for, and refused by name where it has not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.cache.info import describe, describe_failures
from pipeline.errors import CacheError
from tests.cache import synthetic
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    labels = ["ant", "bee"] * (ROWS // 2)
    names = [f"{i}.png" for i in range(ROWS)]
    return synthetic.make_full(tmp_path / "c.h5", synthetic.make_items(names, labels=labels))


def change_json(path: Path, attribute: str, **members: Any) -> None:
    """Set members of an attribute's object; None removes one."""
    with h5py.File(path, "r+", locking=False) as file:
        facts = json.loads(file.attrs[attribute]) | members
        file.attrs[attribute] = json.dumps({name: value for name, value in facts.items() if value is not None})


def put(path: Path, name: str, values: Any) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        if name in file:
            del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize("missing", ["backbone", "weights", "precision", "preprocess", "decode"])
def test_a_fact_that_is_missing_is_left_out_of_info_and_named_when_needed(missing: str, path: Path) -> None:
    change_json(path, "spec", precision="float32", preprocess={"size": 8}, decode={"frame": "first"})
    assert missing in describe(path)
    change_json(path, "spec", **{missing: None})
    assert missing not in describe(path)
    with pytest.raises(CacheError, match=rf"expected '{missing}' in the spec of .*c\.h5, found none: "):
        open_cache(path).spec[missing]


def test_a_source_that_is_not_described_shows_no_images_and_keeps_the_rest(path: Path) -> None:
    change_json(path, "source", kind=None, location=None, root=None)
    assert describe(path)["source"] == {}
    ran = run_command("duplicates", path)
    assert (ran.exit_code, ran.stdout.splitlines()[0]) == (0, "group,key,label,similarity,how")


@pytest.mark.parametrize(
    ("attribute", "members", "said"),
    [
        ("spec", {"layers": None}, "layers is missing"),
        ("spec", {"layers": 3}, "attributes make no sense"),
        ("spec", {"layers": [{"name": "penultimate", "width": 7}]}, "/embeddings has shape"),
        ("spec", {"dtype": "float64"}, "spec.dtype is 'float64'"),
        ("spec", {"preprocess": [1]}, "spec.preprocess is no object"),
        ("source", {"root": 3}, "source.root is no text"),
    ],
)
def test_attributes_of_another_form_are_named(attribute: str, members: dict[str, Any], said: str, path: Path) -> None:
    change_json(path, attribute, **members)
    with pytest.raises(CacheError, match=said):
        open_cache(path)


@pytest.mark.parametrize("value", ["[]", "{", np.int64(5), None])
@pytest.mark.parametrize("attribute", ["spec", "versions", "self_check", "source", "fingerprint", "shard"])
def test_an_attribute_that_is_no_object_is_named(attribute: str, value: Any, path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs.pop(attribute, None)
        if value is not None:
            file.attrs[attribute] = value
    if (attribute == "shard" and value is None) or (attribute == "fingerprint" and isinstance(value, str)):
        assert len(open_cache(path)) == ROWS
        return
    with pytest.raises(CacheError, match=attribute):
        open_cache(path)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("content_hash", None, "/content_hash is missing"),
        ("label_names", None, "/label_names is missing"),
        ("embeddings", np.float32(1), "/embeddings has shape"),
        ("embeddings", np.ones((ROWS, 5)), "/embeddings has type <f8"),
        ("status", np.ones((ROWS, 1), "u1"), "/status has shape"),
        ("labels", np.zeros(ROWS, "<f4"), "/labels has type <f4"),
        ("keys", np.arange(ROWS), "/keys has type <i8"),
        ("source_size", np.zeros(3, "<i8"), "/source_size has shape"),
        ("columns/age", np.zeros((ROWS, 2)), "/columns/age has shape"),
        ("columns/age", np.zeros(ROWS, ">f8"), "/columns/age has type >f8"),
        ("layers/other", np.zeros((3, 2), "<f4"), "/layers/other is no layer"),
    ],
)
def test_datasets_that_readers_cannot_use_are_named(name: str, values: Any, said: str, path: Path) -> None:
    put(path, name, values)
    with pytest.raises(CacheError, match=said):
        open_cache(path)


@pytest.mark.parametrize("wrong", [-2, 2])
def test_a_label_without_a_name_is_never_taken_for_another_class(wrong: int, path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        file["labels"][3] = wrong
    with pytest.raises(CacheError, match="of 2 classes"):
        _ = open_cache(path).labels


def test_classes_of_one_name_are_refused(path: Path) -> None:
    put(path, "label_names", np.array([b"ant", b"ant"]))
    with pytest.raises(CacheError, match="same name"):
        _ = open_cache(path).labels


def test_a_status_of_a_newer_program_is_a_failure_with_a_number(path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        file["status"][2] = 77
    assert describe(path)["status"] == {"done": ROWS - 1, "status_77": 1}
    assert describe_failures(path) == [("2.png", "status 77")]
