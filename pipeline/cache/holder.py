"""What a lock file says: which process writes the cache, since when, and the lease where it holds one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN = "process "
"""How a lock file begins; an empty one is a lock too."""
_MOST_BYTES = 400
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_STAMP = r"\d{4}-[01]\d-[0-3]\dT[\d:]{8}Z"
_TEXT = re.compile(
    rf"process (?P<process>\d+) on (?P<host>\S+) since (?P<since>{_STAMP})"
    r"(?:\nlease (?P<token>[0-9a-f]{12}) of (?P<place>\S+) started (?P<started>\d+))?"
    rf"(?:\n(?P<done>\d+) rows at (?P<at>{_STAMP}))?"
)


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
    token, place, started : str, str and int, or None
        Of a lease: its own random name, the machine and name space in which ``process`` is a number, and the time of
        that machine at which the process started. None for a lock of the file system.
    """

    process: int
    host: str
    since: datetime
    done: int | None = None
    computing_since: datetime | None = None
    alive: bool | None = None
    token: str | None = None
    place: str | None = None
    started: int | None = None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since:%Y-%m-%d %H:%M} UTC"

    @property
    def is_this_process(self) -> bool:
        """Whether it is a lease of the process that asks."""
        return (self.process, self.place, self.started) == (os.getpid(), place(), start_of(os.getpid()))

    @property
    def is_gone(self) -> bool:
        """Whether it is a process of this machine that has ended; False where that cannot be known from here."""
        if self.place is None or self.place == UNKNOWN or self.place != place():
            return False
        try:
            os.kill(self.process, 0)  # /proc may hide the processes of others
        except ProcessLookupError:
            return True
        except OSError:
            return False
        started = start_of(self.process)
        return started is not None and started != self.started


UNKNOWN = "-"
"""The place of a process on a system that does not tell its machines apart."""
_ENDED = ("Z", "X")


def place() -> str:
    """Return the machine, as it runs since its last start, and the name space of its process numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"  # noqa: PTH115  # no file of that name
    return UNKNOWN


def start_of(process: int) -> int | None:
    """Return when a process started, in ticks of its machine; -1 if it has ended, None if that is not shown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in _ENDED else int(fields[19])


def described(lease: str | None = None) -> str:
    """Return the text of a lock file of this process; of a lease where its token is given."""
    text = f"{BEGIN}{os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):{_TIME}}"
    if lease is None:
        return text
    return f"{text}\nlease {lease} of {place()} started {start_of(os.getpid()) or 0}"


def progress_line(done: int) -> str:
    """Return what follows when a writer begins to compute: the rate follows from it."""
    return f"\n{done} rows at {datetime.now(UTC):{_TIME}}"


def parse(text: str) -> Holder | None:
    """Return who a text names; None where it names nobody."""
    found = _TEXT.match(text)
    # What follows the line of a lease may be half written.
    if found is None or (found["token"] is None and found.end() != len(text)):
        return None
    return Holder(
        process=int(found["process"]),
        host=found["host"],
        since=_time(found["since"]),
        done=None if found["done"] is None else int(found["done"]),
        computing_since=None if found["at"] is None else _time(found["at"]),
        token=found["token"],
        place=found["place"],
        started=None if found["started"] is None else int(found["started"]),
    )


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def text_of(fd: int) -> str:
    """Return what an open lock file holds."""
    return os.pread(fd, _MOST_BYTES, 0).decode(errors="replace")


def is_lock(fd: int) -> bool:
    """Return whether a file is a lock of this program: empty, or with the name of its holder."""
    return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(BEGIN), 0) in (b"", BEGIN.encode())


@contextlib.contextmanager
def opened(path: Path, access: int = os.O_RDONLY) -> Iterator[int]:
    """Yield a descriptor of a lock file: NFS asks its server when a file is opened, and may not for `os.stat`.

    Raises
    ------
    FileNotFoundError
        There is none, or it was removed on its server.
    """
    try:
        fd = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        raise
    try:
        yield fd
    finally:
        os.close(fd)
