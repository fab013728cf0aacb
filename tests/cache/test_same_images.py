"""Rows of two caches of the same images are matched by key and content, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.same_images import AlignedRows, common_status, open_networks, rows_of_same_images
from pipeline.errors import CacheError
from tests.cache import synthetic


@dataclass
class Cache:
    """As much of a cache as rows are matched by: a key and a content for each."""

    name: str
    keys: list[str]
    contents: list[int] = field(default_factory=list)
    status: Any = None

    def __post_init__(self) -> None:
        self.path = Path(self.name)
        self.items = SimpleNamespace(keys=np.array([key.encode() for key in self.keys], dtype=np.bytes_))
        contents = self.contents or [sum(key.encode()) % 251 for key in self.keys]
        self.content_hash = np.repeat(np.array(contents, dtype=np.uint8)[:, None], 16, axis=1)
        self.status = np.ones(len(self.keys), np.uint8) if self.status is None else np.array(self.status, np.uint8)


@given(st.permutations(["a", "b/1", "b/10", "é", "zz"]), st.permutations(["a", "b/1", "b/10", "é", "zz"]))
def test_rows_are_matched_by_key_in_any_order(mine: list[str], theirs: list[str]) -> None:
    order: Any = rows_of_same_images(Cache("a", mine), Cache("b", theirs))  # type: ignore[arg-type]
    assert [theirs[row] for row in order] == mine
    values = np.arange(10).reshape(5, 2)
    aligned = AlignedRows(values, order)
    assert aligned.shape == (5, 2)
    assert aligned[np.array([3, 0])].tolist() == values[order[[3, 0]]].tolist()
    assert np.array_equal(aligned[:], values[order])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Cache("b.h5", ["x", "z"]), "a.h5 and b.h5: .* found 2 keys in one of them alone, such as 'y'"),
        (Cache("b.h5", ["x", "y", "z"]), "found 1 keys in one of them alone, such as 'z'"),
        (Cache("b.h5", ["x"]), "found 1 keys in one of them alone, such as 'y'"),
        (Cache("b.h5", ["y", "x"], [9, 120]), "found other bytes under 1 of 2 keys, such as 'y'"),
    ],
)
def test_other_images_are_refused_with_their_number_and_the_first(theirs: Cache, message: str) -> None:
    with pytest.raises(CacheError, match=message) as caught:
        rows_of_same_images(Cache("a.h5", ["x", "y"]), theirs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_rows_that_were_never_read_differ_from_none() -> None:
    order = rows_of_same_images(
        Cache("a", ["x", "y"], [0, 5]),  # type: ignore[arg-type]
        Cache("b", ["y", "x"], [0, 7]),  # type: ignore[arg-type]
    )
    assert order.tolist() == [1, 0]


def test_a_row_is_done_where_all_caches_have_it() -> None:
    first, other = Cache("a", ["x", "y", "z"], status=[1, 1, 3]), Cache("b", ["z", "y", "x"], status=[1, 4, 1])
    order = rows_of_same_images(first, other)  # type: ignore[arg-type]
    assert common_status(first, [(other, order)]).tolist() == [1, 4, 3]  # type: ignore[arg-type, list-item]


def test_parts_of_one_network_are_one_cache_and_networks_are_several(tmp_path: Path) -> None:
    def cache(name: str, keys: list[str], width: int) -> str:
        path = synthetic.make_cache(tmp_path / name, synthetic.make_items(keys), synthetic.make_spec(width))
        return str(path)

    one, two, other = cache("1.h5", ["a"], 5), cache("2.h5", ["b"], 5), cache("o.h5", ["a"], 7)
    assert [len(found) for found in open_networks(one)] == [1]
    assert [len(found) for found in open_networks([one, two])] == [2]
    assert [found.width for found in open_networks([one, other])] == [5, 7]
    with pytest.raises(CacheError, match=r"the same numbers in .*1\.h5 and .*2\.h5: .* by a pattern"):
        open_networks([one, other, two])
    assert [found.width for found in open_networks([str(tmp_path / "[12].h5"), other])] == [5, 7]
