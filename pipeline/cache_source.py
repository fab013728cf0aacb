"""The images behind a cache as a source: what training, and measuring what it gave, read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError
from pipeline.sources import Source, images_of

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.core.items import Reader


class CacheSource(Source):
    """The images that a cache was made from, as they are now; item i is row i.

    Parameters
    ----------
    cache : Cache

    Raises
    ------
    SourceError
        They cannot be opened any more.
    """

    kind = "cache"

    def __init__(self, cache: Cache) -> None:
        self.location = str(cache.path)
        self.items = cache.items
        self._reader, self._locator = images_of(cache.source, cache.items.keys)

    def locator(self, i: int) -> Any:
        """Return what the reader needs to find row ``i``.

        Raises
        ------
        SourceError
            The archive holds no such image any more.
        """
        try:
            return self._locator(i)
        except FileNotFoundError as error:
            raise SourceError(f"{error}: bring the cache up to date with pipeline extract --check-content") from None

    def reader(self) -> Reader:
        """Return what reads the images."""
        return self._reader
