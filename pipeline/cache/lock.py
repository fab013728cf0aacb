"""One writer at a time: a POSIX record lock on a file beside the cache, freed by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from pipeline.core.files import file_identity
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
        The folder cannot be written.
    """
    path = lock_path(cache)
    fd = _acquire(path)
    identity = file_identity(os.fstat(fd))
    _held.add(identity)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _held.discard(identity)
        # Removed while still locked: a process that opened it meanwhile notices the removal in `_acquire`.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def _acquire(path: Path) -> int:
    import fcntl

    while True:
        # Checked before it is opened: closing any descriptor of the file would release the lock of this process.
        with contextlib.suppress(OSError):
            if file_identity(path.stat()) in _held:
                raise LockedError(f"{path.with_suffix('')} is being written by this process: wait for it to finish")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CacheError(f"cannot write {path.parent}: {error.strerror}: choose another output") from None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
            os.close(fd)
            raise LockedError(
                f"{path.with_suffix('')} is being written by {holder}: wait for it, or choose another output"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if file_identity(path.stat()) == file_identity(os.fstat(fd)):
                return fd
        os.close(fd)  # the holder removed it between our opening and locking: try the new one
