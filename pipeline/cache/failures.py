"""Why rows failed: one JSON line per failure, in a file beside the cache. The status in the cache is what counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def failures_path(cache: Path) -> Path:
    """Return the path of the file beside ``cache``."""
    return cache.with_name(cache.name + ".failures.jsonl")


def append_reasons(cache: Path, reasons: Mapping[int, tuple[str, str]]) -> None:
    """Add lines for failed rows.

    Parameters
    ----------
    cache : Path
        The cache file.
    reasons : mapping of int to (str, str)
        Key and reason by row.
    """
    if not reasons:
        return
    lines = [
        json.dumps({"row": row, "key": key, "reason": reason}, ensure_ascii=True) for row, (key, reason) in reasons.items()
    ]
    with failures_path(cache).open("a", encoding="ascii") as file:
        # The leading newline ends a line that a kill may have left half written.
        file.write("\n" + "\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_reasons(cache: Path) -> dict[int, str]:
    """Return the latest reason of each row; half-written lines are passed over."""
    found: dict[int, str] = {}
    try:
        text = failures_path(cache).read_text("ascii", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            found[int(entry["row"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
