"""Updates for a changed archive: which rows of a cache are still valid for a new item list.

`plan_update` decides, and reads only images that it must hash; `open_update` makes the file to fill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.copy import CopyPlan, fill_from
from pipeline.cache.failures import append_reasons
from pipeline.cache.reader import Cache
from pipeline.cache.removed import check_removal, kept_rows
from pipeline.cache.replace import lay_out, remove, unfinished_path
from pipeline.core.items import as_keys

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.items import ItemTable

HashItems = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""(n,) rows of the new list → (n, 16) content hashes, zeros where an image cannot be read."""


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """Which old row each item of a new list takes over, and how the archive changed.

    Attributes
    ----------
    origin : (N,) int64
        The old row of the same image; -1 where it has to be computed.
    unchanged, changed, renamed, added, deleted, relabelled : int
        Images by what happened to them. A relabelled image counts as one of the others too; a copy of a renamed image
        counts as added.
    """

    origin: NDArray[np.int64]
    unchanged: int = 0
    changed: int = 0
    renamed: int = 0
    added: int = 0
    deleted: int = 0
    relabelled: int = 0

    def counts(self) -> dict[str, int]:
        """Return the numbers of images by kind of change."""
        names = ("added", "changed", "deleted", "renamed", "relabelled", "unchanged")
        return {name: getattr(self, name) for name in names}


def plan_update(
    old: ItemTable,
    new: ItemTable,
    content_hash: NDArray[np.uint8],
    hash_items: HashItems,
    *,
    check_content: bool = False,
) -> UpdatePlan:
    """Compare two item lists.

    Same key, size and modification time: the same image. Same key and size, another time: the contents are compared.
    Another size: another image. A new key whose content is that of an image that vanished: the image was renamed.

    Parameters
    ----------
    old, new : ItemTable
        Before and now.
    content_hash : (N_old, 16) uint8
        Of the old items; zeros where unknown.
    hash_items : callable
        Hashes images of the new list; called only where key, size and time do not decide.
    check_content : bool
        Ignore times: hash every image whose old hash is known.

    Returns
    -------
    UpdatePlan
    """
    found = match(old.keys, new.keys)
    known = np.any(content_hash, axis=1)
    origin = found.copy()
    here = np.flatnonzero(found >= 0)
    before = found[here]
    same_size = np.equal(old.sizes[before], new.sizes[here])
    same_time = np.equal(old.mtimes_ns[before], new.mtimes_ns[here])
    origin[here[~same_size | ~(same_time | known[before])]] = -1
    doubtful = here[same_size & known[before] & (~same_time | check_content)]
    origin[doubtful[~_same_content(hash_items(doubtful), content_hash[found[doubtful]])]] = -1
    unchanged = int((origin[here] >= 0).sum())

    gone = np.ones(len(old), dtype=np.bool_)
    gone[before] = False
    vanished = np.flatnonzero(gone)
    arrived = np.flatnonzero(found < 0)
    movable = vanished[known[vanished]]
    candidates = arrived[np.isin(new.sizes[arrived], old.sizes[movable])]
    moved = match(as_keys(content_hash[movable]), as_keys(hash_items(candidates)))
    origin[candidates[moved >= 0]] = movable[moved[moved >= 0]]
    renamed = len(np.unique(moved[moved >= 0]))
    return UpdatePlan(
        origin,
        unchanged=unchanged,
        changed=len(here) - unchanged,
        renamed=renamed,
        added=len(arrived) - renamed,
        deleted=len(vanished) - renamed,
        relabelled=int((_label_texts(old)[old.labels[before]] != _label_texts(new)[new.labels[here]]).sum()),
    )


