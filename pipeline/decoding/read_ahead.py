"""How far to read ahead of slow storage, by what was measured while running.

Two rules. Little's law: as many images are in flight as the run takes during one read, times a margin. And a gap
between two parts of a file is read along where it costs less than another request: what a line carries in one latency.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MARGIN = 2.0
"""Images in flight, in multiples of rate x latency; above 1, so that a run that waits for its reads grows."""
WINDOWS = 8
"""Windows of which the shortest latency counts: one that grows with the images in flight is a queue, not a distance."""
READS_KNOWN = 64
MOST_GAP = 1 << 20
"""Bytes between two members that are read along at most."""


class InFlight:
    """The number of images that a pool has in work, so that its engine does not wait for reads.

    Parameters
    ----------
    least, most : int
        Images.
    clock : callable
        Returns seconds.

    Attributes
    ----------
    images : int
        As measured so far; `least` at first.
    """

    def __init__(self, least: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.least, self._most, self._clock = least, max(least, most), clock
        self.images = least
        self._latencies: deque[float] = deque(maxlen=WINDOWS)
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew, after a pause; what is known stays."""
        self._since: float | None = None
        self._reads: list[float] = []

    def done(self, reads: Sequence[float]) -> None:
        """Count images that are done, by the seconds that their reads took, and adapt once per window."""
        now = self._clock()
        if self._since is None:  # from when on they came is not known
            self._since = now
            return
        self._reads += reads
        if len(self._reads) < self.images or now <= self._since:
            return
        rate = len(self._reads) / (now - self._since)
        # The lower quartile: repeated and large reads take longer.
        self._latencies.append(sorted(self._reads)[len(self._reads) // 4])
        wanted = math.ceil(MARGIN * rate * min(self._latencies))
        self.images = min(max(wanted, self.least), self._most)
        self._since, self._reads = now, []


class Line:
    """Latency and bandwidth of the last reads of a process."""

    def __init__(self) -> None:
        self._reads: deque[tuple[float, float]] = deque(maxlen=READS_KNOWN)

    def add(self, size: int, seconds: float) -> None:
        """Note a read of so many bytes."""
        self._reads.append((seconds, size / max(seconds, 1e-6)))

    @property
    def gap(self) -> int:
        """Bytes that cost less than another request, by the best of the last reads."""
        reads = list(self._reads)  # other threads add to it
        if not reads:
            return 0
        return min(int(min(seconds for seconds, _ in reads) * max(rate for _, rate in reads)), MOST_GAP)
