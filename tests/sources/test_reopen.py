"""The images of a cache that was moved together with them, or without them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from pipeline import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.sources.reopen import image_bytes, reopen_source
from pipeline.stages.extract import ExtractSettings, extract
from scripts.trivial_network import trivial_network
from tests.cli.run import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.cache import Cache


@pytest.fixture(scope="module")
def project(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images in ``data/photos``, the same as an archive, and a cache of each in ``caches``."""
    root = tmp_path_factory.mktemp("moved") / "old"
    shutil.copytree(image_folder, root / "data" / "photos")
    shutil.make_archive(str(root / "data" / "photos"), "zip", image_folder)
    (root / "caches").mkdir()
    settings = ExtractSettings(run=RunSettings(engine="torch", precision="float32", workers=1, batch_size=4))
    with trivial_network(batch_size=4):
        for name in ("photos", "photos.zip"):
            extract(str(root / "data" / name), root / "caches" / f"{name}.h5", settings)
    return root


@pytest.fixture
def old(project: Path, tmp_path: Path) -> Path:
    """Return a copy of the project whose old place is gone."""
    copy = tmp_path / "new"
    shutil.copytree(project, copy)
    return copy


@pytest.fixture(autouse=True)
def gone(project: Path, old: Path) -> Iterator[None]:
    """Take the old place away while a test runs; the copy is made before."""
    assert old.is_dir()
    away = project.with_name("away")
    project.rename(away)
    yield
    away.rename(project)


def unread(cache: Cache) -> int:
    return sum(image_bytes(cache, row) is None for row in range(len(cache)))


@pytest.mark.parametrize("name", ["photos", "photos.zip"])
def test_images_that_moved_with_their_cache_are_found(old: Path, name: str) -> None:
    cache = open_cache(old / "caches" / f"{name}.h5")
    assert unread(cache) == 0
    assert reopen_source(cache.source, cache.items, cache.path.parent).location == str(old / "data" / name)
    assert run_command("verify", cache.path, "--images").exit_code == 0


def test_a_cache_in_the_folder_of_its_images_is_enough(old: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (old / "data" / "photos").rename(tmp_path / "flat" / "photos")
    (old / "caches" / "photos.h5").rename(tmp_path / "flat" / "c.h5")
    assert unread(open_cache(tmp_path / "flat" / "c.h5")) == 0


def test_other_images_in_their_place_are_not_shown(old: Path) -> None:
    cache = open_cache(old / "caches" / "photos.h5")
    file = old / "data" / "photos" / cache.keys[20]
    file.write_bytes(bytes(reversed(file.read_bytes())))  # of the same size, and not among the first
    assert image_bytes(cache, 20) is None
    assert unread(cache) == 1


def test_another_folder_of_that_name_is_not_taken(old: Path) -> None:
    cache = open_cache(old / "caches" / "photos.h5")
    file = old / "data" / "photos" / cache.keys[0]
    file.write_bytes(file.read_bytes() + b"\0")
    assert unread(cache) == 24


def test_a_page_without_its_images_says_so(old: Path, tmp_path: Path) -> None:
    shutil.rmtree(old / "data")
    path, page = old / "caches" / "photos.h5", tmp_path / "page.html"
    key = open_cache(path).keys[0]
    for verb in (["search", path, key, "-k", 3, "-o", tmp_path / "a.csv"], ["map", path, "--method", "pca"]):
        ran = run_command(*verb, "--page", page)
        assert ran.exit_code == 0, ran.stderr
        count = 24 if verb[0] == "map" else 4
        assert f"warning: {count} images of the page cannot be read at " in ran.stderr
    assert run_command("search", path, key, "-k", 3, "--page", page).exit_code == 0
    assert "4 of the 4 images on this page cannot be read" in page.read_text()
