"""Patterns of files on this machine; ``**`` follows links to folders, but never in a circle."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import TYPE_CHECKING

from pipeline.core.files import file_identity

if TYPE_CHECKING:
    from collections.abc import Iterator


def files_like(pattern: str) -> set[str]:
    """Return the files that match; ``**`` goes through folders, hidden ones excepted.

    `glob.glob` follows a link to a folder above it until the system refuses, which takes for ever where there are two,
    and names each file many times.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return {path for path in glob.iglob(pattern) if os.path.isfile(path)}
    at = parts.index("**")
    start, rest = "/".join(parts[:at]), "/".join(parts[at + 1 :]) or "*"
    starts = glob.glob(start or "/") if at else [""]
    return {
        path
        for one in starts
        for folder in _folders(one)
        for path in files_like(os.path.join(glob.escape(folder), rest))
    }


def _folders(start: str) -> Iterator[str]:
    """Yield a folder and those below it, neither hidden ones nor what a link leads back to."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(start, frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            identity = file_identity(os.stat(folder or "."))
            entries = list(os.scandir(folder or "."))
        except OSError:  # what cannot be read matches nothing, as in a shell
            continue
        if identity in above:
            continue
        yield folder
        for entry in entries:
            with contextlib.suppress(OSError):  # a link to itself
                if not entry.name.startswith(".") and entry.is_dir():
                    pending.append((os.path.join(folder, entry.name), above | {identity}))
