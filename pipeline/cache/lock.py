"""One writer at a time: a POSIX record lock on a file beside the cache, freed by the kernel when its holder dies.

Where the file system has no locks, or locks that other hosts do not see, the same file is a lease instead
(`pipeline.cache.lease`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cache import lease
from pipeline.cache.holder import described, is_lock, opened, parse, progress_line, text_of
from pipeline.core.ending import unfinished, uninterrupted
from pipeline.core.files import file_identity, followed, part_path
from pipeline.core.system import has_local_locks
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipeline.cache.holder import Holder

LOCK = ".lock"
"""What the name of a lock file adds to that of its cache."""

_held: dict[tuple[int, int], int] = {}
"""Locks of this process and their descriptors: a record lock does not exclude the process that holds it."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, 524}
"""Numbers by which a file system says that it has no locks; 524 is Linux's own, for which C has no name."""

_FLOCK = "hhqqi"
"""Linux's ``struct flock``: type, whence, start, length, process."""


class WriteLock:
    """A lock of the file system that is held; its file names the holder."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = described()
        self._write(self._text)

    def computing(self, done: int) -> None:
        """Record how many rows are ready before the first is computed: the rate follows from it."""
        self._write(self._text + progress_line(done))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)


def lock_path(cache: Path) -> Path:
    """Return the lock file's path."""
    return cache.with_name(cache.name + LOCK)


@contextlib.contextmanager
def write_lock(cache: Path) -> Iterator[WriteLock | lease.Lease]:
    """Hold the right to write ``cache``.

    Raises
    ------
    LockedError
        Another process holds it; the message names the process and its machine.
    CacheError
        The folder cannot be written, or the lock's name is that of a file of another program.
    """
    path = lock_path(followed(cache))
    with uninterrupted():  # a lock file of another process must not be removed with this one's unfinished files
        held: AbstractContextManager[WriteLock | lease.Lease] = _leased(path) if _needs_lease(path) else _locked(path)
        lock = held.__enter__()
    try:
        yield lock
    finally:
        with uninterrupted():
            held.__exit__(None, None, None)


@contextlib.contextmanager
def _leased(path: Path) -> Iterator[lease.Lease]:
    taken = lease.take(path)
    try:
        yield taken
    finally:
        taken.release()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[WriteLock]:
    fd = _acquire(path)
    with unfinished(path):
        identity = file_identity(os.fstat(fd))
        _held[identity] = fd
        try:
            lock = WriteLock(fd)
            lease.remove_old(path, os.fstat(fd).st_mtime)
            yield lock
        finally:
            _held.pop(identity, None)
            # Removed while still locked: a process that opened it meanwhile notices the removal in `_acquire`.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


def holder_of(cache: Path) -> Holder | None:
    """Return who wrote the lock file of a cache; None where there is none, or one without a name.

    The lock is asked about, not taken: a writer that starts meanwhile is not refused.
    """
    path = lock_path(followed(cache))
    is_locked: bool | None = True
    try:
        ours = _held.get(file_identity(path.stat()))
        if ours is not None:  # closing any descriptor of the file would release the lock of this process
            holder = parse(text_of(ours))
        else:
            with opened(path) as fd:
                holder, is_locked = parse(text_of(fd)), _is_locked(fd)
    except OSError:
        return None
    if holder is None:
        return None
    return replace(holder, alive=is_locked if holder.token is None else lease.is_alive(path, holder))


def _is_locked(fd: int) -> bool | None:
    if not sys.platform.startswith("linux"):  # other systems order the fields of the structure otherwise
        return None
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with contextlib.suppress(OSError):
        kind: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK
    return None


def _needs_lease(path: Path) -> bool:
    """Return whether locks cannot be relied on in the folder of ``path``, as a file of its own shows.

    The lock file itself does not serve: once made, it could not be removed where others make leases of that name.
    """
    import fcntl

    part = part_path(path)
    try:
        if has_local_locks(path.parent):
            return True
        with unfinished(part), part.open("xb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        raise _cannot_write(path, error) from None
    return False


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
            raise _cannot_write(path, error) from None
        if not is_lock(fd):
            os.close(fd)
            raise CacheError(f"{path} exists and is no lock of this program: rename it, or choose another output")
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            name = text_of(fd).partition("\n")[0] or "another process"
            os.close(fd)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise CacheError(
                    f"cannot lock {path.with_suffix('')} ({error.strerror}): repair the disk, or choose another output"
                ) from None
            raise LockedError(
                f"{path.with_suffix('')} is being written by {name}: wait for it, or choose another output"
            ) from None
        if _is_there(path, fd) and not _is_lease(path, fd):
            return fd
        os.close(fd)  # the holder removed it between our opening and locking, or it was a lease: try the new one


def _is_there(path: Path, fd: int) -> bool:
    """Return whether an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return file_identity(path.stat()) == file_identity(os.fstat(fd))
    return False


def _is_lease(path: Path, fd: int) -> bool:
    """Return whether a file is a lease, made where this file system is mounted without locks; remove one that expired.

    Raises
    ------
    LockedError
        Its holder is there still.
    """
    holder = parse(text_of(fd))
    if holder is None or holder.token is None:
        return False
    try:
        lease.remove_expired(path)
    except LockedError:
        os.close(fd)
        raise
    return True


def _cannot_write(path: Path, error: OSError) -> CacheError:
    return CacheError(f"cannot write {path}: {error.strerror}: choose another output")
