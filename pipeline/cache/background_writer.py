"""Writing during the forward pass: a thread that takes finished batches and commits at intervals."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from pipeline.cache.failures import append_reasons
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.cache.writer import CacheWriter

COMMIT_EVERY_S = 2.0
QUEUE_BATCHES = 8


class BackgroundWriter:
    """Feeds a `CacheWriter` from a bounded queue.

    Parameters
    ----------
    writer : CacheWriter
        Closed when this is.
    commit_every : float
        Seconds between commits: the work that a kill may cost.
    """

    def __init__(self, writer: CacheWriter, *, commit_every: float = COMMIT_EVERY_S) -> None:
        self._writer = writer
        self._every = commit_every
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_BATCHES)
        self._reasons: list[tuple[str, str]] = []
        self._error: BaseException | None = None
        self._ended = False
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="cache-writer")
        self._thread.start()

    def write(self, rows: NDArray[np.int64], outputs: Mapping[str, NDArray[Any]], hashes: NDArray[np.uint8]) -> None:
        """Queue finished rows; see `CacheWriter.write`.

        Raises
        ------
        CacheError
            The thread raised one; nothing more is written.
        """
        self._put(lambda: self._writer.write(rows, outputs, hashes))

    def fail(self, row: int, key: str, status: int, reason: str, content_hash: bytes) -> None:
        """Queue a failed row and its reason."""

        def record() -> None:
            self._writer.fail(row, status, content_hash)
            self._reasons.append((key, reason))

        self._put(record)

    def close(self) -> None:
        """Write and commit what is queued; raise the error of the thread, if any."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _put(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(job)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._error = error
            with contextlib.suppress(CacheError):
                self._writer.close()
            while not self._ended:  # let the producer see the error
                self._ended = self._queue.get() is None

    def _serve(self) -> None:
        due = time.monotonic() + self._every
        while True:
            try:
                job = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                job = _nothing
            self._ended = job is None
            started = time.perf_counter()
            if job is not None:
                job()
            if job is None or time.monotonic() >= due:
                # Reasons first: a committed failure always has its line.
                try:
                    append_reasons(self._writer.path, self._reasons)
                finally:  # rows have their space already: a full disk does not affect them
                    self._writer.commit()
                self._reasons.clear()
                due = time.monotonic() + self._every
            if job is None:
                self._writer.close()
                self.seconds += time.perf_counter() - started
                return
            self.seconds += time.perf_counter() - started


def _nothing() -> None:
    """Replace a job when only a commit is due."""
