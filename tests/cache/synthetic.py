"""Caches of made-up rows whose right values are known: row i of width W is a formula, and so is its content hash."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.replace import lay_out
from pipeline.core.items import ItemTable, Status
from pipeline.core.spec import canonical_json, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.core.shards import ShardRecord

SOURCE = {"kind": "folder", "location": "images", "root": "/nowhere/images"}


def make_items(names: list[str] | int, *, labels: list[str] | None = None, mtime: int = 1) -> ItemTable:
    if isinstance(names, int):
        names = [f"class{i % 3}/{i:06d}.png" for i in range(names)]
    classes = tuple(sorted(set(labels))) if labels else ()
    return ItemTable(
        keys=np.array([name.encode() for name in names], dtype=np.bytes_),
        labels=np.array([classes.index(label) for label in labels] if labels else [-1] * len(names), dtype=np.int32),
        label_names=classes,
        sizes=np.full(len(names), 100, dtype=np.int64),
        mtimes_ns=np.full(len(names), mtime, dtype=np.int64),
        columns={"weight": np.arange(len(names), dtype=np.float64)},
    )


def make_spec(width: int = 5, *, layers: tuple[int, ...] = (), dtype: str = "float32") -> dict[str, Any]:
    named = [{"name": "penultimate", "width": width}]
    named += [{"name": f"extra{i}", "width": other} for i, other in enumerate(layers)]
    return {
        "backbone": "synthetic",
        "weights": {"name": "none", "sha256": "0"},
        "layers": named,
        "dtype": dtype,
    }


def attributes_of(spec: dict[str, Any]) -> dict[str, str]:
    return {
        "spec": canonical_json(spec),
        "fingerprint": fingerprint(spec),
        "versions": canonical_json({"python": "3"}),
        "self_check": "{}",
        "source": canonical_json(SOURCE),
    }


def make_cache(
    path: Path, items: ItemTable | int, spec: dict[str, Any] | None = None, shard: ShardRecord | None = None
) -> Path:
    """Lay out a cache of rows to do."""
    spec = spec or make_spec()
    lay_out(
        path,
        make_items(items) if isinstance(items, int) else items,
        widths={layer["name"]: layer["width"] for layer in spec["layers"]},
        dtype=spec["dtype"],
        attributes={**attributes_of(spec), **({"shard": shard.to_json()} if shard else {})},
    )
    return path


def make_partial(
    path: Path, *, done: int = 0, failed: int = 0, to_do: int = 0, shard: ShardRecord | None = None
) -> Path:
    """Make a cache whose first rows are done and whose next ones failed."""
    make_cache(path, done + failed + to_do, shard=shard)
    writer = CacheWriter(path)
    write_rows(writer, np.arange(done))
    for row in range(done, done + failed):
        writer.fail(row, Status.CORRUPT)
    writer.close()
    return path


def keys_of(path: Path) -> list[bytes]:
    return [bytes(key) for key in open_cache(path).items.keys]


def seeds(keys: list[bytes]) -> NDArray[np.int64]:
    """Return a number for each key: rows belong to keys, wherever they stand."""
    return np.array([int.from_bytes(hashlib.sha256(key).digest()[:4], "little") for key in keys], dtype=np.int64)


def right_rows(keys: list[bytes], width: int, layer: int = 0) -> NDArray[np.float32]:
    return _right_rows(tuple(keys), width, layer)


@functools.lru_cache(256)
def _right_rows(keys: tuple[bytes, ...], width: int, layer: int) -> NDArray[np.float32]:
    columns = np.arange(width) + 1000 * layer
    rows: NDArray[np.float32] = np.sin(seeds(list(keys))[:, None] % 9973 + columns * 0.37).astype(np.float32)
    return rows


def right_hashes(keys: list[bytes]) -> NDArray[np.uint8]:
    digests = b"".join(hashlib.blake2b(key, digest_size=16).digest() for key in keys)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)


def right_outputs(path: Path, rows: NDArray[np.int64]) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]:
    cache = open_cache(path)
    keys = [bytes(cache.items.keys[row]) for row in rows]
    outputs = {name: right_rows(keys, cache.layers[name].shape[1], layer) for layer, name in enumerate(cache.layers)}
    return outputs, right_hashes(keys)


def write_rows(writer: CacheWriter, rows: NDArray[np.int64]) -> None:
    outputs, hashes = right_outputs(writer.path, rows)
    writer.write(rows, outputs, hashes)


def fill(path: Path, *, batch: int = 4, commit_every: int = 2) -> None:
    """Complete a cache as a run does: what is to do, in order, committing now and then."""
    todo = np.flatnonzero(open_cache(path).status == 0)
    writer = CacheWriter(path)
    try:
        for number, start in enumerate(range(0, len(todo), batch)):
            write_rows(writer, todo[start : start + batch])
            if number % commit_every == commit_every - 1:
                writer.commit()
    finally:
        writer.close()


def make_full(path: Path, items: ItemTable | int, spec: dict[str, Any] | None = None) -> Path:
    make_cache(path, items, spec)
    fill(path, batch=512)
    return path


def wrong_rows(path: Path) -> list[str]:
    """The oracle: what is wrong about rows that a cache calls done. Needs none of the code that writes."""
    import zlib

    cache, wrong = open_cache(path), []
    names, keys = list(cache.layers), keys_of(path)
    hashes = right_hashes(keys)
    right = {
        name: right_rows(keys, rows.shape[1], layer).astype(cache.dtype)
        for layer, (name, rows) in enumerate(cache.layers.items())
    }
    for row in range(len(cache)):
        status = int(cache.status[row])
        if status == 0:
            continue
        data = b"".join(cache.layers[name][row].tobytes() for name in names)
        crc = zlib.crc32(data, row)
        if crc != cache.crc32[row]:
            wrong.append(f"row {row}: checksum")
        ledger = bytes([status]) + crc.to_bytes(4, "little") + cache.content_hash[row].tobytes()
        if zlib.crc32(ledger, row) != cache.ledger_crc32[row]:
            wrong.append(f"row {row}: ledger")
        if status != 1:
            continue
        if not np.array_equal(cache.content_hash[row], hashes[row]):
            wrong.append(f"row {row}: content hash")
        for name in names:
            if not np.array_equal(cache.layers[name][row], right[name][row]):
                wrong.append(f"row {row}: {name} is another row's")
    return wrong
