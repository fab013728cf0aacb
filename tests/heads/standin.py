"""A cache in memory: the attributes that stage 2 reads, without a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import CacheError, near_names

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class StandIn:
    """What ``open_cache`` gives, as far as heads care."""

    embeddings: NDArray[Any]
    labels: NDArray[Any]
    label_names: tuple[str, ...]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    status: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.uint8))
    keys: NDArray[Any] = field(default_factory=lambda: np.zeros(0, str))
    layers: dict[str, NDArray[Any]] = field(default_factory=dict)
    path: Path = Path("stand-in.h5")
    fingerprint: str = "f" * 64
    spec: dict[str, Any] = field(default_factory=lambda: {"backbone": "none", "dtype": "float32"})
    versions: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    content_hash: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 16), np.uint8))

    def __post_init__(self) -> None:
        if not len(self.status):
            self.status = np.ones(len(self.labels), np.uint8)
        if not len(self.keys):
            self.keys = np.asarray([f"{i}.png" for i in range(len(self.labels))])

        if not len(self.content_hash):
            # Every image has other bytes.
            counted = np.arange(1, len(self.labels) + 1, dtype="<u8").view(np.uint8).reshape(-1, 8)
            self.content_hash = np.tile(counted, 2)

    def __len__(self) -> int:
        return len(self.labels)

    def keys_of(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """Return the keys of some rows."""
        return np.asarray(self.keys[rows])

    def layer(self, name: str) -> NDArray[Any]:
        """Return a layer, or refuse its name."""
        layers = {"penultimate": self.embeddings, **self.layers}
        if name not in layers:
            raise CacheError(f"{self.path} has no layer {name!r}: {near_names(name, layers)}")
        return layers[name]

    def part_of(self, row: int) -> tuple[StandIn, int]:
        """Return itself."""
        return self, row

    def image_reader(self, row: int) -> bytes:
        """Return the bytes of an image."""
        data = self.image_bytes(row)
        if data is None:
            raise FileNotFoundError(row)
        return data

    def image_bytes(self, row: int) -> bytes | None:
        """Return nothing: there are no images."""
        return None


def blobs(
    n_rows: int = 240, width: int = 12, n_classes: int = 3, *, seed: int = 0, spread: float = 1.5
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return overlapping Gaussian classes, as many rows of each."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % n_classes
    centres = rng.normal(size=(n_classes, width))
    return (centres[y] + spread * rng.normal(size=(n_rows, width))).astype(np.float32), y


def imbalanced(
    counts: tuple[int, ...], *, width: int = 8, seed: int = 0, spread: float = 1.5
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return overlapping Gaussian classes of these sizes."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), width))
    return (centres[y] + spread * rng.normal(size=(len(y), width))).astype(np.float32), y


def many_classes() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return 2 000 classes of 4 rows each, 1 280 features wide."""
    return imbalanced((4,) * 2000, width=1280)


def stand_in(n_rows: int = 240, *, seed: int = 0, spread: float = 1.5, **further: Any) -> StandIn:
    """Return a cache of `blobs` with three classes."""
    X, y = blobs(n_rows, seed=seed, spread=spread)
    return StandIn(X, y.astype(np.int32), ("ant", "bee", "cat"), **further)
