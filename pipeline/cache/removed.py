"""Rows that an update removes: refused where they are most of a cache, and kept for a while where they are not.

A folder that is not mounted, a table that was cut short and another folder of the same names look like an archive whose
images were removed or replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.copy import CopyPlan, fill_from
from pipeline.cache.format import file_attributes
from pipeline.cache.reader import Cache
from pipeline.cache.replace import lay_out, remove
from pipeline.core.items import Status, as_keys
from pipeline.core.limits import count_limit
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

REMOVED = ".removed.h5"
MOST = "50%"
"""Of the finished rows of a cache; an update that removes more has to be allowed."""


def removed_path(cache: Path) -> Path:
    """Return the path of the file beside ``cache`` that keeps the rows that its last update removed, itself a cache."""
    return cache.with_name(cache.name + REMOVED)


def check_removal(old: Cache, origin: NDArray[np.int64], present: NDArray[np.bool_], allowed: str | None) -> None:
    """Refuse an update that removes more finished rows than allowed.

    Parameters
    ----------
    old : Cache
        Before the update.
    origin : (N,) int64
        For each item of the new list its row in ``old``; -1 where it has none.
    present : (N_old,) bool
        Whether the new list has an item of the same key.
    allowed : str or None
        A number or a share of the finished rows; None for `MOST`.

    Raises
    ------
    CacheError
        It removes more; the message states the numbers.
    """
    done = np.asarray(old.status == Status.DONE)
    removed = done.copy()
    removed[origin[origin >= 0]] = False
    lost, total = int(removed.sum()), int(done.sum())
    if lost <= count_limit(allowed or MOST, total, "--allow-removed"):
        return
    others = int((removed & present).sum())
    found = f"{total - lost} of its {total} finished rows" if lost < total else f"none of its {total} finished rows"
    raise CacheError(
        f"expected images of {old.path} in the source, found {found} ({lost - others} images are gone, {others} are "
        "other images of the same name): mount or correct the source, name another output, or pass --allow-removed "
        f"{lost} to remove these rows"
    )


def kept_rows(cache: Cache) -> Cache | None:
    """Return the rows that the last update of ``cache`` removed, or None where there are none of its numbers."""
    path = removed_path(cache.path)
    if not path.is_file():
        return None
    kept = Cache(path)
    return kept if kept.fingerprint == cache.fingerprint and kept.layers.keys() == cache.layers.keys() else None


def keep_removed(path: Path, finished: Path) -> None:
    """Write the rows of ``path`` that ``finished``, which is to replace it, has no longer; remove those kept before.

    Raises
    ------
    CacheError
        They cannot be written; ``path`` is unchanged.
    """
    beside = removed_path(path)
    lost = np.zeros(0, np.int64) if finished == path else _lost(Cache(path), Cache(finished))
    if not len(lost):
        if beside.is_file():
            Cache(beside)  # a file of another kind is not removed
            remove(beside)
        return
    old = Cache(path)
    lay_out(
        beside,
        old.items.take(lost),
        widths=old.widths,
        dtype=old.dtype,
        attributes=file_attributes(old.spec, versions=old.versions, self_check=old.self_check, source=old.source),
        fill=lambda part: _fill(part, CopyPlan(old, lost)),
    )


def _fill(part: Path, plan: CopyPlan) -> None:
    fill_from(part, [plan])


def _lost(old: Cache, new: Cache) -> NDArray[np.int64]:
    """Return the finished rows of ``old`` whose image is in no finished row of ``new``."""
    there = as_keys(new.content_hash[np.asarray(new.status == Status.DONE)])
    done = np.flatnonzero(old.status == Status.DONE)
    return done[~np.isin(as_keys(old.content_hash[done]), there)]
