"""Reading the images of a task side by side, ahead of their decoding: what slow storage needs.

A decode worker reads an image when its turn comes, while that is quick. Once reads take long (a network file system, an
object store, a disk that has to seek), threads do it, several at once, while the worker decodes.
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
"""Mean time of a task's reads from which on the next task's are done ahead; below, threads cost what they bring."""
AHEAD_BYTES = 64 << 20
"""What may be held ahead of decoding, taking every image for as large as the largest so far."""


class Prefetcher:
    """The bytes of one task after the other, image by image, in order.

    Parameters
    ----------
    reader : Reader
    reading : (n,) int64
        Where it is noted which rows the threads are on, so that one that ends the process can be found; n is how many
        images a task may have, and how many threads there are.
    no_row : int
        What stands there for none.
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
        # All of them now, not when they are first needed: their stacks are no part of what an image may take.
        together = threading.Barrier(len(reading) + 1)
        for _ in reading:
            self._threads.submit(together.wait)
        together.wait()

    def begin(self, items: Sequence[tuple[int, int, Any]]) -> None:
        """Go on to a task's items, (position, row, locator) each; those of the one before have all been taken."""
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
        """Whether there is anything read, or being read, ahead."""
        return bool(self._ahead)

    def take_again(self) -> bytes:
        """Return the bytes of the item last taken once more, and let go of what was read ahead of its turn."""
        for future in self._ahead.values():
            future.exception()  # waits until it is there
        self._ahead.clear()
        self._unread, self._slow = self._turn, False
        return self._read(self._turn - 1)

    def _read_on(self) -> None:
        """Let threads read as many of the task's items as may be held."""
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
