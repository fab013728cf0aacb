"""The images on which networks are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.items import ItemTable
from pipeline.errors import PipelineError
from pipeline.scouting.sample import common_rows, draw_sample


def items(labels: list[int], **columns: Any) -> ItemTable:
    count = len(labels)
    names = tuple(f"class {i}" for i in range(max(labels, default=0) + 1))
    unknown = np.full(count, -1, np.int64)
    keys = np.array([f"{i:03d}.png".encode() for i in range(count)])
    found = {name: np.asarray(column) for name, column in columns.items()}
    return ItemTable(keys, np.array(labels, np.int32), names, unknown, unknown, found)


def draw(table: ItemTable, rows: int = 100) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return draw_sample(table, rows, 0, notes.append), notes


class Held:
    """What is asked of a cache."""

    path = Path("c.h5")

    def __init__(self, table: ItemTable, rows: list[int], failed: tuple[int, ...] = ()) -> None:
        self.items = table.take(np.array(rows))
        self.status = np.where(np.isin(rows, failed), 2, 1).astype(np.uint8)


def test_every_beginning_has_the_classes_in_their_shares() -> None:
    labels = [0] * 60 + [1] * 30 + [-1] * 20
    sample, notes = draw(items(labels), 30)
    assert np.bincount(sample.labels).tolist() == [20, 10]
    assert np.bincount(sample.labels[:9]).tolist() == [6, 3]
    assert (np.asarray(labels)[sample.order] == sample.labels).all()
    assert sample.first(9).tolist() == sorted(sample.order[:9].tolist())
    assert notes == []


def test_the_same_seed_draws_the_same_images() -> None:
    table = items([0, 1] * 30)
    first, second = (draw_sample(table, 20, seed, lambda text: None).order.tolist() for seed in (0, 1))
    assert draw(table, 20)[0].order.tolist() == first != second


def test_test_images_choose_no_network() -> None:
    split = ["train", "test"] * 20
    sample, notes = draw(items([0, 0, 1, 1] * 10, split=split))
    assert set(np.asarray(split)[sample.order]) == {"train"}
    assert notes == ["compared on images of the training split: 20 of 40"]


def test_the_only_image_of_a_class_is_left_out() -> None:
    sample, notes = draw(items([0, 0, 1, 1, 2]))
    assert sorted(sample.order.tolist()) == [0, 1, 2, 3]
    assert "1 images that are the only ones of their class" in notes[0]


def test_too_few_images_for_the_classes_are_told() -> None:
    _, notes = draw(items(list(range(20)) * 3), 25)
    assert notes == ["25 images hold fewer than 2 of some of the 20 classes: --rows 80 holds about 4"]


@pytest.mark.parametrize(("labels", "message"), [([-1, -1], "no image has a label"), ([0, 0, 1], "found 1")])
def test_images_without_classes_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        draw(items(labels))


def test_networks_are_compared_on_images_that_all_of_them_embed() -> None:
    table = items([0, 0, 0, 1, 1, 1], group=["a", "b", "", "d", "d", "e"])
    sample, _ = draw(table)
    caches: Any = [Held(table, [5, 4, 3, 2, 1, 0], failed=(4,)), Held(table, [0, 1, 3, 4, 5])]
    rows = common_rows(sample, 6, table.keys, caches)
    for cache, at in zip(caches, rows.at, strict=True):
        keys = cache.items.keys[at].tolist()
        assert sorted(keys) == [b"000.png", b"001.png", b"003.png", b"005.png"]
        assert keys == caches[0].items.keys[rows.at[0]].tolist()
    numbers = [int(key[:3]) for key in caches[0].items.keys[rows.at[0]].tolist()]
    assert rows.y.tolist() == [int(number > 2) for number in numbers]
    assert rows.groups is not None
    assert rows.groups.tolist() == [["a", "b", "", "d", "d", "e"][number] for number in numbers]


def test_caches_without_common_images_are_refused() -> None:
    table = items([0, 0, 1, 1])
    sample, _ = draw(table)
    caches: Any = [Held(table, [0, 1]), Held(table, [2, 3])]
    with pytest.raises(PipelineError, match="found 0 of 4"):
        common_rows(sample, 4, table.keys, caches)
