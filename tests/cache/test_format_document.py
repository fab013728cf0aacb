"""A cache that another program writes by `docs/format.md`: h5py, NumPy and the standard library, no code of ours.

The functions follow the document section by section. What they write has to pass `verify`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pipeline
from pipeline.cache.verify import verify
from pipeline.errors import CacheError

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "format.md"
SPEC: dict[str, Any] = {
    "backbone": "größer/net",
    "weights": {"name": "of a colleague", "origin": "a disk", "sha256": "beef"},
    "layers": [{"name": "penultimate", "width": 3}, {"name": "blocks.1:max", "width": 2}],
    "preprocess": {"mean": [0.5, 1.0, 1e-5], "steps": [{"name": "resize", "to": [8, 8]}, {"name": "crop", "to": []}]},
    "decode": {"formats": ["PNG"], "options": {}, "limits": [], "background": None, "rules": [{"z": 1, "a": True}]},
    "dtype": "float32",
    "precision": "float32",
}
ROW_DATASETS = ("embeddings", "layers/blocks.1:max", "status", "crc32", "ledger_crc32", "content_hash")


def flatten(value: Any, name: str, fields: dict[str, Any]) -> None:
    """Follow *Fingerprint*, step 1."""
    if isinstance(value, dict):
        for member, inner in value.items():
            flatten(inner, f"{name}.{member}" if name else member, fields)
    elif isinstance(value, list) and value and all(isinstance(e, dict) and "name" in e for e in value):
        fields[f"{name}.order"] = [element["name"] for element in value]
        for element in value:
            flatten(element, f"{name}[{element['name']}]", fields)
    else:
        fields[name] = value


def spelled(data: Any) -> str:
    """Follow *Fingerprint*, step 3."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def numeric_json(spec: dict[str, Any]) -> str:
    """Follow *Fingerprint*, steps 1 to 3."""
    fields: dict[str, Any] = {}
    flatten(spec, "", fields)
    for name in ("weights.name", "weights.origin"):
        fields.pop(name, None)
    return spelled(fields)


def hand_written(path: Path, spec: dict[str, Any], fingerprint: str) -> Path:
    """Follow *Writing a cache with another program*."""
    rng = np.random.default_rng(0)
    keys = np.array([b"a/1.png", b"b/2.png", "b/ü.png".encode()])
    count = len(keys)
    embeddings, layer = (rng.normal(size=(count, width)).astype("<f4") for width in (3, 2))
    hashes = np.array([list(hashlib.blake2b(key, digest_size=16).digest()) for key in keys], "u1")
    crc = [zlib.crc32(layer[i].tobytes(), zlib.crc32(embeddings[i].tobytes(), i)) for i in range(count)]
    crc32 = np.array(crc, "<u4")
    ledger = [zlib.crc32(bytes([1]) + crc32[i].tobytes() + hashes[i].tobytes(), i) for i in range(count)]
    text = {
        "format": "embedding-pipeline",
        "spec": spelled(spec),
        "fingerprint": fingerprint,
        "versions": "{}",
        "self_check": "{}",
        "source": spelled({"kind": "folder", "location": "images", "root": "/images"}),
    }
    datasets: dict[str, Any] = {
        "embeddings": embeddings,
        "layers/blocks.1:max": layer,
        "status": np.ones(count, "u1"),
        "crc32": crc32,
        "ledger_crc32": np.array(ledger, "<u4"),
        "content_hash": hashes,
        "keys": keys,
        "labels": np.array([0, 1, -1], "<i4"),
        "label_names": np.array([b"a", b"b"]),
        "columns/width%2Fpx": np.array([10, 20, 30], "<i8"),
        "source_size": np.full(count, -1, "<i8"),
        "source_mtime_ns": np.full(count, -1, "<i8"),
        "static_sha256": np.zeros(32, "u1"),
    }
    with h5py.File(path, "w", alignment_threshold=1, alignment_interval=4096) as file:
        for name, value in text.items():
            file.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value.encode())))
        file.attrs.create("format_version", 1, dtype="<i8")
        for name, values in datasets.items():
            dtype = h5py.string_dtype("utf-8", values.dtype.itemsize) if values.dtype.kind == "S" else values.dtype
            file.create_dataset(name, data=values.astype(dtype), dtype=dtype)
    with h5py.File(path) as file:
        places = {name: (file[name].id.get_offset(), file[name].id.get_storage_size()) for name in datasets}
    data, digest, position = path.read_bytes(), hashlib.sha256(), 0
    for offset, size in sorted(places[name] for name in (*ROW_DATASETS, "static_sha256")):
        digest.update(data[position:offset])
        position = offset + size
    digest.update(data[position:])
    with path.open("r+b") as raw:
        raw.seek(places["static_sha256"][0])
        raw.write(digest.digest())
    return path


def test_a_cache_written_by_the_document_is_sound(tmp_path: Path) -> None:
    fingerprint = hashlib.sha256(numeric_json(SPEC).encode()).hexdigest()
    path = hand_written(tmp_path / "other.h5", SPEC, fingerprint)
    assert verify(path).complete
    photos = pipeline.open(path)
    assert list(photos.keys) == ["a/1.png", "b/2.png", "b/ü.png"]
    assert list(photos.columns["width/px"]) == [10, 20, 30]


@pytest.mark.parametrize("change", ["weights", "order", "nested"])
def test_another_fingerprint_is_found(tmp_path: Path, change: str) -> None:
    other = json.loads(json.dumps(SPEC))
    if change == "weights":
        other["weights"]["sha256"] = "dead"
    elif change == "order":
        other["preprocess"]["steps"].reverse()
    else:
        other["decode"]["rules"][0]["z"] = 1.0
    fingerprint = hashlib.sha256(numeric_json(other).encode()).hexdigest()
    with pytest.raises(CacheError, match="fingerprint"):
        verify(hand_written(tmp_path / "other.h5", SPEC, fingerprint))


def test_the_example_of_the_document_is_right() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Fingerprint")[2].partition("## How")[0]
    spec, flat, fingerprint = (block.partition("```")[0] for block in section.split("```text\n")[1:])
    assert flat.replace("\n", "") == numeric_json(json.loads(spec))
    assert fingerprint.strip() == hashlib.sha256(flat.replace("\n", "").encode()).hexdigest()
