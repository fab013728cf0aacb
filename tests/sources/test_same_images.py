"""The same images from every kind of source: the same bytes, labels and rows."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline import open_cache
from pipeline.cache.verify import verify
from pipeline.core.items import Status
from pipeline.embedding.settings import RunSettings
from pipeline.sources import open_source
from pipeline.sources.reopen import image_bytes, reopen_source
from pipeline.stages.extract import ExtractSettings, extract
from scripts.source_variants import copy_to, label_of, make_files, make_pixel_hdf5, s3_server
from scripts.trivial_network import trivial_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = 60
SETTINGS = ExtractSettings(run=RunSettings(workers=1))
LOCAL = (
    "folder", "table", "glob", "tar shards", "WebDataset", "zip, stored", "zip, deflated", "Parquet, Hugging Face",
    "Parquet, binary", "HDF5, encoded",
)  # fmt: skip
REMOTE = ("folder", "tar shards", "zip", "Parquet")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Return digits of scikit-learn as PNG, by class."""
    import io

    from PIL import Image
    from sklearn.datasets import load_digits

    found = {}
    digits = load_digits()
    for i in range(COUNT):
        file = io.BytesIO()
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize((32, 32)).save(file, "PNG")
        found[f"{digits.target[i]}/{i:04d}.png"] = file.getvalue()
    return dict(sorted(found.items()))


@pytest.fixture(scope="module", autouse=True)
def own_indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variants")
    make_files(path, images)
    return path


@pytest.fixture(scope="module")
def places(folder: Path, images: dict[str, bytes]) -> Iterator[dict[str, str]]:
    with s3_server() as bucket:
        yield {
            **make_files(folder, images),
            **copy_to(bucket, folder),
            **copy_to("memory://images", folder),
        }


@pytest.fixture(scope="module")
def right(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("right") / "c.h5"
    with trivial_network():
        extract(places["folder"], path, SETTINGS)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *LOCAL[1:],
        *(f"memory {kind}" for kind in REMOTE),
        *(pytest.param(f"s3 {kind}", marks=pytest.mark.slow) for kind in REMOTE),
    ],
)
def test_caches_are_equal_row_by_row(kind: str, places: dict[str, str], right: Path, tmp_path: Path) -> None:
    with trivial_network():
        summary = extract(places[kind], tmp_path / "c.h5", SETTINGS)
        again = extract(places[kind], tmp_path / "c.h5", SETTINGS)
    ours, theirs = open_cache(tmp_path / "c.h5"), open_cache(right)
    assert (summary.computed, summary.failed, again.computed, again.changes) == (COUNT, 0, 0, {})
    assert np.array_equal(ours.embeddings, theirs.embeddings)
    assert np.array_equal(ours.content_hash, theirs.content_hash)
    assert np.array_equal(ours.labels, theirs.labels)
    assert ours.label_names == theirs.label_names
    assert theirs.embeddings.std() > 1
    assert [image_bytes(ours, row) for row in (0, 33)] == [image_bytes(theirs, row) for row in (0, 33)]
    assert verify(
        tmp_path / "c.h5", hash_images=lambda cache: reopen_source(cache.source, cache.items).content_hashes()
    ).complete


def test_pixels_of_hdf5_give_the_same_rows(images: dict[str, bytes], right: Path, tmp_path: Path) -> None:
    make_pixel_hdf5(tmp_path / "pixels.h5", images)
    with trivial_network():
        extract(str(tmp_path / "pixels.h5"), tmp_path / "c.h5", SETTINGS)
    cache = open_cache(tmp_path / "c.h5")
    assert np.array_equal(cache.embeddings, open_cache(right).embeddings)
    assert image_bytes(cache, 0) is not None
    assert verify(
        tmp_path / "c.h5", hash_images=lambda cache: reopen_source(cache.source, cache.items).content_hashes()
    ).complete


@pytest.mark.parametrize("kind", [*LOCAL, *(f"s3 {kind}" for kind in REMOTE)])
def test_readers_travel_to_other_processes(kind: str, places: dict[str, str], images: dict[str, bytes]) -> None:
    source = open_source(places[kind])
    read = pickle.loads(pickle.dumps(source.reader()))
    found = [read(pickle.loads(pickle.dumps(source.locator(i)))) for i in range(len(source))]
    assert found == list(images.values())
    assert [source[i].label for i in range(len(source))] == [label_of(name) for name in images]
    # Out of order, and from other threads: a batch is hashed by several, and a worker may read ahead.
    assert [read(source.locator(i)) for i in (59, 0, 30, 29, 31)] == [found[i] for i in (59, 0, 30, 29, 31)]


def test_keys_of_one_archive_are_names_and_of_several_begin_with_the_shard(places: dict[str, str]) -> None:
    zipped, shards = open_source(places["zip, stored"]), open_source(places["tar shards"])
    assert [zipped[i].key for i in range(COUNT)] == [shards[i].key.partition(".tar/")[2] for i in range(COUNT)]
    assert {shards[i].key.partition("/")[0] for i in range(COUNT)} == {f"shard-{n}.tar" for n in range(4)}


def test_a_glob_of_images_gives_the_keys_of_the_folder(places: dict[str, str]) -> None:
    assert np.array_equal(open_source(places["glob"]).items.keys, open_source(places["folder"]).items.keys)


def test_an_image_lost_from_memory_fails_in_its_row(places: dict[str, str], tmp_path: Path) -> None:
    import fsspec

    source = open_source(places["memory folder"])
    memory = fsspec.filesystem("memory")
    lost = f"/images/folder/{source[7].key}"
    kept = memory.cat_file(lost)
    memory.rm(lost)
    try:
        with trivial_network():
            summary = extract(source, tmp_path / "c.h5", SETTINGS)
    finally:
        memory.pipe_file(lost, kept)
    cache = open_cache(tmp_path / "c.h5")
    assert summary.failures == {"unreadable": 1}
    assert np.flatnonzero(cache.status == Status.UNREADABLE).tolist() == [7]
    with trivial_network():
        assert extract(places["memory folder"], tmp_path / "c.h5", replace(SETTINGS, retry_failed=True)).failed == 0


def test_indexes_are_kept_for_archives(places: dict[str, str]) -> None:
    from pipeline.sources.archive_index import index_folder

    open_source(places["tar shards"])
    assert len(list(index_folder().iterdir())) >= 4
