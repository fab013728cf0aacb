"""A part of another source, for job arrays: every job lists the whole archive and embeds its own part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.shards import Shard, ShardRecord, items_sha256
from pipeline.errors import SourceError
from pipeline.sources.base import Source

if TYPE_CHECKING:
    from pipeline.core.items import Reader


class ShardSource(Source):
    """Consecutive items of another source, with the label names of all of it.

    Parts differ by one item at most. Concatenated, they are the whole list.

    Parameters
    ----------
    whole : Source
    shard : Shard

    Attributes
    ----------
    whole : Source
    record : ShardRecord
        The record for the cache.

    Raises
    ------
    SourceError
        There are fewer items than shards.
    """

    def __init__(self, whole: Source, shard: Shard) -> None:
        if shard.count > len(whole):
            raise SourceError(
                f"expected at least as many images as shards, found {len(whole)} images and {shard.count} shards: use "
                "fewer shards"
            )
        items = whole.items
        self.whole, self.kind, self.location, self.skipped = whole, whole.kind, whole.location, whole.skipped
        self.record = ShardRecord(shard.number, shard.count, len(items), items_sha256(items))
        rows = self.record.rows
        self._first = rows.start
        self.items = items.take(rows)

    def locator(self, i: int) -> Any:
        """Return the locator of item ``i`` of the part."""
        return self.whole.locator(self._first + i)

    def reader(self) -> Reader:
        """Return the whole source's reader."""
        return self.whole.reader()

    def describe(self) -> dict[str, str]:
        """Return where the images are, as the whole source does."""
        return self.whole.describe()
