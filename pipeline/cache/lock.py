"""One writer at a time: a POSIX record lock on a file beside the cache, freed by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.core.ending import unfinished, uninterrupted
from pipeline.core.files import file_identity, followed
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = ".lock"
"""What the name of a lock file adds to that of its cache."""

_HOLDER = "process "
"""How the name of a holder begins."""
_held: dict[tuple[int, int], int] = {}
"""Locks of this process and their descriptors: a record lock does not exclude the process that holds it."""

_STAMP = r"\d{4}-[01]\d-[0-3]\dT[\d:]{8}Z"
_TEXT = re.compile(
    rf"process (?P<process>\d+) on (?P<host>\S+) since (?P<since>{_STAMP})(?:\n(?P<done>\d+) rows at (?P<at>{_STAMP}))?"
)
"""What a lock file holds."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"

_FLOCK = "hhqqi"
"""Linux's ``struct flock``: type, whence, start, length, process."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wrote a lock file.

    Attributes
    ----------
    process : int
    host : str
    since : datetime
        When it began, in UTC.
    done, computing_since : int and datetime, or None
        How many rows were ready when it began to compute, and when; None before.
    alive : bool or None
        Whether it holds the lock still; None where the system does not say.
    """

    process: int
    host: str
    since: datetime
    done: int | None
    computing_since: datetime | None
    alive: bool | None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since:%Y-%m-%d %H:%M} UTC"


class WriteLock:
    """A lock that is held; its file names the holder."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = f"{_HOLDER}{os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):{_TIME}}"
        self._write(self._text)

    def computing(self, done: int) -> None:
        """Record how many rows are ready before the first is computed: the rate follows from it."""
        self._write(f"{self._text}\n{done} rows at {datetime.now(UTC):{_TIME}}")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)


def lock_path(cache: Path) -> Path:
    """Return the lock file's path."""
    return cache.with_name(cache.name + LOCK)


@contextlib.contextmanager
def write_lock(cache: Path) -> Iterator[WriteLock]:
    """Hold the right to write ``cache``.

    Raises
    ------
    LockedError
        Another process holds it; the message names the process and its machine.
    CacheError
        The folder cannot be written, or the lock's name is that of a file of another program.
    """
    path = lock_path(followed(cache))
    with contextlib.ExitStack() as stack:
        with uninterrupted():  # a lock file of another process must not be removed with this one's unfinished files
            fd = _acquire(path)
            stack.enter_context(unfinished(path))
            identity = file_identity(os.fstat(fd))
            _held[identity] = fd
        try:
            yield WriteLock(fd)
        finally:
            with uninterrupted():
                _held.pop(identity, None)
                # Removed while still locked: a process that opened it meanwhile notices the removal in `_acquire`.
                with contextlib.suppress(OSError):
                    path.unlink()
                stack.close()
                os.close(fd)


def holder_of(cache: Path) -> Holder | None:
    """Return who wrote the lock file of a cache; None where there is none, or one without a name.

    The lock is asked about, not taken: a writer that starts meanwhile is not refused.
    """
    path = lock_path(followed(cache))
    try:
        ours = _held.get(file_identity(path.stat()))
        # Closing any descriptor of the file would release the lock of this process.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if ours is None else ours
    except OSError:
        return None
    try:
        found = _TEXT.fullmatch(_text_of(fd))
        alive = True if ours is not None else _is_locked(fd)
    finally:
        if ours is None:
            os.close(fd)
    if found is None:
        return None
    done, at = (None, None) if found["at"] is None else (int(found["done"]), _time(found["at"]))
    return Holder(int(found["process"]), found["host"], _time(found["since"]), done, at, alive)


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def _text_of(fd: int) -> str:
    return os.pread(fd, 400, 0).decode(errors="replace")


def _is_locked(fd: int) -> bool | None:
    if not sys.platform.startswith("linux"):  # other systems order the fields of the structure otherwise
        return None
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with contextlib.suppress(OSError):
        kind: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK
    return None


def _acquire(path: Path) -> int:
    import fcntl

    while True:
        # Checked before it is opened: closing any descriptor of the file would release the lock of this process.
        with contextlib.suppress(OSError):
            if file_identity(path.stat()) in _held:
                raise LockedError(f"{path.with_suffix('')} is being written by this process: wait for it to finish")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise CacheError(f"cannot write {path}: {error.strerror}: choose another output") from None
        if not _is_lock(fd):
            os.close(fd)
            raise CacheError(f"{path} exists and is no lock of this program: rename it, or choose another output")
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(fd)
                with contextlib.suppress(OSError):
                    path.unlink()
                raise CacheError(
                    f"cannot lock {path.with_suffix('')}: its file system has no locks ({error.strerror}), without "
                    "which two runs would overwrite each other: write to another disk, and copy the file afterwards"
                ) from None
            holder = _text_of(fd).partition("\n")[0] or "another process"
            os.close(fd)
            raise LockedError(
                f"{path.with_suffix('')} is being written by {holder}: wait for it, or choose another output"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if file_identity(path.stat()) == file_identity(os.fstat(fd)):
                return fd
        os.close(fd)  # the holder removed it between our opening and locking: try the new one


def _is_lock(fd: int) -> bool:
    """Return whether a file is a lock of this program: empty, or with the name of its holder."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    return os.pread(fd, len(_HOLDER), 0) in (b"", _HOLDER.encode())
