"""Several caches of one fingerprint → one: the shards of a job array, or caches of different archives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.cache.beside import check_beside
from pipeline.cache.concat import check_all_same_numbers, common_source
from pipeline.cache.copy import CopyPlan, fill_from
from pipeline.cache.failures import append_reasons
from pipeline.cache.format import file_attributes
from pipeline.cache.lock import write_lock
from pipeline.cache.reader import Cache
from pipeline.cache.replace import lay_out
from pipeline.cache.shard import in_order
from pipeline.core.callbacks import Say, ignore
from pipeline.core.items import ItemTable, Status
from pipeline.core.outputs import check_file
from pipeline.core.shards import items_sha256
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OnDuplicate = Literal["refuse", "first", "last"]


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge.

    Attributes
    ----------
    rows, duplicates : int
        Rows of the new cache; rows left out because another with the same key was taken.
    to_do, failed : int
        Rows that have no embedding.
    """

    rows: int
    duplicates: int
    to_do: int
    failed: int


def merge(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    on_duplicate: OnDuplicate = "refuse",
    say: Say = ignore,
) -> Merged:
    """Write the rows of several caches into a new one.

    Shards of one list (see `pipeline.cache.shard`) must be complete. They are merged in the order of the list, and the
    result is the file of a single run. Of other caches' rows with the same key one is taken: a computed row before a
    failed row before a row to do. Where their content, label or columns differ, ``on_duplicate`` decides.

    Parameters
    ----------
    paths : sequence of path
        Caches of one fingerprint.
    output : path
        Must not exist; appears when it is complete.
    on_duplicate : {"refuse", "first", "last"}
        Which of the caches, in the order given, to use for an image on which they differ.
    say : callable
        Called with a message when the caches were made with different versions of libraries.

    Returns
    -------
    Merged

    Raises
    ------
    FingerprintError
        The caches hold different numbers; the message names the fields.
    CacheError
        The output exists or cannot be written, an input is damaged, the caches disagree on an image, or shards are
        missing, given twice or of different lists.
    """
    if not paths:
        raise CacheError("expected caches to merge, found an empty list: name at least one file")
    output = check_file(output, CacheError, replaceable=False)
    if output.exists():
        raise CacheError(f"expected no file at {output}, found one: remove it, or choose another output")
    check_beside(output)
    caches, is_list = _in_order([Cache(path) for path in paths], say)
    items = ItemTable.concat([cache.items for cache in caches])
    if is_list:
        _check_is_the_list(items, caches[0])
        taken = np.arange(len(items))
    else:
        taken = _choose(items, caches, on_duplicate)
    with write_lock(output):
        _write(output, items if is_list else items.take(taken), caches, _plans(caches, taken))
    result = np.concatenate([cache.status for cache in caches])[taken]
    return Merged(
        rows=len(taken),
        duplicates=len(items) - len(taken),
        to_do=int((result == Status.TODO).sum()),
        failed=int((result > Status.DONE).sum()),
    )


def _in_order(caches: list[Cache], say: Say) -> tuple[list[Cache], bool]:
    """Return the caches, with shards in the order of their list, and whether they are the shards of one list."""
    check_all_same_numbers(caches)
    shards = in_order(caches, complete=True)
    caches = shards or caches
    for cache in caches[1:]:
        if cache.versions != caches[0].versions:
            say(f"warning: {cache.path} and {caches[0].path} were made with different versions: see pipeline info")
    return caches, shards is not None


def _plans(caches: Sequence[Cache], taken: NDArray[np.int64]) -> list[CopyPlan]:
    """Return which row of which cache each row of the new file is."""
    starts = np.cumsum([0, *map(len, caches)])
    local = [taken - start for start in starts[:-1]]
    return [
        CopyPlan(cache, np.where((rows >= 0) & (rows < len(cache)), rows, -1))
        for cache, rows in zip(caches, local, strict=True)
    ]


def _write(output: Path, items: ItemTable, caches: Sequence[Cache], plans: Sequence[CopyPlan]) -> None:
    """Write the new file, atomically, and the file of reasons beside it."""

    def fill(part: Path) -> None:
        for plan, damaged in zip(plans, fill_from(part, plans), strict=True):
            if len(damaged):
                row = int(plan.origin[damaged[0]])
                raise CacheError(
                    f"{plan.source.path} is damaged: {len(damaged)} rows do not match their checksums, the first is "
                    f"row {row} ({_key(plan.source, row)!r}): restore it from a copy, or extract it again"
                )

    first = caches[0]
    lay_out(
        output,
        items,
        widths=first.widths,
        dtype=first.dtype,
        attributes=file_attributes(
            first.spec, versions=first.versions, self_check=first.self_check, source=common_source(caches)
        ),
        fill=fill,
    )
    for cache in caches:
        append_reasons(output, ((_key(cache, row), reason) for row, reason in cache.reasons().items()))


def _check_is_the_list(items: ItemTable, shard: Cache) -> None:
    """Refuse shards whose record does not match the list of their items."""
    if shard.shard is not None and items_sha256(items) != shard.shard.items_sha256:
        raise CacheError(
            f"the shards from {shard.path} on are not the item list they name: run pipeline verify on each, and "
            "extract again what is damaged"
        )


def _choose(items: ItemTable, caches: Sequence[Cache], on_duplicate: OnDuplicate) -> NDArray[np.int64]:
    """Return which rows to take, one for each key, in the order in which keys first appear."""
    owner = np.repeat(np.arange(len(caches), dtype=np.int32), [len(cache) for cache in caches])
    status = np.concatenate([cache.status for cache in caches])
    hashes = np.concatenate([cache.content_hash for cache in caches])
    _, key = np.unique(items.keys, return_inverse=True)
    rank = np.select([status == Status.DONE, status > Status.DONE], [0, 1], 2)
    age = np.arange(len(items)) if on_duplicate != "last" else -np.arange(len(items))
    order = np.lexsort((age, rank, key))
    best = np.ones(len(order), dtype=np.bool_)
    best[1:] = key[order[1:]] != key[order[:-1]]
    if on_duplicate == "refuse":
        one, other = order[:-1][~best[1:]], order[1:][~best[1:]]
        both = (status[one] == Status.DONE) & (status[other] == Status.DONE)
        reasons = {
            "content": both & np.any(hashes[one] != hashes[other], axis=1),
            "label": np.not_equal(items.labels[one], items.labels[other]),
            **{f"column {name}": _differ(column[one], column[other]) for name, column in items.columns.items()},
        }
        for what, differing in reasons.items():
            if differing.any():
                pair = int(np.flatnonzero(differing)[0])
                where = [str(caches[owner[rows[pair]]].path) for rows in (one, other)]
                raise CacheError(
                    f"{where[0]} and {where[1]} disagree on the {what} of "
                    f"{os.fsdecode(bytes(items.keys[one[pair]]))!r} ({int(differing.sum())} such rows): pass "
                    "--on-duplicate first or last to choose"
                )
    winner = np.empty(int(best.sum()), dtype=np.int64)
    winner[key[order[best]]] = order[best]
    _, appearance = np.unique(key, return_index=True)
    return winner[np.argsort(appearance)]


def _key(cache: Cache, row: int) -> str:
    return os.fsdecode(bytes(cache.items.keys[row]))


def _differ(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    differing: NDArray[np.bool_] = np.not_equal(one, other)
    return differing & ~(np.isnan(one) & np.isnan(other)) if one.dtype.kind == "f" else differing
