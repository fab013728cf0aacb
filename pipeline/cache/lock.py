"""One writer at a time: a POSIX record lock on a file beside the cache, freed by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from pipeline.core.ending import unfinished, uninterrupted
from pipeline.core.files import file_identity, followed
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HOLDER = "process "
"""How the name of a holder begins."""
_held: set[tuple[int, int]] = set()
"""Locks of this process: a record lock does not exclude the process that holds it."""


def lock_path(cache: Path) -> Path:
    """Return the lock file's path."""
    return cache.with_name(cache.name + ".lock")


@contextlib.contextmanager
def write_lock(cache: Path) -> Iterator[None]:
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
            _held.add(identity)
        try:
            with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{_HOLDER}{os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            with uninterrupted():
                _held.discard(identity)
                # Removed while still locked: a process that opened it meanwhile notices the removal in `_acquire`.
                with contextlib.suppress(OSError):
                    path.unlink()
                stack.close()
                os.close(fd)


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
            holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
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
