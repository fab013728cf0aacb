from __future__ import annotations

import contextlib
import io
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from PIL import Image

from pipeline.cache import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.labelling import thumbnails
from pipeline.labelling.thumbnails import LARGE_SIDE, SIDE, Thumbnails
from pipeline.stages.extract import ExtractSettings, extract
from scripts.source_variants import copy_to, make_files, s3_server
from scripts.trivial_network import trivial_network
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    return make_digits(tmp_path / "data", 6)


def test_a_picture_is_made_once_and_kept_in_one_file(cache_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    first = Thumbnails(open_cache(cache_path), folder / "t.sqlite")
    made = [first.small(row) for row in range(6)]
    first.close()
    assert [path.name for path in folder.iterdir()] == ["t.sqlite"]
    with mock.patch.object(thumbnails, "image_bytes", side_effect=AssertionError("read again")):
        second = Thumbnails(open_cache(cache_path), folder / "t.sqlite")
        assert [second.small(row) for row in range(6)] == made
        second.close()


def test_large_images_are_reduced(tmp_path: Path) -> None:
    path = make_digits(tmp_path / "data", 3)
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "data" / "images" / "0001.png")
    pictures = Thumbnails(open_cache(path), tmp_path / "t.sqlite")
    small, large = pictures.small(1), pictures.large(1)
    assert small is not None
    assert large is not None
    assert Image.open(io.BytesIO(small)).size == (SIDE, SIDE // 2)
    assert Image.open(io.BytesIO(large)).size == (LARGE_SIDE, LARGE_SIDE // 2)
    pictures.close()


def test_a_damaged_file_is_made_again(cache_path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").write_bytes(b"no database, but longer than a header of SQLite's would be " * 20)
    pictures = Thumbnails(open_cache(cache_path), tmp_path / "t.sqlite")
    assert pictures.small(0)
    pictures.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "t.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM thumbnail").fetchone() == (1,)


def test_without_a_place_to_write_pictures_are_made_all_the_same(cache_path: Path, tmp_path: Path) -> None:
    pictures = Thumbnails(open_cache(cache_path), tmp_path / "no such folder" / "t.sqlite")
    assert pictures.small(0) == pictures.small(0) is not None
    pictures.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Eight images in every kind of archive, on the disk and in S3; each has a colour of its own."""
    folder = tmp_path_factory.mktemp("variants")
    images = {}
    for n in range(8):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (30 * n, 255 - 30 * n, 120)).save(file, "PNG")
        images[f"{n % 2}/{n:04d}.png"] = file.getvalue()
    with pytest.MonkeyPatch.context() as patch, s3_server() as bucket:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {**make_files(folder, dict(sorted(images.items()))), **copy_to(bucket, folder)}


@pytest.mark.parametrize(
    "kind", ["tar shards", "zip, deflated", "Parquet, Hugging Face", "s3 folder", "s3 zip", "s3 Parquet"]
)
def test_pictures_are_read_from_where_the_images_are(kind: str, places: dict[str, str], tmp_path: Path) -> None:
    with trivial_network():
        extract(places[kind], tmp_path / "c.h5", ExtractSettings(run=RunSettings(workers=1)))
    pictures = Thumbnails(open_cache(tmp_path / "c.h5"), tmp_path / "t.sqlite")
    with ThreadPoolExecutor(4) as several:  # as the server asks
        made = list(several.map(pictures.small, range(8)))
    pictures.close()
    for row, picture in enumerate(made):
        assert picture is not None
        n = int(open_cache(tmp_path / "c.h5").keys[row][-8:-4])
        with Image.open(io.BytesIO(picture)) as image:
            assert image.size == (40, 30)
            assert image.getpixel((20, 15)) == pytest.approx((30 * n, 255 - 30 * n, 120), abs=4)
