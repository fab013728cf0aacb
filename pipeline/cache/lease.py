"""A lease: the right to write a cache on a file system that has no locks.

The lock file itself is the lease. It names its holder and a random token, and its holder sets its time again and again.
A lease whose time was not set for long has expired, and another process may take it over.

Only `os.link` and `os.rename` decide, which are atomic on NFS too. A link appears with its content and its name taken
is an error, so one process alone makes a lease. Who wants to change a lease that exists, to take it over or to release
it, makes a *claim* first: a link whose name holds the token of that lease, which one process alone can make. A claim is
a lease too, with a token of its own: where its maker died, it expires, and is claimed in turn.

No process is stopped by the loss of its lease, so each confirms it before it writes: `confirm_leases`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cache.holder import Holder, described, is_lock, opened, parse, progress_line, text_of
from pipeline.core.ending import unfinished
from pipeline.core.files import part_path
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEARTBEAT_S = 10.0
EXPIRED_S = 90.0
"""Age of a lease that has expired: above the 60 s for which NFS may show old times, and several heartbeats."""
CONFIRM_EVERY_S = 1.0
KEPT_S = 86400.0
"""Age at which the files that killed processes left are removed."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # which goes on while the machine sleeps
_LEFT = r"\.{}\.[0-9a-f]{{12}}\.(part|claim)"
"""Names of candidates and claims."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_held: set[Lease] = set()


class Lease:
    """A lease that is held, and renewed by a thread.

    Parameters
    ----------
    path : Path
        The lock file.
    token : str
        Its own, which the file holds.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path, self._token = path, token
        self._lost = False
        self._confirmed = time.clock_gettime(_CLOCK)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        _held.add(self)
        self._thread.start()

    def computing(self, done: int) -> None:
        """Record how many rows are ready before the first is computed."""
        with contextlib.suppress(OSError), opened(self._path, os.O_RDWR) as fd:
            if _token_in(fd) == self._token:
                os.pwrite(fd, progress_line(done).encode(), os.fstat(fd).st_size)

    def confirm(self, *, at_once: bool = True) -> None:
        """Refuse to go on when the lease was lost.

        Parameters
        ----------
        at_once : bool
            Look now, even if it was confirmed within the last second.

        Raises
        ------
        LockedError
            Another process has taken it over.
        CacheError
            The lock file cannot be read.
        """
        asked = time.clock_gettime(_CLOCK)
        if not (self._lost or at_once) and asked - self._confirmed < CONFIRM_EVERY_S:
            return
        try:
            self._lost = self._lost or not self._is_ours()
        except OSError as error:
            raise CacheError(
                f"cannot read {self._path} ({error.strerror}), which says whether this process may still write: "
                "what was committed is safe; repair the disk, then run the same command again"
            ) from None
        if self._lost:
            raise LockedError(
                f"{_cache(self._path)} was taken over by another process, since this one was suspended or cut off from "
                f"its disk for more than {EXPIRED_S:.0f} s: nothing more is written; see pipeline status"
            )
        self._confirmed = asked

    def release(self) -> None:
        """Give the lease back, unless another process has it."""
        self._ended.set()
        self._thread.join()
        _held.discard(self)
        with contextlib.suppress(OSError), _candidate(self._path) as (part, _):
            claim = _claim_on(self._path, self._token)
            if _link(part, claim):  # from here on no other process takes it over
                if _token_of(self._path) == self._token:
                    self._path.unlink()
                claim.unlink()

    def _is_ours(self) -> bool:
        return _token_of(self._path) == self._token and _token_of(_claim_on(self._path, self._token)) is None

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # where the disk stays out of reach, the lease expires
                if not self._is_ours():
                    return
                os.utime(self._path)


def confirm_leases(*, at_once: bool = True) -> None:
    """Refuse to write where this process has lost a lease; see `Lease.confirm`. Costs nothing where it holds none."""
    for lease in tuple(_held):
        lease.confirm(at_once=at_once)


def take(path: Path) -> Lease:
    """Make the lease at ``path``, or take over one that has expired.

    Raises
    ------
    LockedError
        Another process holds it.
    CacheError
        The folder cannot be written, its file system has no hard links either, or the name is that of another file.
    """
    try:
        with _candidate(path) as (part, token):
            while not (_link(part, path) or _take_over(path, part, token)):
                pass  # another process changed it at the same moment, and holds it then
            remove_old(path, path.stat().st_mtime)
            return Lease(path, token)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise CacheError(
                f"cannot lock {_cache(path)}: its file system has neither locks nor hard links ({error.strerror}), "
                "without which two runs would overwrite each other: write to another disk, and copy the file afterwards"
            ) from None
        raise CacheError(f"cannot write {path}: {error.strerror}: choose another output") from None


def remove_expired(path: Path) -> None:
    """Remove an expired lease from a file system that has locks after all, as it is mounted here.

    Raises
    ------
    LockedError
        Another process holds the lease.
    """
    with _candidate(path) as (part, _), contextlib.suppress(FileNotFoundError):
        last = _chain(path)[-1]
        _refuse_unless_expired(path, last, _clock(part))
        claim = _claim_on(path, last.token)
        if _link(part, claim):
            if _token_of(path) == last.token:
                path.unlink()
            claim.unlink()


