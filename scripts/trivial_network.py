"""A network that costs next to nothing, for measuring and testing everything around a real one.

Its embedding is the image itself, shrunk: the mean of each of 4 × 4 patches, by channel.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from pipeline.decoding.preprocess import Preprocess
from pipeline.engines.base import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PATCHES = 4


@dataclass(frozen=True)
class TrivialLayer:
    """What a cache asks of a layer."""

    name: str = "penultimate"
    width: int = PATCHES * PATCHES * 3


class TrivialBackbone:
    """What extraction asks of a backbone."""

    name = "trivial"
    layers = (TrivialLayer(),)

    def __init__(self, size: int) -> None:
        self.preprocess = Preprocess((size,), (size, size), "bilinear", (0.5,) * 3, (0.5,) * 3)

    def to_spec(self) -> dict[str, Any]:
        return {
            "backbone": self.name,
            "weights": {"name": "none", "origin": "none", "sha256": "0"},
            "layers": [{"name": "penultimate", "node": "", "pooling": "network", "width": self.layers[0].width}],
            "preprocess": self.preprocess.to_spec(),
        }


class TrivialEngine(Engine):
    """Means of patches, computed at once."""

    name, device, precision = "trivial", "cpu", "float32"

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def submit(self, images: NDArray[np.uint8]) -> Future[dict[str, NDArray[Any]]]:
        count, height, width, _ = images.shape
        cut = images[:, : height // PATCHES * PATCHES, : width // PATCHES * PATCHES]
        patches = cut.reshape(count, PATCHES, height // PATCHES, PATCHES, width // PATCHES, 3)
        future: Future[dict[str, NDArray[Any]]] = Future()
        future.set_result({"penultimate": patches.mean((2, 4), dtype=np.float32).reshape(count, -1)})
        return future

    def close(self) -> None:
        return


@contextlib.contextmanager
def trivial_network(size: int = 32, batch_size: int = 64) -> Iterator[None]:
    """Let an extraction run this instead of a real network; the command line offers no such thing."""
    with (
        mock.patch("pipeline.stages.extract.load_backbone", return_value=TrivialBackbone(size)),
        mock.patch(
            "pipeline.embedding.executor.choose_engine", return_value=(TrivialEngine(batch_size), {"images": 0})
        ),
    ):
        yield
