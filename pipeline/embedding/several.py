"""Images through several networks, one after the other: their embeddings side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.callbacks import Say, ignore

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.decoding.pool import Batch
    from pipeline.embedding.embedder import Embedder
    from pipeline.engines.base import Engine
    from pipeline.sources import Source

_BLOCK_ROWS = 4096
"""Images whose embeddings by the other networks are kept at once. Each network reads them by itself, since each has its
own decoding and preprocessing."""


class SeveralEmbedders:
    """Embedders used as one `pipeline.embedding.embedder.Embedder`.

    Parameters
    ----------
    embedders : sequence of Embedder
        At least one, in the order of their embeddings.
    """

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        self._first, *self._others = embedders

    def open_for(self, source: Source, *, stop: threading.Event | None = None, say: Say = ignore) -> Engine:
        """Open the engine of each network; return the first."""
        engine = self._first.open_for(source, stop=stop, say=say)
        for embedder in self._others:
            embedder.open_for(source, stop=stop, say=say)
        return engine

    def embed(
        self, source: Source, rows: NDArray[np.int64], *, stop: threading.Event | None = None
    ) -> Iterator[tuple[Batch, NDArray[np.float32], list[str]]]:
        """Yield batches of rows, in order; an image has an embedding where all networks have one.

        Yields
        ------
        batch, embeddings, reasons
            As of `Embedder.embed`; the embeddings of all networks are side by side.
        """
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            others = [_all_of(embedder, source, block, stop) for embedder in self._others]
            done = 0
            for batch, embeddings, reasons in self._first.embed(source, block, stop=stop):
                here = slice(done, done + len(reasons))
                if any(len(why) < here.stop for _, why in others):
                    return  # a stop came
                parts = [embeddings, *(found[here] for found, _ in others)]
                why = [
                    next(filter(None, each), "") for each in zip(reasons, *(of[here] for _, of in others), strict=True)
                ]
                done = here.stop
                yield batch, np.concatenate(parts, axis=1), why
            if stop is not None and stop.is_set():
                return

    def close(self) -> None:
        """Close all engines."""
        for embedder in (self._first, *self._others):
            embedder.close()


def _all_of(
    embedder: Embedder, source: Source, rows: NDArray[np.int64], stop: threading.Event | None
) -> tuple[NDArray[np.float32], list[str]]:
    """Return the embeddings of all rows, and why each has none."""
    found, reasons = [], []
    for _, embeddings, of_batch in embedder.embed(source, rows, stop=stop):
        found.append(np.array(embeddings))
        reasons += of_batch
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32), reasons
