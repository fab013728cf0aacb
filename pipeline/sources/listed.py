"""Items that the program itself lists: files by path, a sample of another source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import ItemTable
from pipeline.sources.base import FileReader, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.core.items import Reader


class ListedSource(Source):
    """A reader and the locators of its items, in the order given; the same item may occur twice.

    Parameters
    ----------
    reader : Reader
    locators : sequence
        The argument of the reader, for each item.
    """

    kind = "listed"
    location = "memory"

    def __init__(self, reader: Reader, locators: Sequence[Any]) -> None:
        self._reader, self._locators = reader, list(locators)
        unknown = np.full(len(self._locators), -1, np.int64)
        keys = np.array([str(n).encode() for n in range(len(self._locators))], dtype=np.bytes_)
        self.items = ItemTable(keys, unknown.astype(np.int32), (), unknown, unknown)

    @classmethod
    def of_files(cls, paths: Sequence[bytes]) -> ListedSource:
        """Return image files by their absolute paths."""
        return cls(FileReader(b""), paths)

    @classmethod
    def sample(cls, source: Source, rows: NDArray[np.int64]) -> ListedSource:
        """Return some items of a source without its list, such as for another node to check."""
        return cls(source.reader(), [source.locator(row) for row in rows.tolist()])

    def locator(self, i: int) -> Any:
        """Return the locator given for item ``i``."""
        return self._locators[i]

    def reader(self) -> Reader:
        """Return the reader given."""
        return self._reader
