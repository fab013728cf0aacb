"""The end of a process that a signal asked for: unfinished files are removed, nothing is raised.

An exception raised by a signal handler would surface in any line of any library: inside a finalizer it is printed and
lost, inside a callback of C code it becomes another error. So the handler of the command line ends the process itself,
and what must not stay behind is registered here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_unfinished: dict[object, str] = {}
"""Files and folders that are removed when the process is ended."""
_critical: set[object] = set()
"""Blocks that are in progress and that an end waits for; a set, because adding to it needs no lock."""
_asked: list[int] = []
"""The exit code of an end that was asked for inside such a block."""


@contextlib.contextmanager
def unfinished(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have ``path`` removed if the process is ended inside the block."""
    token = object()
    _unfinished[token] = os.fspath(path)
    try:
        yield
    finally:
        _unfinished.pop(token, None)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an end wait until the block is left: for steps of which one alone would lose something."""
    token = object()
    _critical.add(token)
    try:
        yield
    finally:
        _critical.discard(token)
        if _asked and not _critical:
            end_process(_asked[0])


def end_process(exit_code: int) -> None:
    """Remove what is unfinished and end this process at once, or as soon as no uninterrupted block is in progress."""
    if _critical:
        _asked.append(exit_code)
        return
    for path in list(_unfinished.values()):
        with contextlib.suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114  # pathlib is not loaded yet
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)  # noqa: PTH108  # as above
    os._exit(exit_code)
