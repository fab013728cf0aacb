"""The images behind a cache as a source: what training, and measuring what it gave, read again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError
from pipeline.sources.base import FileReader, ItemTable, Reader, Source

if TYPE_CHECKING:
    from pipeline.cache import Cache


class CacheSource(Source):
    """The images that a cache was made from, as they are now; item i is row i.

    Parameters
    ----------
    cache : Cache

    Raises
    ------
    SourceError
        The cache does not say where they are.
    """

    kind = "cache"

    def __init__(self, cache: Cache) -> None:
        if "root" not in cache.source:
            raise SourceError(
                f"expected a cache of image files, found {cache.path} made from {cache.source['location']}: extract "
                "its source again"
            )
        self.location = str(cache.path)
        self.items = ItemTable(**{name: getattr(cache.items, name) for name in ItemTable.__dataclass_fields__})
        self._reader = FileReader(os.fsencode(cache.source["root"]))

    def locator(self, i: int) -> Any:
        """Return what the reader needs to find row ``i``."""
        return bytes(self.items.keys[i])

    def reader(self) -> Reader:
        """Return what reads the images."""
        return self._reader