def remove_old(path: Path, now: float) -> None:
    """Remove what killed processes left beside a lock file a day before ``now``, a time of its file system."""
    ours = re.compile(_LEFT.format(re.escape(path.name)))
    with contextlib.suppress(OSError):  # they do no harm
        for name in filter(ours.fullmatch, os.listdir(path.parent)):  # noqa: PTH208  # a name, not a path for each
            if now - (path.parent / name).stat().st_mtime > KEPT_S:
                (path.parent / name).unlink()


def is_alive(path: Path, holder: Holder) -> bool | None:
    """Return whether a lease is held; None where the folder cannot be written, and its clock not be asked."""
    if holder.is_gone:
        return False
    try:
        with _candidate(path) as (part, _), opened(path) as fd:
            return _clock(part) - os.fstat(fd).st_mtime <= EXPIRED_S
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A lease or a claim, as it is on the disk."""

    holder: Holder
    token: str
    renewed: float


def _take_over(path: Path, part: Path, token: str) -> bool:
    """Replace an expired lease by the one in ``part``; False where another process was first."""
    begun = time.clock_gettime(_CLOCK)
    try:
        chain = _chain(path)
    except FileNotFoundError:  # released
        return False
    _refuse_unless_expired(path, chain[-1], _clock(part))
    claim = _claim_on(path, chain[-1].token)
    if not _link(part, claim):
        return False
    # The claim was perhaps made late, after the lease had been renewed, released or replaced.
    if not _leads_to(path, chain, token) or time.clock_gettime(_CLOCK) - begun > EXPIRED_S / 3:
        claim.unlink()
        return False
    with contextlib.suppress(FileNotFoundError):  # a request that is repeated because its answer was lost
        part.rename(path)
    if len(chain) == 1:
        claim.unlink()
    # A claim on a claim stays: the process that made that one may go on, and must find that it comes too late.
    if _token_of(path) != token or _token_of(_claim_on(path, token)) is not None:
        raise LockedError(
            f"{_cache(path)} is being taken over by another process: wait for it, or choose another output"
        )
    return True


def _leads_to(path: Path, chain: list[_Found], token: str) -> bool:
    """Return whether a chain is as it was read, with the claim of ``token`` at its end."""
    try:
        *same, last = _chain(path)
    except FileNotFoundError:
        return False
    return same == chain and last.token == token


def _chain(path: Path) -> list[_Found]:
    """Return the lease, the claim on it, the claim on that claim, and so on; raises `FileNotFoundError` without lease.

    Raises
    ------
    LockedError, CacheError
        The file is a lock of a file system that has locks, or none of this program.
    """
    found = [_read(path, path)]
    while True:
        try:
            found.append(_read(_claim_on(path, found[-1].token), path))
        except FileNotFoundError:
            return found


def _read(file: Path, path: Path) -> _Found:
    with opened(file) as fd:
        if not is_lock(fd):
            raise CacheError(f"{file} exists and is no lock of this program: rename it, or choose another output")
        holder = parse(text_of(fd))
        if holder is None or holder.token is None:
            raise LockedError(
                f"{_cache(path)} is being written by {holder or 'another process'}, which has locked it where its disk "
                f"has locks: wait for it, or remove {file} if that process is gone"
            )
        return _Found(holder, holder.token, os.fstat(fd).st_mtime)


def _refuse_unless_expired(path: Path, found: _Found, now: float) -> None:
    if found.holder.is_gone or now - found.renewed > EXPIRED_S:
        return
    if found.holder.is_this_process:
        raise LockedError(f"{_cache(path)} is being written by this process: wait for it to finish")
    silent = max(0.0, now - found.renewed)
    raise LockedError(
        f"{_cache(path)} is being written by {found.holder}, which renewed its lease {silent:.0f} s ago: "
        f"wait for it (after {EXPIRED_S:.0f} s of silence another process may go on), or choose another output"
    )


@contextlib.contextmanager
def _candidate(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield a file beside ``path`` with the text of a lease of this process, and its token."""
    part = part_path(path)
    token = part.suffixes[-2].removeprefix(".")
    with unfinished(part):
        try:
            with part.open("xb", buffering=0) as file:
                file.write(described(token).encode())
                os.fsync(file.fileno())
            yield part, token
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _link(part: Path, name: Path) -> bool:
    """Give a candidate a second name; False where the name is taken."""
    try:
        os.link(part, name)
    except FileExistsError:
        # A client of NFS repeats a request whose answer was lost, and is told that the name, its own, is taken.
        with opened(part) as fd:
            return os.fstat(fd).st_nlink > 1
    return True


def _clock(part: Path) -> float:
    """Return the time of the file system, which may be another machine's: that of a file which is touched now."""
    os.utime(part)
    with opened(part) as fd:
        return os.fstat(fd).st_mtime


def _claim_on(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.{token}.claim")


def _token_of(file: Path) -> str | None:
    """Return the token in a lease or claim; None where there is no such file."""
    try:
        with opened(file) as fd:
            return _token_in(fd)
    except FileNotFoundError:
        return None


def _token_in(fd: int) -> str | None:
    holder = parse(text_of(fd))
    return None if holder is None else holder.token


def _cache(path: Path) -> Path:
    return path.with_suffix("")
