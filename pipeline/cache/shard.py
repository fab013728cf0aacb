"""Which part of a whole item list a cache holds: what a job of an array records, and what a merge checks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.format import canonical_json
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.cache.reader import Cache
    from pipeline.core.items import ItemTable

HASHED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The attribute ``shard`` of a cache that holds one of several consecutive parts of an item list.

    Attributes
    ----------
    number, count : int
        Part ``number`` of ``count``, from 1.
    total : int
        ItemTable of the whole list.
    items_sha256 : str
        Of the whole list, see `items_sha256`.
    """

    number: int
    count: int
    total: int
    items_sha256: str

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    @property
    def rows(self) -> slice:
        """The rows of the whole list that this part holds; parts differ by one row at most."""
        return slice((self.number - 1) * self.total // self.count, self.number * self.total // self.count)

    def to_json(self) -> str:
        """Return the attribute's text."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """Read the attribute's text.

        Raises
        ------
        ValueError
            It is something else.
        """
        try:
            record = cls(**json.loads(text))
            sound = 1 <= record.number <= record.count <= record.total
        except TypeError:
            sound = False
        if not sound:
            raise ValueError(f"no shard: {text[:60]}")
        return record


def items_sha256(items: ItemTable) -> str:
    """Return the SHA-256 of an item list: keys, sizes, labels and columns.

    Times are left out: a copy of the archive on another node has others.
    """
    digest = hashlib.sha256(canonical_json([len(items), list(items.label_names), sorted(items.columns)]).encode())
    for name in sorted(items.columns):
        _add(digest, items.columns[name])
    for values in (items.keys, items.sizes, items.labels):
        _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, values: NDArray[Any]) -> None:
    """Hash a column by its values, not by how wide an array holds them."""
    digest.update(values.dtype.kind.replace("U", "S").encode())
    for start in range(0, len(values), HASHED_AT_ONCE):
        part = values[start : start + HASHED_AT_ONCE]
        if part.dtype.kind == "U":
            part = np.char.encode(part, "utf-8", "surrogateescape")
        if part.dtype.kind == "S":
            digest.update(np.char.str_len(part).astype("<i4").tobytes())
            digest.update(b"".join(part.tolist()))
        else:
            digest.update(part.astype(part.dtype.newbyteorder("<")).tobytes())


def check_same_shard(path: Path, found: ShardRecord | None, wanted: ShardRecord | None) -> None:
    """Refuse to go on with the cache of another shard: its rows would be taken for images that are gone.

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
