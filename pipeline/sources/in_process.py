"""Files that only this process can read, such as ``memory://``: it sends the bytes to the decode workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.sources.base import Source

if TYPE_CHECKING:
    from pipeline.core.items import ItemTable, Reader


class CarriedSource(Source):
    """Another source whose bytes travel in its locators.

    The ring of batches bounds the bytes in flight, since every locator is made just before it is sent.

    Parameters
    ----------
    source : Source
        Readable in this process only.
    """

    def __init__(self, source: Source) -> None:
        self.kind, self.location, self.address = source.kind, source.location, source.address
        self.items: ItemTable = source.items
        self.skipped = source.skipped
        self._source, self._read = source, source.reader()

    def locator(self, i: int) -> bytes | OSError:
        """Return the bytes of item ``i``, or the error of reading them."""
        try:
            return self._read(self._source.locator(i))
        except OSError as error:
            return error

    def reader(self) -> Reader:
        """Return the reader that unpacks a locator."""
        return deliver

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache."""
        return self._source.describe()


def deliver(locator: bytes | OSError) -> bytes:
    """Return the bytes that came with the locator; raises the `OSError` that it carries instead."""
    if isinstance(locator, OSError):
        raise locator
    return locator
