"""Caches to label: scikit-learn's digits as images and as embeddings, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.replace import lay_out
from pipeline.core.items import ItemTable, content_hash
from pipeline.core.spec import canonical_json
from tests.cache.synthetic import attributes_of, make_spec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_digits(root: Path, count: int = 200, *, labelled: bool = False, names: list[str] | None = None) -> Path:
    """Write images and a cache of them, whose rows are the digits' 64 pixels; return the cache's path."""
    from sklearn.datasets import load_digits

    data = load_digits()
    folder = root / "images"
    folder.mkdir(parents=True)
    files = names or [f"{i:04d}.png" for i in range(count)]
    hashes = []
    for i, name in enumerate(files):
        Image.fromarray(np.round(data.images[i] * (255 / 16)).astype(np.uint8)).save(folder / name)
        hashes.append(np.frombuffer(content_hash((folder / name).read_bytes()), np.uint8))
    n = len(files)
    items = ItemTable(
        keys=np.array([name.encode("utf-8", "surrogateescape") for name in files], dtype=np.bytes_),
        labels=(data.target[:n] if labelled else np.full(n, -1)).astype(np.int32),
        label_names=NAMES if labelled else (),
        sizes=np.array([(folder / name).stat().st_size for name in files], dtype=np.int64),
        mtimes_ns=np.full(n, 1, dtype=np.int64),
        columns={"ink": data.data[:n].sum(axis=1).astype(np.float64)},
    )
    spec = make_spec(64)
    source = {"kind": "folder", "location": str(folder), "root": str(folder)}
    path = root / "digits.h5"
    lay_out(
        path,
        items,
        widths={"penultimate": 64},
        dtype="float32",
        attributes={**attributes_of(spec), "source": canonical_json(source)},
    )
    writer = CacheWriter(path)
    writer.write(np.arange(n), {"penultimate": data.data[:n].astype(np.float32)}, np.stack(hashes))
    writer.close()
    return path


def truth(path: Path) -> dict[str, str]:
    """Return the right class of every key."""
    return dict(zip(open_cache(path).keys.tolist(), targets(len(open_cache(path))), strict=True))


def targets(count: int) -> list[str]:
    from sklearn.datasets import load_digits

    return [NAMES[k] for k in load_digits().target[:count]]


def pixels(count: int) -> NDArray[np.float64]:
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().data[:count])
