"""Caches of parts of one item list: whether they belong together, and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.cache.reader import Cache
    from pipeline.core.shards import ShardRecord


def check_same_shard(path: Path, found: ShardRecord | None, wanted: ShardRecord | None) -> None:
    """Refuse to resume the cache of another shard: its rows would count as removed images.

    Raises
    ------
    CacheError
        Names both.
    """
    have, want = ((r.number, r.count) if r else None for r in (found, wanted))
    if have != want:
        names = [str(record) if record else "a whole archive" for record in (wanted, found)]
        raise CacheError(
            f"expected {names[0]} in {path}, found {names[1]}: "
            + (f"pass --shard {found.number}/{found.count}" if found else "leave --shard out")
            + ", or name another output"
        )


def in_order(caches: Sequence[Cache], *, complete: bool) -> list[Cache] | None:
    """Return shards of one list in the order of its rows; None where not one of the caches is a shard.

    Parameters
    ----------
    caches : sequence of Cache
    complete : bool
        Every shard has to be there.

    Raises
    ------
    CacheError
        Shards among other caches, of different lists or numbers of shards, one twice, or one missing.
    """
    shards = [(cache.shard, cache) for cache in caches if cache.shard is not None]
    if not shards:
        return None
    first, first_cache = shards[0]
    for cache in caches:
        if cache.shard is None:
            raise CacheError(
                f"{first_cache.path} is {first} of a list, {cache.path} is no shard: put the shards together first"
            )
    by_number: dict[int, Cache] = {}
    for record, cache in shards:
        if record.count != first.count:
            raise CacheError(f"{first_cache.path} is {first}, {cache.path} is {record}: give the shards of one run")
        if (record.total, record.items_sha256) != (first.total, first.items_sha256):
            raise CacheError(
                f"{first_cache.path} and {cache.path} are shards of different item lists ({first.total} and "
                f"{record.total} images): the archive changed between the jobs; run pipeline extract for every shard "
                "again, which computes what changed"
            )
        if record.number in by_number:
            raise CacheError(
                f"{by_number[record.number].path} and {cache.path} are both {record}: leave one of them out"
            )
        if len(cache) != record.rows.stop - record.rows.start:
            raise CacheError(
                f"expected {record.rows.stop - record.rows.start} rows in {cache.path}, which is {record} of "
                f"{record.total} images, found {len(cache)}: extract it again into a new file"
            )
        by_number[record.number] = cache
    missing = [number for number in range(1, first.count + 1) if number not in by_number]
    if missing and complete:
        named = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise CacheError(
            f"expected all {first.count} shards, found {len(by_number)}; missing are {named}: run pipeline extract "
            f"--shard {missing[0]}/{first.count} and so on, or name their caches too"
        )
    return [by_number[number] for number in sorted(by_number)]
