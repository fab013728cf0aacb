"""Patterns match what `glob` matches, and end where links lead in a circle."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from pipeline.sources import open_source
from pipeline.sources.local_glob import files_like
from tests.faulty_reader import picture

NAMES = ["0.png", "x/1.png", "x/y/2.png", "x/y/.h/3.png", ".h/4.png", "z[1]/x/5.png", "z[1]/x/6.gif"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(i))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    ["**", "**/*.png", "x/**", "x/**/*.png", "**/x/*", "*/**/x/**/*.png", "z[[]1]/**/*", "no/**/*", "*/*.png"],
)
def test_patterns_match_what_glob_matches(pattern: str, folder: Path) -> None:
    for one in (pattern, f"{folder}/{pattern}"):
        assert files_like(one) == {path for path in glob.glob(one, recursive=True) if Path(path).is_file()}  # noqa: PTH207  # the reference


def test_links_are_followed_and_circles_are_not(folder: Path) -> None:
    """With two such links `glob` would go 2**40 ways."""
    (folder / "x" / "up").symlink_to(folder)
    (folder / "x" / "y" / "up").symlink_to(folder)
    (folder / "link").symlink_to(folder / "z[1]")
    (folder / "self").symlink_to(folder / "self")
    found = open_source(f"{folder}/**/5.png").items.keys.tolist()
    assert found == [b"link/x/5.png", b"z[1]/x/5.png"]
