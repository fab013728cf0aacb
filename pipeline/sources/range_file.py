"""A remote file of one version as a file object: blocks by range, read ahead where reading goes straight on."""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 4 << 20
BLOCKS_KEPT = 4
BLOCKS_AHEAD = 4
"""Blocks that are read at a time; with those kept, what a file may take of the memory."""


class RangeFile(io.RawIOBase):
    """A file that is read by range; for one thread at a time.

    Parameters
    ----------
    read : callable
        (offset, size) → exactly these bytes; raises `OSError`.
    size : int
        Bytes of the file.

    Attributes
    ----------
    error : OSError or None
        What the last read that failed raised: libraries that read a file for others lose it.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read, self._size = read, size
        self._place = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._ahead: dict[int, Future[bytes]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._last, self._straight = -1, 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; return it."""
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if place < 0:
            raise ValueError(f"expected a place in the file, found {place}")
        self._place = place
        return place

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes, fewer only at the end; all that are left for -1. Raises `OSError`."""
        left = max(self._size - self._place, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        start, end = self._place, self._place + wanted
        parts = []
        while start < end:
            number, inside = divmod(start, BLOCK_BYTES)
            part = self._block(number)[inside : inside + end - start]
            parts.append(part)
            start += len(part)
        self._place = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readall(self) -> bytes:
        """Return all that is left."""
        return self.read()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; return how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Give up what is being read ahead."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._kept.clear()
        self._ahead.clear()
        super().close()

    def _block(self, number: int) -> bytes:
        if number != self._last:
            self._straight = self._straight + 1 if number == self._last + 1 else 0
            self._last = number
            self._read_ahead(number)
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        data = self._read_before(number)
        self._kept[number] = self._fetch(number) if data is None else data
        while len(self._kept) > BLOCKS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[number]

    def _read_ahead(self, number: int) -> None:
        """Begin to read the blocks that follow: the more, the longer reading has gone straight on."""
        following = range(number + 1, min(number + 1 + min(self._straight, BLOCKS_AHEAD), self._blocks))
        for gone in set(self._ahead) - {number, *following}:
            self._ahead.pop(gone).cancel()
        for one in following:
            if one not in self._ahead and one not in self._kept:
                self._threads = self._threads or ThreadPoolExecutor(BLOCKS_AHEAD, thread_name_prefix="ahead")
                self._ahead[one] = self._threads.submit(self._bytes, one)

    def _read_before(self, number: int) -> bytes | None:
        """Return a block that was read ahead; None where it was not, or could not be."""
        future = self._ahead.pop(number, None)
        if future is not None:
            with contextlib.suppress(OSError):
                return future.result()
        return None

    def _fetch(self, number: int) -> bytes:
        try:
            return self._bytes(number)
        except OSError as error:
            self.error = error
            raise

    def _bytes(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        return self._read(start, min(BLOCK_BYTES, self._size - start))

    @property
    def _blocks(self) -> int:
        return -(-self._size // BLOCK_BYTES)
