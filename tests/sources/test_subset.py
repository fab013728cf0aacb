"""Some items of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.sources import open_source
from pipeline.sources.subset import SubsetSource

if TYPE_CHECKING:
    from pathlib import Path


def test_a_subset_has_the_items_of_the_whole(image_folder: Path) -> None:
    whole = open_source(str(image_folder))
    rows = np.array([2, 3, 17])
    subset = SubsetSource(whole, rows)
    assert len(subset) == 3
    assert [subset[i] for i in range(3)] == [whole[row] for row in rows.tolist()]
    assert subset.items.label_names == whole.items.label_names
    read = subset.reader()
    for i, row in enumerate(rows.tolist()):
        assert read(subset.locator(i)) == (image_folder / whole[row].key).read_bytes()
    assert subset.describe() == whole.describe()
