"""Writing rows: a kill or a power cut at any moment loses no committed row and shows no wrong row.

The commit order is: the rows' bytes, checksums and hashes; ``fdatasync``; only then their status. Every write goes to a
fixed offset of a file whose space is already reserved; nothing but `os.pwrite` touches it.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.format import (
    CONTENT_HASH,
    CRC,
    EMBEDDINGS,
    LAYERS,
    LEDGER_CRC,
    STATUS,
    ledger_crcs,
    read_extents,
    row_crcs,
)
from pipeline.cache.lease import confirm_leases
from pipeline.core.items import HASH_BYTES, Status
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class CacheWriter:
    """Fills the rows of a laid-out cache. Hold `pipeline.cache.lock.write_lock` while one is open.

    Parameters
    ----------
    path : Path
        A file made by `pipeline.cache.format.create`.

    Notes
    -----
    Rows become visible to readers, and safe from a power cut, at `commit`. A `commit` that fails closes the writer:
    what the kernel did with the pages is then unknown, so nothing is retried; the rows stay to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        extents = read_extents(path)
        self._row_extents = {
            PENULTIMATE: extents[EMBEDDINGS],
            **{name.removeprefix(LAYERS + "/"): e for name, e in extents.items() if name.startswith(LAYERS + "/")},
        }
        self._status, self._crc = extents[STATUS], extents[CRC]
        self._ledger, self._hash = extents[LEDGER_CRC], extents[CONTENT_HASH]
        self._pending: dict[int, int] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CacheError(
                f"cannot write {path} ({error.strerror}): change its permissions, or choose another output"
            ) from None
        if (names := os.fstat(self._fd).st_nlink) > 1:
            # A backup may share the file, and another run may write it under its other name, with another lock.
            self._abandon()
            raise CacheError(
                f"{path} has {names} names (hard links), and writing it would change it under all of them: make a copy "
                "of it, and put the copy in its place"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of their bytes under the checksum."""
        return tuple(self._row_extents)

    def write(
        self,
        rows: NDArray[np.int64],
        outputs: Mapping[str, NDArray[Any]],
        hashes: NDArray[np.uint8],
        statuses: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write finished rows; `commit` makes them visible.

        Parameters
        ----------
        rows : (n,) int64
            Row numbers, ascending.
        outputs : mapping of str to (n, D) array
            Embeddings of every layer; cast to the file's type.
        hashes : (n, 16) uint8
            Content hashes.
        statuses : (n,) uint8, optional
            What to record; done where left out.
        """
        self._write_rows(
            rows, outputs, hashes, np.full(len(rows), Status.DONE, dtype=np.uint8) if statuses is None else statuses
        )

    def fail(self, row: int, status: int, content_hash: bytes = bytes(HASH_BYTES)) -> None:
        """Record a row's failure: zeros as its embedding, and why."""
        zeros = {name: np.zeros((1, extent.shape[1]), extent.dtype) for name, extent in self._row_extents.items()}
        hashes = np.frombuffer(content_hash, dtype=np.uint8).reshape(1, HASH_BYTES)
        self._write_rows(np.array([row]), zeros, hashes, np.array([status], dtype=np.uint8))

    def commit(self) -> int:
        """Make everything written so far durable, then mark it as done.

        Returns
        -------
        int
            How many rows were committed.

        Raises
        ------
        CacheError
            The disk failed, or another process has taken over the right to write; the writer is closed, and the rows
            not yet committed stay to do.
        """
        if not self._pending:
            return 0
        self._sync()
        self._confirm(at_once=True)
        rows = np.array(sorted(self._pending), dtype=np.int64)
        self._put_status(rows, np.array([self._pending[row] for row in rows.tolist()], dtype=np.uint8))
        self._pending.clear()
        return len(rows)

    def reopen(self, rows: NDArray[np.int64]) -> None:
        """Set failed rows to do again, durably, before anything of them is written."""
        self._confirm(at_once=True)
        self._put_status(rows, np.zeros(len(rows), dtype=np.uint8))
        self._sync()

    def close(self) -> None:
        """Commit, make the statuses durable too, and close the file."""
        if self._fd < 0:
            return
        try:
            self.commit()
            self._sync()
        finally:
            self._abandon()

    def _confirm(self, *, at_once: bool) -> None:
        try:
            confirm_leases(at_once=at_once)
        except CacheError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_rows(
        self,
        rows: NDArray[np.int64],
        outputs: Mapping[str, NDArray[Any]],
        hashes: NDArray[np.uint8],
        statuses: NDArray[np.uint8],
    ) -> None:
        self._confirm(at_once=False)
        arrays = {name: np.ascontiguousarray(outputs[name], dtype=e.dtype) for name, e in self._row_extents.items()}
        crcs = row_crcs(rows, list(arrays.values()))
        ledger = ledger_crcs(rows, statuses, crcs, hashes)
        for start, stop in _runs(rows):
            for name, array in arrays.items():
                self._put(self._row_extents[name], int(rows[start]), array[start:stop])
            self._put(self._crc, int(rows[start]), crcs[start:stop])
            self._put(self._ledger, int(rows[start]), ledger[start:stop])
            self._put(self._hash, int(rows[start]), np.ascontiguousarray(hashes[start:stop]))
        self._pending.update(zip(rows.tolist(), statuses.tolist(), strict=True))

    def _put_status(self, rows: NDArray[np.int64], statuses: NDArray[np.uint8]) -> None:
        for start, stop in _runs(rows):
            self._put(self._status, int(rows[start]), statuses[start:stop])

    def _put(self, extent: Any, row: int, array: NDArray[Any]) -> None:
        if not 0 <= row <= extent.shape[0] - len(array):
            raise IndexError(f"rows {row} to {row + len(array) - 1} of {extent.shape[0]}")
        data = array.data.cast("B") if array.size else memoryview(b"")
        offset = extent.offset + row * extent.row_bytes
        try:
            while len(data):
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            self._give_up("writing", error)

    def _sync(self) -> None:
        try:
            _datasync(self._fd)
        except OSError as error:
            self._give_up("syncing", error)

    def _give_up(self, doing: str, error: OSError) -> None:
        self._abandon()
        raise CacheError(
            f"{doing} {self.path} failed ({error.strerror}): what was committed before is safe; repair the disk, then "
            "run the same command again"
        ) from None


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each stretch of consecutive row numbers."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    yield from ((start, stop) for start, stop in itertools.pairwise(edges) if stop > start)
