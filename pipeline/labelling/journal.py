"""The journal of a labelling session: one line an action, on the disk before the action is shown as done.

A line is a JSON object, a tab, and the CRC-32 of the JSON's bytes as eight hexadecimal digits. The first line says what
the file is. Lines are only ever appended. A kill or a power cut can damage the last line alone: it belongs to an action
that was never shown as done, and is removed when the file is opened next.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

from pipeline.cache.lease import confirm_leases
from pipeline.errors import PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = "embedding-pipeline labels"
VERSION = 1

Entry = dict[str, Any]


class LabelError(PipelineError):
    """Labels cannot be read, written or given as asked."""


class Journal:
    """An append-only file of entries; the caller holds the lock on it.

    Parameters
    ----------
    path : Path
        The file; made where there is none.
    header : mapping
        Further facts for the first line of a new file.

    Attributes
    ----------
    header : dict
        The first line of the file.
    entries : list of dict
        What the file held when it was opened, without the header.
    dropped : bool
        Whether an unfinished last line was removed.

    Raises
    ------
    LabelError
        The file is not a journal, of a newer format, damaged before its last line, or cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.dropped = False
        self._broken = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            data = _read(self._fd)
        except OSError as error:
            raise LabelError(f"cannot write {path} ({error.strerror}): choose another output") from None
        try:
            self._open(data, header)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, *entries: Mapping[str, Any], sync: bool = True) -> None:
        """Write entries at the end, and return when they are on the disk.

        Parameters
        ----------
        *entries : mapping
            What JSON can hold.
        sync : bool
            False for entries whose loss does not matter; they reach the disk with the next ones.

        Raises
        ------
        LabelError
            They cannot be written: none of them counts. After a failed sync nothing is written any more, since it is
            unknown what is on the disk.
        CacheError
            Another process has taken over the right to write.
        """
        confirm_leases(at_once=False)
        if self._broken:
            raise LabelError(f"{self.path} could not be synced to its disk: start pipeline label again")
        data = b"".join(map(_line, entries))
        try:
            _write(self._fd, data, self._size)
        except OSError as error:
            self._truncate()
            raise LabelError(
                f"cannot write {self.path} ({error.strerror}): free space, then repeat the action"
            ) from None
        if sync:
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._broken = True
                raise LabelError(
                    f"cannot sync {self.path} to its disk ({error.strerror}): start pipeline label again"
                ) from None
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self, data: bytes, header: Mapping[str, Any]) -> None:
        lines, self._size = _parse(data, self.path)
        if self._size < len(data):
            self.dropped = True
            self._truncate()
        if lines:
            self.header, self.entries = lines[0], lines[1:]
            _check_header(self.header, self.path)
            return
        self.header, self.entries = {"format": FORMAT, "version": VERSION, **header}, []
        self.append(self.header)
        _sync_folder(self.path)

    def _truncate(self) -> None:
        """Remove what stands behind the last complete line; where that fails, nothing may follow it."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._broken = True


def read_journal(path: Path) -> tuple[Entry, list[Entry]]:
    """Return the header and the entries of a journal that another process may be writing.

    Raises
    ------
    LabelError
        As for `Journal`.
    """
    try:
        lines, _ = _parse(path.read_bytes(), path)
    except OSError as error:
        raise LabelError(f"cannot read {path} ({error.strerror}): check the path") from None
    if not lines:
        raise LabelError(f"expected a journal of labels at {path}, found nothing in it: check the path")
    _check_header(lines[0], path)
    return lines[0], lines[1:]


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"%s\t%08x\n" % (text, zlib.crc32(text))


def _parse(data: bytes, path: Path) -> tuple[list[Entry], int]:
    """Return the entries, and the length of what they take; only the last line may be damaged."""
    entries: list[Entry] = []
    size = 0
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            if number == len(lines) and not (number == 1 and line.endswith(b"\n")):
                break
            what = "a journal of labels" if number == 1 else f"line {number} of a journal undamaged"
            raise LabelError(
                f"expected {what} at {path}, found something else: restore it from a copy, or move it away"
            )
        entries.append(entry)
        size += len(line)
    return entries, size


def _entry(line: bytes) -> Entry | None:
    text, _, crc = line.partition(b"\t")
    if not line.endswith(b"\n") or crc != b"%08x\n" % zlib.crc32(text):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _check_header(header: Entry, path: Path) -> None:
    if header.get("format") != FORMAT:
        raise LabelError(f"expected a journal of labels at {path}, found something else: choose another output")
    if header.get("version") != VERSION:
        raise LabelError(
            f"{path} has format version {header.get('version')}, this program knows {VERSION}: update the program"
        )


def _read(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _sync_folder(path: Path) -> None:
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LabelError(f"cannot sync {path.parent} ({first_line(error)}): choose another output") from None
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def texts_of(values: Sequence[Any]) -> list[str]:
    """Return values of an entry as texts.

    Raises
    ------
    LabelError
        One is none.
    """
    for value in values:
        if not isinstance(value, str):
            raise LabelError(f"expected a text, found {type(value).__name__}: reload the page")
    return list(values)
