"""An update that removes most rows is refused; what one removes is kept until the next run is through."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline import open_cache
from pipeline.cache import CacheWriter
from pipeline.cache.removed import check_removal, keep_removed, removed_path
from pipeline.cache.replace import publish, unfinished_path
from pipeline.cache.verify import verify
from pipeline.embedding.settings import RunSettings
from pipeline.errors import CacheError, PipelineError
from pipeline.stages.extract import ExtractSettings, Summary, extract
from scripts.trivial_network import trivial_network
from tests.cache import synthetic
from tests.cache.test_update import names, successor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def full(path: Path, *numbers: int) -> Path:
    return synthetic.make_full(path, synthetic.make_items(names(*numbers)))


@pytest.mark.parametrize(
    ("left", "allowed", "refused"),
    [
        (5, None, False),
        (4, None, True),
        (4, "6", False),
        (4, "5", True),
        (4, "60%", False),
        (4, "59%", True),
        (0, "100%", False),
        (9, "0", True),
        (9, "0%", True),
        (10, "0", False),
    ],
)
def test_more_than_half_has_to_be_allowed(tmp_path: Path, left: int, allowed: str | None, refused: bool) -> None:
    path = full(tmp_path / "c.h5", *range(10))
    items = synthetic.make_items(names(*range(left), 90))
    if not refused:
        assert successor(path, items, allow_removed=allowed)[0] == unfinished_path(path)
        return
    found = f"{left} of its 10" if left else "none of its 10"
    with pytest.raises(
        CacheError,
        match=rf"found {found} finished rows \({10 - left} images are gone, 0 .*--allow-removed {10 - left} ",
    ):
        successor(path, items, allow_removed=allowed)
    assert [file.name for file in tmp_path.iterdir()] == ["c.h5"]


def test_images_that_are_others_under_the_same_names_count_as_removed(tmp_path: Path) -> None:
    path = full(tmp_path / "c.h5", *range(10))
    items = synthetic.make_items(names(*range(10)))
    items.sizes[2:] += 1
    with pytest.raises(CacheError, match=r"2 of its 10 finished rows \(0 images are gone, 8 are other images"):
        successor(path, items)


def test_rows_that_are_not_finished_are_no_loss(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", synthetic.make_items(names(*range(10))))
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.arange(2))
    writer.fail(9, 4)
    writer.close()
    here = np.ones(10, np.bool_)
    check_removal(open_cache(path), np.array([0]), here, None)
    with pytest.raises(CacheError, match="found none of its 2"):
        check_removal(open_cache(path), np.array([9]), here, None)


def finish(path: Path, *numbers: int, **options: Any) -> None:
    target, _, _ = successor(path, synthetic.make_items(names(*numbers)), **options)
    synthetic.fill(target)
    keep_removed(path, target)
    if target != path:
        publish(target, path)


def test_removed_rows_are_a_cache_of_their_own_until_the_next_run(tmp_path: Path) -> None:
    path = full(tmp_path / "c.h5", *range(10))
    finish(path, *range(6))
    kept = removed_path(path)
    assert synthetic.keys_of(kept) == [name.encode() for name in names(6, 7, 8, 9)]
    assert synthetic.wrong_rows(kept) == []
    assert verify(kept).complete
    finish(path, *range(6))  # nothing happened since: the next run that is through
    assert not kept.exists()


def test_images_that_come_back_are_not_computed_again(tmp_path: Path) -> None:
    path = full(tmp_path / "c.h5", *range(10))
    finish(path, *range(6))
    target, plan, _ = successor(path, synthetic.make_items(names(*range(12))))
    assert plan.added == 6
    assert open_cache(target).status.tolist() == [1] * 10 + [0] * 2
    assert synthetic.wrong_rows(target) == []


def test_a_file_of_another_program_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = full(tmp_path / "c.h5", *range(4))
    removed_path(path).write_text("of another program")
    with pytest.raises(CacheError, match=r"expected a cache at .*removed\.h5"):
        keep_removed(path, path)
    assert removed_path(path).read_text() == "of another program"


def test_an_image_that_was_only_renamed_is_not_kept(tmp_path: Path) -> None:
    path, other = full(tmp_path / "c.h5", *range(4)), full(tmp_path / "d.h5", 3, 2, 1, 0)
    keep_removed(path, other)
    assert not removed_path(path).exists()


# ---- through the whole of stage 1 ----


@pytest.fixture
def no_network() -> Iterator[None]:
    with trivial_network(batch_size=4):
        yield


def run(images: Path, path: Path, **settings: Any) -> Summary:
    how = RunSettings(engine="torch", precision="float32", workers=1, batch_size=4)
    return extract(str(images), path, ExtractSettings(run=how, **settings))


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_is_not_mounted_costs_no_row(image_folder: Path, tmp_path: Path) -> None:
    images, path = tmp_path / "images", tmp_path / "c.h5"
    shutil.copytree(image_folder, images)
    run(images, path)
    before = path.read_bytes()
    (images / "bee").rename(tmp_path / "bee")
    (images / "cat").rename(tmp_path / "cat")
    with pytest.raises(PipelineError, match=r"8 of its 24 finished rows \(16 images are gone"):
        run(images, path)
    assert path.read_bytes() == before
    assert run(images, path, allow_removed="16").changes["deleted"] == 16
    assert len(open_cache(removed_path(path))) == 16
    for name in ("bee", "cat"):
        (tmp_path / name).rename(images / name)
    back = run(images, path)
    assert (back.computed, back.changes["added"]) == (0, 16)
    assert not removed_path(path).exists()
    assert open_cache(path).embeddings.tobytes() == np.array(_rows(before, tmp_path)).tobytes()


def _rows(content: bytes, folder: Path) -> Any:
    (folder / "before.h5").write_bytes(content)
    return open_cache(folder / "before.h5").embeddings


@pytest.mark.usefixtures("no_network")
def test_a_table_that_was_cut_short_costs_no_row(image_folder: Path, tmp_path: Path) -> None:
    files = sorted(image_folder.glob("*/*"))
    table, path = tmp_path / "t.csv", tmp_path / "c.h5"
    table.write_text("path\n" + "".join(f"{os.fspath(file)}\n" for file in files))
    run(table, path)
    before = path.read_bytes()
    table.write_text("path\n" + "".join(f"{os.fspath(file)}\n" for file in files[:5]))
    with pytest.raises(PipelineError, match=r"5 of its 24 finished rows \(19 images are gone"):
        run(table, path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("text", ["x", "-1", "101%", ""])
def test_a_limit_that_is_none_is_refused(image_folder: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(PipelineError, match="--allow-removed"):
        run(image_folder, tmp_path / "c.h5", allow_removed=text)
    assert not list(tmp_path.iterdir())
