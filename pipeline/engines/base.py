"""The interface of engines: batches of uint8 images in, float32 embeddings out, several batches at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from concurrent.futures import Future

PRECISIONS = ("float32", "mixed", "bfloat16", "float16")

Embeddings = dict[str, NDArray[Any]]
"""(B, D) float32 by layer name."""
Probes = tuple[NDArray[np.uint8], Embeddings] | None
"""Images (n, H, W, 3), and what eager float32 PyTorch gave for them; None where that was not kept."""


class Engine(ABC):
    """Runs a backbone on this machine.

    Attributes
    ----------
    name : str
        ``"torch"`` or ``"openvino"``.
    device : str
        For display: ``"cpu"``, ``"cuda:0 (NVIDIA …)"``.
    precision : str
        One of `PRECISIONS`: the type of the layers' arithmetic; ``mixed``: bfloat16, and float32 where bfloat16 is too
        coarse.
    precisions : tuple of str
        Those in which the device is fast, fastest first.
    batch_size : int
        B; fixed, so that a row does not depend on the number of images beside it.
    in_flight : int
        How many batches to keep submitted for full speed.
    probes : Probes
        Known rows of the reference. Where there are some, a float32 engine that gives them is as good as the reference.
    """

    name: str
    device: str
    precision: str
    precisions: tuple[str, ...]
    batch_size: int
    in_flight: int = 2
    probes: Probes = None

    @abstractmethod
    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch.

        Parameters
        ----------
        images : (B, H, W, 3) uint8
            Exactly ``batch_size`` of them; must not be changed until the future is done.

        Returns
        -------
        Future of dict of str to (B, D) float32
        """

    @abstractmethod
    def close(self) -> None:
        """Release threads and device memory."""

    @property
    def replicas(self) -> tuple[Engine, ...]:
        """The engines behind this one, one per device; each must satisfy the numbers contract."""
        return (self,)

    def run(self, images: NDArray[np.uint8]) -> Embeddings:
        """Embed up to ``batch_size`` images; fewer are padded, and the rows of the padding are dropped."""
        count = len(images)
        if count < self.batch_size:
            images = np.concatenate([images, np.zeros((self.batch_size - count, *images.shape[1:]), np.uint8)])
        return {name: rows[:count] for name, rows in self.submit(images).result().items()}
