"""Prefetching: reading the images of queued tasks concurrently, before they are decoded. Slow storage needs it.

While reads are fast, a decode worker reads each image just before it decodes it. Once reads are slow (a network file
system, an object store, a seeking disk), many threads read the images of all its queued tasks while it decodes. Images
that are neighbours in a remote archive are read by one request; see `pipeline.core.items.JoiningReader`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.decoding.read_ahead import Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.core.items import Reader

SLOW_READ_S = 0.002
"""Mean read time of a task, in seconds, above which the next images are prefetched; below, threads gain nothing."""
VERY_SLOW_READ_S = 0.02
"""Seconds of a single read after which prefetching begins at once: a task of such reads would take too long."""
AHEAD_BYTES = 64 << 20
"""Bytes that may be prefetched, counting images in progress as large as the largest of the last ones."""
JOINED_BYTES = 4 << 20
"""Bytes that one request may bring for several images."""
SIZES_KNOWN = 64
READ_THREADS = 64


@dataclass(slots=True)
class _Wanted:
    row: int
    locator: Any
    alone: bool
    together: Future[list[Any]] | None = None
    place: int = 0


class Prefetcher:
    """Reads the images of successive tasks, in order.

    Parameters
    ----------
    reader : Reader
        One that is a `pipeline.core.items.JoiningReader` reads neighbours together.
    reading : (n,) int64
        Records which rows the threads are reading, so that one that ends the process is known; n is how many
        images may be read at a time.
    no_row : int
        The value for no row.

    Attributes
    ----------
    slow : bool
        Whether it reads ahead now.
    took : float
        Seconds that the read of the last image took, by whichever thread.
    """

    def __init__(self, reader: Reader, reading: NDArray[Any], no_row: int) -> None:
        self._reader = reader
        self._span: Any = getattr(reader, "span", None)
        self._reading = reading
        self._no_row = no_row
        self._columns = list(range(len(reading)))
        self._waiting: deque[_Wanted] = deque()
        self._ahead: deque[_Wanted] = deque()
        self._last: _Wanted | None = None
        self._seconds: list[float] = []
        self._sizes: deque[int] = deque([1], maxlen=SIZES_KNOWN)
        self._line = Line()
        self._lock = threading.Lock()
        self._held = self._in_progress = 0
        self.slow, self.took = False, 0.0
        count = min(READ_THREADS, len(reading))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="read")
        # Start all of them now: their stacks must not count against the memory limit of an image.
        together = threading.Barrier(count + 1)
        for _ in range(count):
            self._threads.submit(together.wait)
        together.wait()

    def add(self, items: Sequence[tuple[int, int, Any]], *, alone: bool = False) -> None:
        """Queue the items (position, row, locator) of a task; of one that is alone nothing is read beside it."""
        self._waiting.extend(_Wanted(row, locator, alone) for _, row, locator in items)

    def begin(self) -> None:
        """Start a task: decide by the reads since the last one whether to read ahead."""
        if self._seconds:
            seconds, self._seconds = self._seconds, []
            self.slow = sum(seconds) / len(seconds) >= SLOW_READ_S

    def take(self) -> bytes:
        """Return the next item's bytes, or raise what the reader raised."""
        if self.slow:
            self._read_on()
        self._last = wanted = (self._ahead or self._waiting).popleft()
        if wanted.together is None:
            try:
                return self._read_here(wanted)
            finally:
                self.slow = self.slow or self.took >= VERY_SLOW_READ_S
        answers, self.took = wanted.together.result(), 0.0
        (found, self.took), answers[wanted.place] = answers[wanted.place], None
        if isinstance(found, BaseException):
            raise found
        data: bytes = found
        with self._lock:
            self._held -= len(data)
        return data

    @property
    def holds(self) -> bool:
        """Whether anything is prefetched or being prefetched."""
        return bool(self._ahead)

    def take_again(self) -> bytes:
        """Return the bytes of the last item again, and release all prefetched items."""
        for wanted in self._ahead:
            if wanted.together is not None:
                wanted.together.exception()  # waits until it is read
                wanted.together = None
        self._waiting.extendleft(reversed(self._ahead))
        self._ahead.clear()
        self._held, self.slow = 0, False
        assert self._last is not None
        return self._read_here(self._last)

    def _read_on(self) -> None:
        """Let threads read as many items as the limits allow; an item that is alone ends it until it is taken."""
        while self._waiting and not self._waiting[0].alone and self._columns:
            with self._lock:
                room = (AHEAD_BYTES - self._held) // max(self._sizes) - self._in_progress
            if room < 1:
                return
            group = self._next_group(min(room, len(self._columns)))
            with self._lock:
                self._in_progress += len(group)
            columns = [self._columns.pop() for _ in group]
            for column, wanted in zip(columns, group, strict=True):
                self._reading[column] = wanted.row
            future = self._threads.submit(self._read_group, [wanted.locator for wanted in group], columns)
            for place, wanted in enumerate(group):
                wanted.together, wanted.place = future, place
            self._ahead.extend(group)

    def _next_group(self, most: int) -> list[_Wanted]:
        """Take the next item from the queue, with those after it that are its neighbours in one file."""
        group = [self._waiting.popleft()]
        span = self._span and self._span(group[0].locator)
        if span is None:
            return group
        file, start, end = span
        gap = self._line.gap
        while self._waiting and not self._waiting[0].alone and len(group) < most:
            following = self._span(self._waiting[0].locator)
            if following is None or following[0] != file or not start <= following[1] <= end + gap:
                break
            if max(end, following[2]) - start > JOINED_BYTES:
                break
            end = max(end, following[2])
            group.append(self._waiting.popleft())
        return group

    def _read_group(self, locators: list[Any], columns: list[int]) -> list[Any]:
        """Return (bytes or the error, seconds) of each."""
        started = time.perf_counter()
        found: list[bytes | BaseException] = []
        try:
            found = self._read_together(locators)
        finally:
            seconds = time.perf_counter() - started
            sizes = [len(one) for one in found if isinstance(one, bytes)]
            self._note(sizes, seconds)
            with self._lock:
                self._held += sum(sizes)
                self._in_progress -= len(locators)
            for column in columns:
                self._reading[column] = self._no_row
            self._columns.extend(columns)
        return [(one, seconds) for one in found]

    def _read_together(self, locators: list[Any]) -> list[bytes | BaseException]:
        if len(locators) > 1:
            joined: list[bytes | BaseException] = self._reader.read_together(locators)  # type: ignore[attr-defined]
            return joined
        try:
            return [self._reader(locators[0])]
        except BaseException as error:  # passed on to the one who takes it
            return [error]

    def _read_here(self, wanted: _Wanted) -> bytes:
        started, size = time.perf_counter(), 0
        try:
            data = self._reader(wanted.locator)
            size = len(data)
            return data
        finally:
            self.took = time.perf_counter() - started
            self._note([size] if size else [], self.took)

    def _note(self, sizes: list[int], seconds: float) -> None:
        self._seconds.append(seconds)
        with self._lock:
            self._sizes.extend(sizes)
        if sizes:
            self._line.add(sum(sizes), seconds)
