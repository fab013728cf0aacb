"""Some items of another source, such as a sample on which networks are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.sources.base import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.core.items import Reader


class SubsetSource(Source):
    """Items of another source by their numbers, with the label names of all of it.

    A cache of a subset is one of the whole archive that lacks rows: extracting the whole into it adds them.

    Parameters
    ----------
    whole : Source
    rows : (n,) int64
        The items, in the order of the source.
    """

    def __init__(self, whole: Source, rows: NDArray[np.int64]) -> None:
        self.kind, self.location, self.address = whole.kind, whole.location, whole.address
        self._whole, self._rows = whole, rows
        self.items = whole.items.take(rows)

    def locator(self, i: int) -> Any:
        """Return the locator of item ``i`` of the subset."""
        return self._whole.locator(int(self._rows[i]))

    def reader(self) -> Reader:
        """Return the whole source's reader."""
        return self._whole.reader()

    def describe(self) -> dict[str, str]:
        """Return where the images are, as the whole source does."""
        return self._whole.describe()
