"""Prefetching: reading the images of a task concurrently, before they are decoded. Slow storage needs it.

While reads are fast, a decode worker reads each image just before it decodes it. Once reads are slow (a network file
system, an object store, a seeking disk), several threads read while the worker decodes.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.core.items import Reader

SLOW_READ_S = 0.002
"""Mean read time of a task, in seconds, above which the next task is prefetched; below, threads gain nothing."""
AHEAD_BYTES = 64 << 20
"""Bytes that may be prefetched, counting every image as large as the largest so far."""


class Prefetcher:
    """Reads the images of successive tasks, in order.

    Parameters
    ----------
    reader : Reader
    reading : (n,) int64
        Records which rows the threads are reading, so that one that ends the process is known; n is how many
        images a task may have, and how many threads there are.
    no_row : int
        The value for no row.
    """

    def __init__(self, reader: Reader, reading: NDArray[Any], no_row: int) -> None:
        self._reader = reader
        self._reading = reading
        self._no_row = no_row
        self._items: Sequence[tuple[int, int, Any]] = ()
        self._ahead: dict[int, Future[bytes]] = {}
        self._turn = self._unread = 0
        self._seconds: list[float] = []
        self._slow = False
        self._largest = 1
        self._threads = ThreadPoolExecutor(len(reading), thread_name_prefix="read")
        # Start all of them now: their stacks must not count against the memory limit of an image.
        together = threading.Barrier(len(reading) + 1)
        for _ in reading:
            self._threads.submit(together.wait)
        together.wait()

    def begin(self, items: Sequence[tuple[int, int, Any]]) -> None:
        """Start a task with items (position, row, locator); all items of the previous task have been taken."""
        if self._seconds:
            self._slow = sum(self._seconds) / len(self._seconds) >= SLOW_READ_S
        self._items, self._turn, self._unread, self._seconds = items, 0, 0, []

    def take(self) -> bytes:
        """Return the next item's bytes, or raise what the reader raised."""
        if self._slow:
            self._read_on()
        turn, self._turn = self._turn, self._turn + 1
        self._unread = max(self._unread, self._turn)
        future = self._ahead.pop(turn, None)
        data = self._read(turn) if future is None else future.result()
        self._largest = max(self._largest, len(data))
        return data

    @property
    def holds(self) -> bool:
        """Whether anything is prefetched or being prefetched."""
        return bool(self._ahead)

    def take_again(self) -> bytes:
        """Return the bytes of the last item again, and release all prefetched items."""
        for future in self._ahead.values():
            future.exception()  # waits until it is read
        self._ahead.clear()
        self._unread, self._slow = self._turn, False
        return self._read(self._turn - 1)

    def _read_on(self) -> None:
        """Let threads read as many items of the task as the limit allows."""
        while self._unread < len(self._items) and (len(self._ahead) + 1) * self._largest <= AHEAD_BYTES:
            self._reading[self._unread] = self._items[self._unread][1]
            self._ahead[self._unread] = self._threads.submit(self._read, self._unread)
            self._unread += 1

    def _read(self, turn: int) -> bytes:
        started = time.perf_counter()
        try:
            return self._reader(self._items[turn][2])
        finally:
            self._seconds.append(time.perf_counter() - started)
            self._reading[turn] = self._no_row
