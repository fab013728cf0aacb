from __future__ import annotations

import io
import sqlite3
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from PIL import Image

from pipeline.cache import open_cache
from pipeline.labelling import thumbnails
from pipeline.labelling.thumbnails import LARGE_SIDE, SIDE, Thumbnails
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
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
    with sqlite3.connect(tmp_path / "t.sqlite") as file:
        assert file.execute("SELECT count(*) FROM thumbnail").fetchone() == (1,)
    file.close()


def test_without_a_place_to_write_pictures_are_made_all_the_same(cache_path: Path, tmp_path: Path) -> None:
    pictures = Thumbnails(open_cache(cache_path), tmp_path / "no such folder" / "t.sqlite")
    assert pictures.small(0) == pictures.small(0) is not None
    pictures.close()
