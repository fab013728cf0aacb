from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.fitting import leaks
from pipeline.fitting.leaks import leak_of_split
from pipeline.fitting.rows import Rows
from tests.analysis.archive import archive

if TYPE_CHECKING:
    import pytest

if TYPE_CHECKING:
    import pytest


def split_rows(cache: Any) -> Rows:
    """Every third row held out."""
    split = np.where(np.arange(len(cache)) % 3 == 0, "test", "train")
    return Rows(np.arange(len(cache)), cache.labels.astype(np.int64), cache.label_names, None, split, "column")


def test_copies_on_both_sides_are_counted() -> None:
    cache = archive(30, images=False)
    rows = split_rows(cache)
    assert leak_of_split(cache, rows, cache.embeddings) is None
    cache.content_hash[3] = cache.content_hash[4]  # on both sides
    cache.content_hash[6] = cache.content_hash[9]  # both held out
    cache.embeddings[3] = cache.embeddings[4]
    cache.embeddings[0] = 2 * cache.embeddings[1] + 1e-3
    found = leak_of_split(cache, rows, cache.embeddings)
    assert found is not None
    assert "1 of 10 held-out images are byte for byte training images" in found
    assert "1 of 9 others" in found
    assert "duplicates --across split" in found


def test_of_many_rows_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = archive(30, images=False)
    rows = split_rows(cache)
    cache.embeddings[rows.split == "test"] = cache.embeddings[1]
    monkeypatch.setattr(leaks, "_WORK", 20 * cache.width * 4)
    assert "4 of 4 others" in str(leak_of_split(cache, rows, cache.embeddings))
