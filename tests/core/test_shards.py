"""Shards: together the whole list, each in its own cache, merged the same file as one run's."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import open_cache
from pipeline.cache.merge import merge
from pipeline.cache.verify import verify
from pipeline.core.items import ItemTable, Reader
from pipeline.core.shards import Shard, ShardRecord
from pipeline.embedding.settings import RunSettings
from pipeline.errors import CacheError, PipelineError, SourceError
from pipeline.sources import Source, open_source
from pipeline.sources.shard import ShardSource
from pipeline.stages.extract import ExtractSettings, Summary, extract
from scripts.trivial_network import trivial_network

if TYPE_CHECKING:
    from pathlib import Path

RUN = RunSettings(engine="torch", precision="float32", workers=1, batch_size=4)
BACKBONE: dict[str, Any] = {"backbone": "timm/test_vit", "weights": "random"}


class Listed(Source):
    """A list of items and nothing behind it."""

    kind = location = "listed"

    def __init__(self, count: int) -> None:
        self.items = ItemTable(
            keys=np.array([b"%05d" % i for i in range(count)]),
            labels=(np.arange(count) % 3).astype(np.int32),
            label_names=("a", "b", "c"),
            sizes=np.arange(count),
            mtimes_ns=np.zeros(count, dtype=np.int64),
            columns={"split": np.array(["train"] * count)},
        )

    def locator(self, i: int) -> int:
        return i

    def reader(self) -> Reader:
        raise NotImplementedError


def run(images: Path, path: Path, shard: Shard | None = None) -> Summary:
    """Extract with a network that costs nothing: rows that depend on no other row are the engines' tests' matter."""
    with trivial_network(batch_size=4):
        return extract(str(images), path, ExtractSettings(run=RUN, shard=shard))


@settings(deadline=None)
@given(total=st.integers(1, 60), data=st.data())
def test_shards_are_the_list_in_order_and_balanced(total: int, data: st.DataObject) -> None:
    whole, count = Listed(total), data.draw(st.integers(1, total))
    parts = [ShardSource(whole, Shard(number, count)) for number in range(1, count + 1)]
    assert [part.locator(i) for part in parts for i in range(len(part))] == list(range(total))
    assert np.concatenate([part.items.keys for part in parts]).tolist() == whole.items.keys.tolist()
    assert np.concatenate([part.items.labels for part in parts]).tolist() == whole.items.labels.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {part.items.label_names for part in parts} == {whole.items.label_names}
    assert {part.record.items_sha256 for part in parts} == {parts[0].record.items_sha256}
    assert all(ShardRecord.from_json(part.record.to_json()) == part.record for part in parts)


def test_more_shards_than_images_are_refused() -> None:
    with pytest.raises(SourceError, match="3 images and 4 shards"):
        ShardSource(Listed(3), Shard(1, 4))


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/4/2", "1.0/4"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(PipelineError, match="from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("task", "first", "last", "count", "step", "expected"),
    [(0, 0, 7, 8, 1, (1, 8)), (7, 0, 7, 8, 1, (8, 8)), (1, 1, 3, 3, 1, (1, 3)), (14, 10, 18, 5, 2, (3, 5))],
)
def test_slurm_arrays_may_start_anywhere(
    task: int, first: int, last: int, count: int, step: int, expected: tuple[int, int]
) -> None:
    assert Shard.parse("slurm", slurm(task, first, last, count, step)) == Shard(*expected)


def slurm(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_slurm_without_an_array_or_with_some_tasks_of_one_is_refused() -> None:
    with pytest.raises(PipelineError, match="sbatch --array"):
        Shard.parse("slurm", {"SLURM_JOB_ID": "7"})
    with pytest.raises(PipelineError, match="2 from 3 to 7"):
        Shard.parse("slurm", slurm(3, 3, 7, 2))


@pytest.fixture(scope="module")
def archive(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images with one that is broken."""
    root = tmp_path_factory.mktemp("archive") / "images"
    shutil.copytree(image_folder, root)
    (root / "bee" / "00.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    return root


@pytest.fixture(scope="module")
def caches(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with whole.h5 and its eight shards."""
    folder = tmp_path_factory.mktemp("shards")
    run(archive, folder / "whole.h5")
    for number in range(1, 9):
        run(archive, folder / f"shard-{number}.h5", Shard(number, 8))
    return folder


def test_eight_shards_merged_are_one_run_byte_for_byte(caches: Path, tmp_path: Path) -> None:
    parts = sorted(caches.glob("shard-*.h5"), reverse=True)  # the order they are named in is no matter
    made = merge(parts, tmp_path / "merged.h5")
    assert (made.rows, made.duplicates, made.to_do, made.failed) == (25, 0, 0, 1)
    assert (tmp_path / "merged.h5").read_bytes() == (caches / "whole.h5").read_bytes()
    assert open_cache(tmp_path / "merged.h5").reasons() == open_cache(caches / "whole.h5").reasons()
    assert verify(tmp_path / "merged.h5").failed == 1


def test_a_shard_names_itself_and_keeps_all_label_names(caches: Path) -> None:
    cache = open_cache(caches / "shard-1.h5")
    assert cache.shard is not None
    assert (cache.shard.number, cache.shard.count, cache.shard.total) == (1, 8, 25)
    assert set(cache.labels) == {0}
    assert cache.label_names == ("ant", "bee", "cat")
    assert open_cache(caches / "whole.h5").shard is None
    assert len({open_cache(path).fingerprint for path in caches.glob("*.h5")}) == 1


def test_missing_and_doubled_shards_are_named(caches: Path, tmp_path: Path) -> None:
    parts = sorted(caches.glob("shard-*.h5"))
    with pytest.raises(CacheError, match=r"found 6; missing are 3, 5: .*--shard 3/8") as caught:
        merge([part for i, part in enumerate(parts, 1) if i not in (3, 5)], tmp_path / "m.h5")
    assert "\n" not in str(caught.value)
    with pytest.raises(CacheError, match=r"shard-2\.h5 and .*shard-2\.h5 are both shard 2 of 8"):
        merge([*parts, parts[1]], tmp_path / "m.h5")
    with pytest.raises(CacheError, match=r"whole\.h5 is no shard"):
        merge([*parts, caches / "whole.h5"], tmp_path / "m.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shards_of_other_lists_and_counts_are_refused_until_all_are_brought_up_to_date(
    archive: Path, caches: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(archive, root)
    for number in (1, 2):
        run(root, tmp_path / f"{number}.h5", Shard(number, 2))
    run(root, tmp_path / "third.h5", Shard(3, 3))
    with pytest.raises(CacheError, match=r"is shard 1 of 2, .* is shard 3 of 3"):
        merge([tmp_path / "1.h5", tmp_path / "third.h5"], tmp_path / "m.h5")
    shutil.copy(root / "ant" / "00.png", root / "cat" / "zz.png")
    assert run(root, tmp_path / "2.h5", Shard(2, 2)).changes["added"] == 1
    with pytest.raises(CacheError, match=r"different item lists \(25 and 26 images\)"):
        merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "m.h5")
    run(root, tmp_path / "1.h5", Shard(1, 2))
    merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "m.h5")
    run(root, tmp_path / "whole.h5")
    merged, whole = open_cache(tmp_path / "m.h5"), open_cache(tmp_path / "whole.h5")
    for name in ("embeddings", "keys", "status", "content_hash", "crc32", "labels"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_the_list_may_change_where_a_shard_does_not(archive: Path, tmp_path: Path) -> None:
    """An image gone from one shard and another come to it: the other shard's rows are all the same."""
    root = tmp_path / "images"
    shutil.copytree(archive, root)
    for number in (1, 2):
        run(root, tmp_path / f"{number}.h5", Shard(number, 2))
    last = max(root.glob("cat/*"))
    last.rename(last.with_name("zz" + last.suffix))
    run(root, tmp_path / "2.h5", Shard(2, 2))
    again = run(root, tmp_path / "1.h5", Shard(1, 2))
    assert again.computed == 0
    assert merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "m.h5").rows == 25


def test_the_cache_of_another_shard_is_refused_unchanged(archive: Path, caches: Path, tmp_path: Path) -> None:
    for shard, name, message in (
        (Shard(2, 8), "shard-1.h5", "expected shard 2 of 8 in .*, found shard 1 of 8: pass --shard 1/8"),
        (None, "shard-1.h5", "expected a whole archive in .*, found shard 1 of 8"),
        (Shard(2, 8), "whole.h5", "found a whole archive: leave --shard out"),
    ):
        path = tmp_path / name
        shutil.copy(caches / name, path)
        with pytest.raises(CacheError, match=message):
            run(archive, path, shard)
        assert path.read_bytes() == (caches / name).read_bytes()


def test_every_shard_checks_the_precision_on_the_same_images(archive: Path, tmp_path: Path) -> None:
    settings = {"run": RunSettings(engine="torch", workers=1, batch_size=4), **BACKBONE}
    for number in (1, 3):
        extract(str(archive), tmp_path / f"{number}.h5", ExtractSettings(**settings, shard=Shard(number, 3)))
    one, other = (open_cache(tmp_path / f"{number}.h5") for number in (1, 3))
    assert one.self_check == other.self_check
    assert one.self_check["images"] >= 15
    assert json.loads((tmp_path / "1.h5.run.json").read_text())["settings"]["shard"] == {"number": 1, "count": 3}


def test_the_hash_of_a_list_does_not_depend_on_how_wide_its_arrays_are(archive: Path) -> None:
    from dataclasses import replace

    from pipeline.core.shards import items_sha256

    items = open_source(str(archive)).items
    wide = replace(items, keys=items.keys.astype("S200"), mtimes_ns=items.mtimes_ns + 1)
    assert items_sha256(wide) == items_sha256(items)
    for other in (
        replace(items, keys=np.roll(items.keys, 1)),
        replace(items, labels=np.roll(items.labels, 1)),
        replace(items, sizes=items.sizes + 1),
        replace(items, label_names=("ant", "bee", "dog")),
        replace(items, columns={"split": np.array(["train"] * 25)}),
    ):
        assert items_sha256(other) != items_sha256(items)
