"""Rows of an array too large for memory, a buffer at a time.

A map of a file is read with ordinary reads into buffers that are used again: pages of the map itself would count as the
process's own memory until the system takes them back. Runs of neighbouring rows are read whole and in the order of the
file, so that a disk is never asked for single rows; which runs share a buffer is drawn again each time.

Axes: N rows chosen, D features.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from pipeline.core.items import not_finite_error
from pipeline.core.maps import is_file_of
from pipeline.errors import HeadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from numpy.typing import NDArray

_RUN_BYTES = 256 << 10
"""What is read in one piece: long enough for a disk, short enough that a buffer holds many of them.

Archives are often sorted by class, so a run is of one class, and only many runs mix the classes.
"""

_SPARSEST = 4
"""Rows are read with the unwanted rows between them while at most this many times as many."""

BUFFER_BYTES = 384 << 20


class Chunk(NamedTuple):
    """Some of the rows: ``data[at]`` are rows number ``positions`` of those chosen."""

    data: NDArray[Any]
    at: NDArray[np.int64]
    positions: NDArray[np.int64]


class StreamedRows:
    """Chosen rows of an array of shape (M, D), never held all at once where the array is the map of a file.

    Parameters
    ----------
    array : array of shape (M, D)
        A C-ordered map of a file (`numpy.memmap`), an array in memory, or another object that returns rows by number,
        such as several maps read as one.
    index : ndarray of shape (N,), int, optional
        Which rows, ascending; all of them by default.
    """

    def __init__(self, array: Any, index: NDArray[np.int64] | None = None) -> None:
        self.array = array
        self.index = np.arange(len(array)) if index is None else index
        self.shape = (len(self.index), array.shape[1])
        self._file = _file_and_offset(array)
        self._in_memory = self._file is None and isinstance(array, np.ndarray)
        self._run = max(1, _RUN_BYTES // max(array.dtype.itemsize * array.shape[1], 1))

    def __len__(self) -> int:
        return len(self.index)

    def take(self, positions: NDArray[np.int64]) -> StreamedRows:
        """Return some of the rows, by their ascending positions among those chosen."""
        return StreamedRows(self.array, self.index[positions])

    def chunks(self, rng: np.random.Generator | None = None, buffer_bytes: int | None = None) -> Iterator[Chunk]:
        """Give every row once.

        Parameters
        ----------
        rng : Generator, optional
            Draws which runs of rows come together; else they come in order.
        buffer_bytes : int
            Size of the two buffers together, ``BUFFER_BYTES`` by default. One is read into while the other
            is used: a chunk is valid until the next.

        Raises
        ------
        HeadError
            A value read is not finite.
        """
        if self._in_memory:
            yield Chunk(self.array, self.index, np.arange(len(self)))
            return
        starts = np.arange(0, len(self), self._run)
        if rng is not None:
            starts = rng.permutation(starts)
        width = self.array.dtype.itemsize * self.shape[1]
        together = max(1, (buffer_bytes or BUFFER_BYTES) // 2 // (width * self._run))
        groups = [np.sort(starts[i : i + together]) for i in range(0, len(starts), together)]
        rows = min(together * self._run, len(self))
        buffers = [np.empty((rows, self.shape[1]), self.array.dtype) for _ in groups[:2]]
        with ThreadPoolExecutor(1) as reader, self._open() as file:
            coming = reader.submit(self._fill, file, buffers[0], groups[0])
            for number in range(len(groups)):
                chunk = coming.result()
                if number + 1 < len(groups):
                    coming = reader.submit(self._fill, file, buffers[(number + 1) % 2], groups[number + 1])
                yield chunk

    def held(self, buffer_bytes: int | None = None) -> StreamedRows:
        """Return the rows in memory where they fit a buffer, else as they are."""
        size = len(self) * self.shape[1] * self.array.dtype.itemsize
        if self._in_memory or size > (buffer_bytes or BUFFER_BYTES):
            return self
        whole = np.empty(self.shape, self.array.dtype)
        with self._open() as file:
            self._fill(file, whole, np.arange(0, len(self), self._run))
        return StreamedRows(whole)

    def _open(self) -> _Reader | _Indexed:
        """Open the file behind a map, which is read faster than the map; not where another file has its name by now."""
        if self._file is not None:
            path, offset, mapped = self._file
            with contextlib.suppress(OSError):
                file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed by the reader
                if is_file_of(mapped, file):
                    return _Reader(file, offset, self.array)
                file.close()
        return _Indexed(self.array)

    def _fill(self, file: _Reader | _Indexed, buffer: NDArray[Any], starts: NDArray[np.int64]) -> Chunk:
        positions = np.concatenate([np.arange(start, min(start + self._run, len(self))) for start in starts])
        done = 0
        for start in starts:
            index = self.index[start : start + self._run]
            out = buffer[done : done + len(index)]
            file.read(index, out)
            if not np.isfinite(out).all():
                raise not_finite_error(HeadError, int(index[np.flatnonzero(~np.isfinite(out).all(axis=1))[0]]))
            done += len(index)
        return Chunk(buffer, np.arange(done), positions)


class _Indexed:
    """Rows of several files, which their own maps read."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def read(self, index: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Put rows ``index`` into ``out``."""
        out[...] = self._array[index]


class _Reader:
    """A file open for reading rows of the array mapped from it."""

    def __init__(self, file: FileIO, offset: int, array: NDArray[Any]) -> None:
        self._file, self._offset = file, offset
        self._width, self._dtype = array.shape[1], array.dtype
        self._spare = np.empty((0, self._width), self._dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, index: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read the rows ``index``, ascending, into ``out``."""
        first, span = int(index[0]), int(index[-1] - index[0]) + 1
        if span == len(index):
            self._read_neighbours(first, out)
        elif span <= _SPARSEST * len(index):
            if len(self._spare) < span:
                self._spare = np.empty((span, self._width), self._dtype)
            spare = self._spare[:span]
            self._read_neighbours(first, spare)
            np.take(spare, index - first, axis=0, out=out)
        else:
            for row, place in zip(index.tolist(), out, strict=True):
                self._read_neighbours(row, place[None])

    def _read_neighbours(self, first: int, out: NDArray[Any]) -> None:
        self._file.seek(self._offset + first * self._width * self._dtype.itemsize)
        target = out.view(np.uint8).reshape(-1).data
        while len(target):
            count = self._file.readinto(target)
            if not count:
                raise OSError(f"{self._file.name} ends before row {first + len(out)}")
            target = target[count:]


def _file_and_offset(array: NDArray[Any]) -> tuple[str, int, Any] | None:
    """Find the file that a C-ordered array is a map of, where in it the array begins, and the map; None without one."""
    # Views of a map keep its file name and offset, but not where they begin: only the map itself knows.
    root: Any = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c" or not array.flags.c_contiguous:
        return None
    return str(root.filename), root.offset + array.ctypes.data - root.ctypes.data, root
