"""Merging: same numbers only, duplicates resolved or refused, everything that belongs to a row comes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.failures import append_reasons
from pipeline.cache.merge import merge
from pipeline.cache.verify import verify
from pipeline.core.items import ItemTable
from pipeline.errors import CacheError, FingerprintError
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path


def part(path: Path, names: list[str], labels: list[str] | None = None, **columns: Any) -> Path:
    items = synthetic.make_items(names, labels=labels)
    data = {name: np.array(values) for name, values in columns.items()}
    return synthetic.make_full(
        path, ItemTable(items.keys, items.labels, items.label_names, items.sizes, items.mtimes_ns, data)
    )


def test_rows_labels_and_columns_come_together(tmp_path: Path) -> None:
    a = part(tmp_path / "a.h5", ["1", "2"], ["bee", "cat"], split=["train", "test"], age=[1, 2])
    b = part(tmp_path / "b.h5", ["3", "long name"], ["ant", "bee"], split=["test", "test"])
    made = merge([a, b], tmp_path / "c.h5")
    assert (made.rows, made.duplicates, made.to_do, made.failed) == (4, 0, 0, 0)
    cache = open_cache(tmp_path / "c.h5")
    assert cache.keys.tolist() == ["1", "2", "3", "long name"]
    assert [cache.label_names[label] for label in cache.labels] == ["bee", "cat", "ant", "bee"]
    assert cache.columns["split"].tolist() == ["train", "test", "test", "test"]
    np.testing.assert_array_equal(cache.columns["age"], [1, 2, np.nan, np.nan])
    assert synthetic.wrong_rows(cache.path) == []
    assert cache.source["root"] == synthetic.SOURCE["root"]
    assert verify(cache.path).complete


def test_empty_caches_are_merged_and_no_cache_is_refused(tmp_path: Path) -> None:
    empty, full = part(tmp_path / "a.h5", []), part(tmp_path / "b.h5", ["1"], age=[1 << 60])
    assert merge([empty, empty], tmp_path / "c.h5").rows == 0
    assert merge([empty, full, empty], tmp_path / "d.h5").rows == 1
    assert open_cache(tmp_path / "d.h5").columns["age"].tolist() == [1 << 60]
    with pytest.raises(CacheError, match="an empty list"):
        merge([], tmp_path / "e.h5")


def test_equal_duplicates_are_resolved(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a.h5", ["1", "2", "3"]), part(tmp_path / "b.h5", ["3", "0", "1"])
    made = merge([a, b], tmp_path / "c.h5")
    assert (made.rows, made.duplicates) == (4, 2)
    assert synthetic.keys_of(tmp_path / "c.h5") == [b"1", b"2", b"3", b"0"]
    assert synthetic.wrong_rows(tmp_path / "c.h5") == []


def test_a_computed_row_is_taken_before_a_failed_one_and_one_to_do(tmp_path: Path) -> None:
    a = synthetic.make_cache(tmp_path / "a.h5", synthetic.make_items(["1", "2", "3", "4"]))
    writer = CacheWriter(a)
    writer.fail(1, 4)
    writer.fail(3, 5)
    writer.close()
    append_reasons(a, [("2", "broken"), ("4", "too large")])
    b = synthetic.make_full(tmp_path / "b.h5", synthetic.make_items(["1", "2"]))
    made = merge([a, b], tmp_path / "c.h5", on_duplicate="first")
    assert (made.to_do, made.failed) == (1, 1)
    cache = open_cache(tmp_path / "c.h5")
    assert cache.status.tolist() == [1, 1, 0, 5]
    assert cache.reasons() == {3: "too large"}
    assert synthetic.wrong_rows(cache.path) == []


def other_content(path: Path, names: list[str]) -> Path:
    synthetic.make_cache(path, synthetic.make_items(names))
    writer = CacheWriter(path)
    rows = np.arange(len(names))
    other = [f"other {name}".encode() for name in names]
    writer.write(rows, {"penultimate": synthetic.right_rows(other, 5)}, synthetic.right_hashes(other))
    writer.close()
    return path


@pytest.mark.parametrize(("rule", "winner"), [("first", b"1"), ("last", b"other 1")])
def test_other_content_under_the_same_key_is_refused_or_chosen(rule: Any, winner: bytes, tmp_path: Path) -> None:
    a = synthetic.make_full(tmp_path / "a.h5", synthetic.make_items(["0", "1"]))
    b = other_content(tmp_path / "b.h5", ["1", "2"])
    with pytest.raises(CacheError, match=r"disagree on the content of '1'.*--on-duplicate"):
        merge([a, b], tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
    merge([a, b], tmp_path / "c.h5", on_duplicate=rule)
    cache = open_cache(tmp_path / "c.h5")
    assert cache.keys.tolist() == ["0", "1", "2"]
    np.testing.assert_array_equal(cache.embeddings[1], synthetic.right_rows([winner], 5)[0])


def test_another_label_or_split_of_the_same_image_is_refused(tmp_path: Path) -> None:
    a = part(tmp_path / "a.h5", ["1", "2"], ["cat", "dog"], split=["train", "test"])
    b = part(tmp_path / "b.h5", ["1"], ["dog"], split=["train"])
    c = part(tmp_path / "c.h5", ["1"], ["cat"], split=["test"])
    with pytest.raises(CacheError, match="disagree on the label of '1'"):
        merge([a, b], tmp_path / "out.h5")
    with pytest.raises(CacheError, match="disagree on the column split of '1'"):
        merge([a, c], tmp_path / "out.h5")


def test_other_numbers_are_refused_and_named(tmp_path: Path) -> None:
    a = synthetic.make_full(tmp_path / "a.h5", 3)
    b = synthetic.make_full(tmp_path / "b.h5", 3, synthetic.make_spec(dtype="float16"))
    with pytest.raises(FingerprintError, match="expected dtype float32, got float16"):
        merge([a, b], tmp_path / "c.h5")


def test_a_damaged_input_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a.h5", ["1", "2"]), part(tmp_path / "b.h5", ["3"])
    with b.open("r+b") as raw:
        raw.seek(open_cache(b).extent("embeddings").offset)
        raw.write(b"\x01")
    with pytest.raises(CacheError, match=r"b\.h5 is damaged: 1 rows.*row 0 \('3'\)"):
        merge([a, b], tmp_path / "c.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    a = part(tmp_path / "a.h5", ["1"])
    with pytest.raises(CacheError, match="expected no file"):
        merge([a], a)
