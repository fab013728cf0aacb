"""The files beside a cache that a run writes under names of its own: none may be a file of another program."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pipeline.cache.failures import failures_path, is_failures
from pipeline.cache.reader import Cache
from pipeline.cache.removed import removed_path
from pipeline.cache.replace import unfinished_path
from pipeline.core.files import followed
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run_facts_path(cache: Path) -> Path:
    """Return the path of the file beside ``cache`` that says how the run went that last computed something."""
    return cache.with_name(cache.name + ".run.json")


def check_beside(cache: Path) -> None:
    """Refuse files of other programs, before the work, that have the names of files that a run writes beside ``cache``.

    The lock is checked where it is taken.

    Raises
    ------
    CacheError
        There is one; the message names it.
    """
    cache = followed(cache)
    of_run: dict[Path, Callable[[Path], bool]] = {
        unfinished_path(cache): _is_cache,
        removed_path(cache): _is_cache,
        failures_path(cache): is_failures,
        run_facts_path(cache): _is_run_facts,
    }
    for path, is_own in of_run.items():
        if os.path.lexists(path) and not (path.is_file() and (not path.stat().st_size or is_own(path))):
            raise CacheError(
                f"{path} exists and was not written by this command, which writes a file of that name beside "
                f"{cache.name}: rename it, or choose another output"
            )


def _is_cache(path: Path) -> bool:
    try:
        Cache(path)
    except CacheError:
        return False
    return True


def _is_run_facts(path: Path) -> bool:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and {"settings", "summary"} <= facts.keys()
