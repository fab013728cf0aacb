"""The contents of a cache and what produced it, as plain data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.concat import open_cache
from pipeline.core.items import Status, status_name

if TYPE_CHECKING:
    from collections.abc import Mapping


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the facts about a cache.

    Parameters
    ----------
    path : path
        The cache.

    Returns
    -------
    dict
        JSON-like: counts by status, layers and widths, labels, columns, backbone, weights, preprocessing, decoding,
        versions. What another program left out of the file is left out here.

    Raises
    ------
    CacheError
        The file is not a cache.
    """
    cache = open_cache(path)
    counts = np.bincount(cache.status, minlength=2)
    spec = cache.spec
    labels = np.bincount(cache.labels[cache.labels >= 0], minlength=len(cache.label_names))
    return {
        "cache": str(cache.path),
        "images": len(cache),
        **({"shard": f"{cache.shard} of {cache.shard.total} images"} if cache.shard else {}),
        "status": {status_name(code): int(count) for code, count in enumerate(counts) if count or code == Status.DONE},
        "layers": {layer["name"]: layer["width"] for layer in spec["layers"]},
        "dtype": spec["dtype"],
        **_known(spec, "precision"),
        "labels": {name: int(count) for name, count in zip(cache.label_names, labels, strict=True)},
        "columns": list(cache.columns),
        "source": _known(cache.source, "kind", "location"),
        **_known(spec, "backbone", "weights", "preprocess", "decode"),
        "fingerprint": cache.fingerprint,
        "versions": cache.versions,
        "self_check": cache.self_check,
        "bytes": cache.nbytes,
    }


def _known(facts: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: facts[name] for name in names if name in facts}


def describe_failures(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return (key, reason) of every failed row, in the order of rows."""
    cache = open_cache(path)
    reasons = cache.reasons()
    rows = np.flatnonzero(cache.status > Status.DONE).tolist()
    names = {row: status_name(int(cache.status[row])).replace("_", " ") for row in rows}
    return [
        (os.fsdecode(bytes(cache.items.keys[row])), f"{names[row]}: {reasons[row]}" if row in reasons else names[row])
        for row in rows
    ]
