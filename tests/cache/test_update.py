"""Following a changing archive: the plan, the copy, interruptions, and what readers see meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.replace import publish, unfinished_path
from pipeline.cache.update import match, open_update, plan_update
from pipeline.cache.verify import verify
from pipeline.core.items import HASH_BYTES, ItemTable
from pipeline.errors import CacheError
from tests.cache import synthetic
from tests.cache.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Archive = dict[str, tuple[str, int]]
"""Key → (content, time)."""

KEYS = st.text("ab/é\n", min_size=1, max_size=3)
ARCHIVES = st.dictionaries(KEYS, st.tuples(st.sampled_from(["x", "y", "zz", "ww", ""]), st.integers(1, 2)), min_size=1)


def items_of(archive: Archive) -> ItemTable:
    return ItemTable(
        keys=np.array([key.encode() for key in archive], dtype=np.bytes_),
        labels=np.full(len(archive), -1, dtype=np.int32),
        label_names=(),
        sizes=np.array([len(content) for content, _ in archive.values()], dtype=np.int64),
        mtimes_ns=np.array([time for _, time in archive.values()], dtype=np.int64),
        columns={},
    )


def hashes_of(archive: Archive) -> NDArray[np.uint8]:
    return synthetic.right_hashes([content.encode() for content, _ in archive.values()])


def plan_of(old: Archive, new: Archive, **options: Any) -> tuple[Any, list[int]]:
    asked: list[int] = []

    def hash_items(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.extend(rows.tolist())
        return hashes_of(new)[rows]

    return plan_update(items_of(old), items_of(new), hashes_of(old), hash_items, **options), asked


@settings(max_examples=300, deadline=None)
@given(old=ARCHIVES, new=ARCHIVES, check=st.booleans())
@example(old={"a": ("x", 1), "b": ("x", 1)}, new={"c": ("x", 1), "d": ("x", 1), "e": ("x", 1)}, check=False)
def test_the_plan_takes_over_equal_content_and_nothing_else(old: Archive, new: Archive, check: bool) -> None:
    if not check:  # size and time tell the truth, as they do for files that were not meant to deceive
        for key in old.keys() & new.keys():
            if old[key][1] == new[key][1] and len(old[key][0]) == len(new[key][0]):
                new[key] = old[key]
    plan, asked = plan_of(old, new, check_content=check)
    old_keys, new_keys = list(old), list(new)
    for row, origin in enumerate(plan.origin.tolist()):
        key = new_keys[row]
        if origin >= 0:
            assert old[old_keys[origin]][0] == new[key][0]
            assert old_keys[origin] == key or (key not in old and old_keys[origin] not in new)
        elif key in old:
            assert old[key][0] != new[key][0]
        else:
            gone = [content for other, (content, _) in old.items() if other not in new]
            assert new[key][0] not in gone
    same = [key for key in new if key in old and old[key][0] == new[key][0]]
    assert plan.unchanged == len(same)
    assert plan.changed == len(old.keys() & new.keys()) - len(same)
    assert plan.unchanged + plan.changed + plan.deleted + plan.renamed == len(old)
    assert plan.unchanged + plan.changed + plan.added + plan.renamed == len(new)
    if old == new and not check:
        assert asked == []


def test_a_touched_file_is_looked_at_and_another_size_is_not() -> None:
    old: Archive = {"a": ("x", 1), "b": ("x", 1), "c": ("x", 1)}
    plan, asked = plan_of(old, {"a": ("x", 2), "b": ("y", 2), "c": ("long", 2)})
    assert asked == [0, 1]
    assert plan.origin.tolist() == [0, -1, -1]
    assert plan.counts() == {
        "added": 0, "changed": 2, "deleted": 0, "renamed": 0, "relabelled": 0, "unchanged": 1,
    }  # fmt: skip


def test_a_changed_file_with_its_old_size_and_time_is_found_by_content_only() -> None:
    old, new = {"a": ("x", 1)}, {"a": ("y", 1)}
    assert plan_of(old, new)[0].changed == 0
    assert plan_of(old, new, check_content=True)[0].changed == 1


def test_an_image_that_was_never_read_keeps_its_failure_until_its_file_changes() -> None:
    items = items_of({"a": ("x", 1)})
    unknown = np.zeros((1, HASH_BYTES), np.uint8)

    def never(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        assert len(rows) == 0
        return unknown[:0]

    assert plan_update(items, items, unknown, never, check_content=True).origin.tolist() == [0]
    assert plan_update(items, items_of({"a": ("x", 2)}), unknown, never).origin.tolist() == [-1]


def test_labels_are_compared_by_name() -> None:
    old = synthetic.make_items(["a", "b"], labels=["bee", "cat"])
    new = synthetic.make_items(["a", "b"], labels=["ant", "cat"])
    hashes = synthetic.right_hashes([b"a", b"b"])
    plan = plan_update(old, new, hashes, lambda rows: hashes[rows])
    assert (plan.relabelled, plan.unchanged) == (1, 2)


@given(old=st.sets(st.binary(min_size=1, max_size=3)), new=st.lists(st.binary(min_size=1, max_size=3)))
def test_match_finds_equal_keys(old: set[bytes], new: list[bytes]) -> None:
    old_keys = [key for key in old if not key.endswith(b"\0")]
    new_keys = [key for key in new if not key.endswith(b"\0")]
    expected = [old_keys.index(key) if key in old_keys else -1 for key in new_keys]
    found = match(np.array(old_keys, dtype=np.bytes_), np.array(new_keys, dtype=np.bytes_))
    assert found.tolist() == expected


# ---- with files ----


def successor(path: Path, items: ItemTable, **options: Any) -> tuple[Path, Any, int]:
    """Open the successor; images have their right content, whatever it was before."""
    keys = [bytes(key) for key in items.keys]
    attributes = synthetic.attributes_of(open_cache(path).spec) | options.pop("attributes", {})
    return open_update(
        path,
        items,
        lambda rows: synthetic.right_hashes([keys[row] for row in rows]),
        dtype=str(open_cache(path).dtype),
        attributes=attributes,
        **options,
    )


def names(*numbers: int) -> list[str]:
    return [f"{number:04d}.png" for number in numbers]


def test_the_same_items_go_on_in_the_same_file(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 10)
    before = path.read_bytes()
    target, plan, damaged = successor(path, synthetic.make_items(10))
    assert (target, plan, damaged) == (path, None, 0)
    assert successor(path, synthetic.make_items(10), check_content=True)[:2] == (path, None)
    assert path.read_bytes() == before
    assert not unfinished_path(path).exists()


def test_an_update_keeps_what_stands_and_readers_see_the_old_file_until_it_is_whole(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", synthetic.make_items(names(*range(20))))
    before = path.read_bytes()
    items = synthetic.make_items(names(*range(5, 25)))
    target, plan, _ = successor(path, items)
    assert target == unfinished_path(path)
    assert (plan.added, plan.deleted, plan.unchanged) == (5, 5, 15)
    assert open_cache(target).status.tolist() == [1] * 15 + [0] * 5
    assert synthetic.wrong_rows(target) == []
    assert path.read_bytes() == before
    synthetic.fill(target)
    publish(target, path)
    assert not target.exists()
    assert synthetic.keys_of(path) == [bytes(key) for key in items.keys]
    assert synthetic.wrong_rows(path) == []
    assert verify(path).complete


def test_an_interrupted_update_goes_on_and_follows_further_changes(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", synthetic.make_items(names(*range(10))))
    target, _, _ = successor(path, synthetic.make_items(names(*range(20))))
    writer = CacheWriter(target)
    synthetic.write_rows(writer, np.arange(10, 14))
    writer.close()
    again, plan, _ = successor(path, synthetic.make_items(names(*range(20))))
    assert again == target
    assert plan.added == 10  # as people see it: against the cache that is there
    assert int((open_cache(again).status == 1).sum()) == 14
    shrunk, _, _ = successor(path, synthetic.make_items(names(*range(2, 13), 30)))
    assert open_cache(shrunk).status.tolist() == [1] * 11 + [0]  # three rows of them from the unfinished file
    assert synthetic.wrong_rows(shrunk) == []
    assert successor(path, synthetic.make_items(names(*range(10))))[0] == path  # and back to what it was
    assert not unfinished_path(path).exists()


def test_damaged_rows_are_not_taken_over(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", synthetic.make_items(names(*range(10))))
    offset = open_cache(path).extent("embeddings").offset + 3 * open_cache(path).extent("embeddings").row_bytes
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff")
    target, _, damaged = successor(path, synthetic.make_items(names(*range(11))))
    assert damaged == 1
    assert np.flatnonzero(open_cache(target).status == 0).tolist() == [3, 10]
    assert synthetic.wrong_rows(target) == []


def test_an_archive_that_moved_is_recorded_without_computing(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 5)
    moved = {"source": json.dumps({**synthetic.SOURCE, "root": "/elsewhere"})}
    target, plan, _ = successor(path, synthetic.make_items(5), attributes=moved)
    assert target != path
    assert plan.unchanged == 5
    assert (open_cache(target).status == 1).all()
    assert open_cache(target).source["root"] == "/elsewhere"


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", synthetic.make_items(["a", "b"]))
    with pytest.raises(CacheError, match="found none of its 2"):
        successor(path, synthetic.make_items(["c", "d"]))
    assert not unfinished_path(path).exists()


def test_failures_keep_their_reason_when_their_image_is_renamed(tmp_path: Path) -> None:
    from pipeline.cache.failures import append_reasons

    path = synthetic.make_cache(tmp_path / "c.h5", synthetic.make_items(["a", "b"]))
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.array([0]))
    writer.fail(1, 4, synthetic.right_hashes([b"c"])[0].tobytes())
    writer.close()
    append_reasons(path, [("b", "no picture")])
    target, plan, _ = successor(path, synthetic.make_items(["a", "c"]))
    assert plan.renamed == 1
    publish(target, path)
    assert open_cache(path).status.tolist() == [1, 4]
    assert open_cache(path).reasons() == {1: "no picture"}


@pytest.mark.slow
@pytest.mark.parametrize("planted", [False, True])
def test_power_cuts_during_an_update(planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any instant the cache is the old or the new one, whole; without syncs the test says so."""
    spec = synthetic.make_spec(300)
    old = synthetic.make_items(names(*range(30)))
    new = synthetic.make_items(names(*range(6, 36)))
    path = synthetic.make_full(tmp_path / "c.h5", old, spec)
    random, cut, tried, wrong = np.random.default_rng(3), tmp_path / "cut.h5", 0, list[str]()

    def after(disk: Disk) -> None:
        nonlocal tried
        if wrong:
            return  # it is caught
        for state in disk.states(random, 5):
            tried += 1
            for name, content in state.items():
                cut.write_bytes(content)
                try:
                    wrong.extend(synthetic.wrong_rows(cut))
                    done = int((open_cache(cut).status == 1).sum())
                except CacheError as error:
                    wrong.append(str(error))
                    continue
                if name == path and done < 30:
                    wrong.append("the cache in use is not whole")

    with monkeypatch.context() as patch:
        disk = Disk(patch, [path, unfinished_path(path)], syncs=not planted)
        disk.after = after
        target, _, _ = successor(path, new)
        synthetic.fill(target)
        publish(target, path)
        disk.close()
    assert bool(wrong) == planted, wrong[:3]
    assert planted or tried > 100
