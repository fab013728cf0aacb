"""Standard streams that never interrupt the work: what cannot be written is dropped, and remembered.

A reader that goes away, a terminal that vanishes, a full disk and a descriptor that was closed before the start are
errors of a stream, not of the work: files are written all the same. Lost data change the exit code at the end; lost
messages do not.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class KeptFile(io.FileIO):
    """A descriptor for writing whose errors are kept in ``lost`` instead of being raised."""

    lost: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``, or drop it once something was lost."""
        left = memoryview(data).cast("B")
        while len(left) and self.lost is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.lost = error
            else:
                if written is None:  # set to be non-blocking by another process that shares it
                    select.select([], [self], [])
                left = left[written or 0 :]
        return memoryview(data).nbytes


def open_standard_streams() -> KeptFile:
    """Replace the standard streams; return the file behind standard output, whose ``lost`` says how it went.

    A descriptor that is closed is occupied first: the next file to be opened would otherwise get its number, and the
    messages of C libraries would be written into that file.
    """
    for fd in (0, 1, 2):
        _occupy(fd)
    out, messages = KeptFile(1, "w", closefd=False), KeptFile(2, "w", closefd=False)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    # UTF-8, as in every file; a name that is not UTF-8 keeps its bytes.
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(out), "utf-8", "surrogateescape", line_buffering=out.isatty())
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(messages), encoding, "backslashreplace", line_buffering=True)
    return out


def _occupy(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            return
        # For reading: what is written to it is lost with an error, as it was before.
        opened = os.open(os.devnull, os.O_RDONLY)
        if opened != fd:
            os.dup2(opened, fd)
            os.close(opened)
        os.set_inheritable(fd, True)