def match(old: NDArray[np.bytes_], new: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return for each new key the row of an equal old one, -1 where there is none.

    Examples
    --------
    >>> match(np.array([b"b", b"a"]), np.array([b"a", b"c"]))
    array([ 1, -1])
    """
    if np.array_equal(old, new):
        return np.arange(len(new))
    if not len(old):
        return np.full(len(new), -1, dtype=np.int64)
    order = np.argsort(old, kind="stable").astype(np.int64)
    place = np.minimum(np.searchsorted(old, new, sorter=order), len(old) - 1)
    rows: NDArray[np.int64] = order[place]
    return np.where(old[rows] == new, rows, -1)


def same_items(old: ItemTable, new: ItemTable) -> bool:
    """Return whether two item lists are the same in every column."""
    return (
        len(old) == len(new)
        and old.label_names == new.label_names
        and old.columns.keys() == new.columns.keys()
        and all(
            np.array_equal(getattr(old, name), getattr(new, name)) for name in ("keys", "labels", "sizes", "mtimes_ns")
        )
        and all(_equal_columns(values, new.columns[name]) for name, values in old.columns.items())
    )


def open_update(
    path: Path,
    items: ItemTable,
    hash_items: HashItems,
    *,
    dtype: str,
    attributes: Mapping[str, str | int],
    check_content: bool = False,
    allow_removed: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Path, UpdatePlan | None, int]:
    """Return the file to fill so that the cache holds ``items``: itself, or a new file beside it.

    The new file holds every old row that is still valid, and the rows of an interrupted update. Readers see the old
    one until `pipeline.cache.replace.publish` is called.

    Parameters
    ----------
    path : Path
        The cache, whose fingerprint is known to be right. Hold its write lock.
    items : ItemTable
        What it is to hold.
    hash_items, check_content
        See `plan_update`.
    dtype, attributes
        See `pipeline.cache.format.create`.
    allow_removed
        See `pipeline.cache.removed.check_removal`.
    check : callable
        Called at intervals; may raise to stop.

    Returns
    -------
    (Path, UpdatePlan or None, int)
        The file; what changed, None where nothing did; how many old rows were damaged and are computed again.

    Raises
    ------
    CacheError
        More finished rows would be removed than allowed: the source is another archive, or a part of it.
    """
    old = Cache(path)
    same = _holds(old, items, attributes)
    if not same or check_content:
        plan = plan_update(old.items, items, old.content_hash, hash_items, check_content=check_content)
        same = same and bool((plan.origin >= 0).all())
    if same:
        remove(unfinished_path(path))  # the archive changed back before an update was through
        return path, None, 0
    check_removal(old, plan.origin, match(items.keys, old.items.keys) >= 0, allow_removed)
    newer = _unfinished_update(old)
    if newer is not None and not check_content and _holds(newer, items, attributes):
        return newer.path, plan, 0
    copies = [CopyPlan(old, plan.origin)]
    if newer is not None:
        copies.insert(0, _valid_rows(newer, items, hash_items, check_content))
    if (kept := kept_rows(old)) is not None:
        copies.append(_valid_rows(kept, items, hash_items))
    _keep_reasons(path, old, items, plan.origin)
    return unfinished_path(path), plan, _lay_out_update(old, items, copies, dtype, attributes, check)


def _valid_rows(cache: Cache, items: ItemTable, hash_items: HashItems, check_content: bool = False) -> CopyPlan:
    plan = plan_update(cache.items, items, cache.content_hash, hash_items, check_content=check_content)
    return CopyPlan(cache, plan.origin)


def _lay_out_update(
    old: Cache,
    items: ItemTable,
    copies: list[CopyPlan],
    dtype: str,
    attributes: Mapping[str, str | int],
    check: Callable[[], None],
) -> int:
    """Write the file of the update with the rows that are still valid; return how many were damaged."""
    damaged: list[NDArray[np.int64]] = []

    def fill(part: Path) -> None:
        damaged.extend(fill_from(part, copies, check=check))

    lay_out(unfinished_path(old.path), items, widths=old.widths, dtype=dtype, attributes=attributes, fill=fill)
    return sum(map(len, damaged))


def _unfinished_update(old: Cache) -> Cache | None:
    """Return the file of an interrupted update of this cache; one of an earlier cache at this path is removed."""
    path = unfinished_path(old.path)
    if not path.is_file():
        return None
    newer = Cache(path)
    if newer.fingerprint == old.fingerprint:
        return newer
    remove(path)
    return None


def _keep_reasons(path: Path, old: Cache, items: ItemTable, origin: NDArray[np.int64]) -> None:
    """Write the reasons of renamed failed images under the new key."""
    reasons = old.reasons()
    rows = np.flatnonzero(np.isin(origin, list(reasons))) if reasons else ()
    renamed = [
        (os.fsdecode(bytes(items.keys[row])), int(origin[row]))
        for row in rows
        if items.keys[row] != old.items.keys[origin[row]]
    ]
    append_reasons(path, [(key, reasons[row]) for key, row in renamed])


def _holds(cache: Cache, items: ItemTable, attributes: Mapping[str, str | int]) -> bool:
    """Return whether a cache is one of these items, at this place."""
    return same_items(cache.items, items) and not _moved(cache, attributes)


def _moved(cache: Cache, attributes: Mapping[str, str | int]) -> bool:
    def place(source: Mapping[str, str]) -> str:
        return source.get("root") or source.get("address") or source["location"]

    elsewhere = place(cache.source) != place(json.loads(str(attributes["source"])))
    # The list as a whole may have changed where this shard of it did not.
    return bool(elsewhere or (cache.shard and cache.shard.to_json()) != attributes.get("shard"))


def _same_content(found: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (found == known).all(axis=1)
    return same


def _label_texts(items: ItemTable) -> NDArray[np.str_]:
    """Return the label names, with the one for no label at the end, where index -1 finds it."""
    return np.array([*items.label_names, "\0none"])


def _equal_columns(old: NDArray[Any], new: NDArray[Any]) -> bool:
    return old.dtype.kind == new.dtype.kind and bool(np.array_equal(old, new, equal_nan=old.dtype.kind == "f"))
