"""A small archive of pictures with known answers, as a cache: no network, made-up embeddings, real images."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.cache.synthetic import make_items
from tests.heads.standin import StandIn, blobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.core.items import ItemTable


@dataclass
class Archive(StandIn):
    """A cache in memory with images."""

    images: dict[int, bytes] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    items: ItemTable = field(default_factory=lambda: make_items(["0.png"]))
    content_hash: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 16), np.uint8))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers:
            self.layers = {"penultimate": self.embeddings}
        if not len(self.content_hash):
            self.content_hash = np.zeros((len(self), 16), np.uint8)
            self.content_hash[:, :8] = (np.arange(len(self), dtype="<i8") + 1).view(np.uint8).reshape(-1, 8)

    @property
    def width(self) -> int:
        return int(self.embeddings.shape[1])

    @property
    def dtype(self) -> Any:
        return self.embeddings.dtype

    def image_bytes(self, row: int) -> bytes | None:
        return self.images.get(row)


def png(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, how.pop("format", "PNG"), **how)
    return buffer.getvalue()


def archive(n_rows: int = 240, *, n_classes: int = 3, spread: float = 1.5, images: bool = True, **further: Any) -> Any:
    """Return an `Archive`; it stands in for a `Cache`, which it does not inherit from."""
    X, y = blobs(n_rows, n_classes=n_classes, spread=spread)
    pictures = {}
    if images:
        rng = np.random.default_rng(3)
        for row in range(n_rows):
            noise = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            pictures[row] = png(Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC))
    names = ("ant", "bee", "cat", "dog", "emu")[:n_classes]
    return Archive(X, y.astype(np.int32), names, images=pictures, **further)
