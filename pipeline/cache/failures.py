"""Why rows failed: one JSON line per failure, in a file beside the cache. The status in the cache is what counts.

Lines are found by key, not by row number: an update of the cache renumbers rows, and the lines stay right.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pipeline.cache.lease import confirm_leases
from pipeline.cache.replace import UNFINISHED
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BEGIN = b'\n{"key": "'
_HEAD = 1 << 16


def failures_path(cache: Path) -> Path:
    """Return the path of the file beside ``cache``; an update shares that of the cache it will replace."""
    return cache.with_name(cache.name.removesuffix(UNFINISHED) + ".failures.jsonl")


def is_failures(path: Path) -> bool:
    """Return whether a file is one of these; its first lines may be cut off where runs were killed."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return _BEGIN in head or _BEGIN.startswith(head)


def append_reasons(cache: Path, reasons: Iterable[tuple[str, str]]) -> None:
    """Add lines for failed rows, durably.

    Parameters
    ----------
    cache : Path
        The cache file.
    reasons : iterable of (str, str)
        Key and reason.

    Raises
    ------
    CacheError
        The disk is full, or fails, or another process has taken over the right to write.
    """
    lines = [json.dumps({"key": key, "reason": reason}, ensure_ascii=True) for key, reason in reasons]
    if not lines:
        return
    confirm_leases(at_once=False)
    path = failures_path(cache)
    try:
        with path.open("a", encoding="ascii") as file:
            # The leading newline ends a line that a kill may have left half written.
            file.write("\n" + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CacheError(
            f"writing {path} failed ({error.strerror}): what was committed before is safe; repair the disk, then run "
            "the same command again"
        ) from None


def read_reasons(cache: Path) -> dict[str, str]:
    """Return the latest reason by key; half-written lines are skipped."""
    found: dict[str, str] = {}
    try:
        text = failures_path(cache).read_text("ascii", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
