"""Executors, which compute embeddings on this machine or on many (`pipeline.embedding.ray`).

An executor is opened on a sample of the images, which decides engine and precision once, and is then given rows.
The stage `extract` plans and writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.embedding.choose import choose_decode, choose_engine
from pipeline.embedding.embed import embed_through
from pipeline.embedding.pool import pool_for, worker_count

if TYPE_CHECKING:
    import threading
    from collections import defaultdict
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.worker import Outcome
    from pipeline.embedding.settings import RunSettings
    from pipeline.engines import Embeddings
    from pipeline.sources import Source


class EmbeddedRows(Protocol):
    """Finished rows, and the outcome of each."""

    rows: NDArray[np.int64]
    outcomes: list[Outcome]


class Executor(ABC):
    """Computes embeddings of a source's items.

    Attributes
    ----------
    name, device, precision : str
        Of the engine, once opened; see `pipeline.engines.Engine`.
    decode : DecodePolicy
        The requested policy, once opened, or the same with Pillow if decoding on the GPU failed its check.
    workers : int
        Decode processes, all together.
    """

    name: str
    device: str
    precision: str
    decode: DecodePolicy
    workers: int

    def __str__(self) -> str:
        return f"{self.name}, {self.device}, {self.precision}"

    @abstractmethod
    def open(
        self,
        sampled: Source,
        among: NDArray[np.int64],
        backbone: Backbone,
        decode: DecodePolicy,
        run: RunSettings,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Choose engine, precision and decoder on a sample of the items ``among``; return the self-check.

        Raises
        ------
        EngineError
            See `pipeline.embedding.choose.choose_engine` and `choose_decode`; no engine is left open.
        """

    @abstractmethod
    def embed(
        self, source: Source, rows: NDArray[np.int64], *, stop: threading.Event, seconds: defaultdict[str, float]
    ) -> Iterator[tuple[EmbeddedRows, Embeddings]]:
        """Yield rows with their outcomes and embeddings, in any order; see `pipeline.embedding.embed.embed`."""

    @abstractmethod
    def close(self) -> None:
        """Release what was opened."""


class LocalExecutor(Executor):
    """Decode workers and an engine on this machine."""

    def open(
        self,
        sampled: Source,
        among: NDArray[np.int64],
        backbone: Backbone,
        decode: DecodePolicy,
        run: RunSettings,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Open the engine; see `Executor.open`."""
        self.decode, decode_check = choose_decode(sampled, backbone, decode, run, rows=among, stop=stop, say=say)
        self._settings, self._say = (backbone, self.decode, run), say
        self._engine, self_check = choose_engine(sampled, backbone, self.decode, run, rows=among, stop=stop, say=say)
        self.name, self.device, self.precision = self._engine.name, self._engine.device, self._engine.precision
        self.workers = worker_count(run)
        return self_check | decode_check

    def embed(
        self, source: Source, rows: NDArray[np.int64], *, stop: threading.Event, seconds: defaultdict[str, float]
    ) -> Iterator[tuple[EmbeddedRows, Embeddings]]:
        """Yield rows in order; see `Executor.embed`."""
        with pool_for(self._engine, source.patient_reader(), *self._settings, images=len(rows)) as pool:
            yield from embed_through(pool, self._engine, rows, source.locator, stop=stop, seconds=seconds)
            for note in pool.notes:
                self._say(note)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
