"""Several devices of one machine: the same engine on each, batches in rotation."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pipeline.engines.base import Embeddings, Engine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray


class MultiEngine(Engine):
    """Replicas of one engine, each on a device of its own.

    The caller receives a future per batch and takes the results in the order of the batches. The place of a row does
    not depend on the device that computed it, nor on its speed.

    Parameters
    ----------
    replicas : sequence of Engine
        Of the same backbone, precision and batch size.
    """

    def __init__(self, replicas: Sequence[Engine]) -> None:
        first = replicas[0]
        self.name, self.precision, self.batch_size = first.name, first.precision, first.batch_size
        # GPUs may differ.
        self.precisions = tuple(
            name for name in first.precisions if all(name in replica.precisions for replica in replicas)
        )
        self.device = ", ".join(replica.device for replica in replicas)
        self.in_flight = sum(replica.in_flight for replica in replicas)
        self._replicas = tuple(replicas)
        self._turn = itertools.cycle(self._replicas)

    @property
    def replicas(self) -> tuple[Engine, ...]:
        """The engines behind this one, one per device."""
        return self._replicas

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch on the next device; see `Engine.submit`."""
        return next(self._turn).submit(images)

    def close(self) -> None:
        """Close every replica."""
        for replica in self._replicas:
            replica.close()
