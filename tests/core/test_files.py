"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.core.files import PART, replacing, replacing_folder
from pipeline.errors import CacheError, PipelineError


def half_written(file: Path) -> None:
    file.write_text("half")
    raise KeyError


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as part:
        half_written(part)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_cannot_be_written_is_one_error_of_the_kind_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(CacheError, match=r"cannot write .*none/a\.txt \(No such file"),
        replacing(tmp_path / "none" / "a.txt", CacheError) as part,
    ):
        part.write_text("x")
    with pytest.raises(PipelineError, match="it is a folder"), replacing(tmp_path):
        pass


def test_a_folder_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    for text in ("one", "two"):
        with replacing_folder(path) as part:
            (part / "file").write_text(text)
        assert (path / "file").read_text() == text
        assert [folder.name for folder in path.parent.iterdir()] == ["run"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with pytest.raises(KeyError), replacing_folder(path) as part:
        half_written(part / "file")
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]
    assert not list(path.iterdir())


def test_who_may_read_a_file_stays_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    path.chmod(0o660)
    with replacing(path) as part:
        part.write_text("new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o660)


@pytest.mark.parametrize("other_came_first", [False, True])
def test_a_folder_that_cannot_be_put_in_place_loses_nothing(
    other_came_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "old").touch()
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.name.endswith(PART):
            if other_came_first:
                to.mkdir()
                (to / "other").touch()
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PipelineError, match="Input/output error"), replacing_folder(run) as part:
        (part / "new").touch()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["run", "run/other" if other_came_first else "run/old"]
