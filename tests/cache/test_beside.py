"""Files of a user at the names that a run writes beside a cache are refused before the work, and stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.cache import write_lock
from pipeline.cache.beside import check_beside, run_facts_path
from pipeline.cache.failures import append_reasons, failures_path
from pipeline.cache.lock import lock_path
from pipeline.cache.merge import merge
from pipeline.cache.removed import removed_path
from pipeline.cache.replace import unfinished_path
from pipeline.core.files import replacing
from pipeline.errors import CacheError
from pipeline.stages.extract import extract
from tests.cache import synthetic

BESIDE = [unfinished_path, removed_path, failures_path, run_facts_path]
OF_A_USER = [b"my notes\n", b'{"key": "of mine"}\n', b"\n[]\n", b"\x89HDF\r\n\x1a\n", b"{}", b"\xff"]


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("content", OF_A_USER)
def test_a_file_of_a_user_is_refused_by_name_and_stays(tmp_path: Path, name: object, content: bytes) -> None:
    assert callable(name)
    beside = name(tmp_path / "c.h5")
    beside.write_bytes(content)
    with pytest.raises(CacheError, match=rf"{beside.name} exists and was not written by this command.*rename it"):
        check_beside(tmp_path / "c.h5")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(beside.name, content)]


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_file_is_refused_also_through_a_link(tmp_path: Path, name: object) -> None:
    assert callable(name)
    (tmp_path / "link.h5").symlink_to("c.h5")
    (tmp_path / "c.h5").touch()
    name(tmp_path / "c.h5").symlink_to("nowhere")
    with pytest.raises(CacheError, match="exists and was not written by this command"):
        check_beside(tmp_path / "link.h5")


def test_files_of_this_program_are_not_refused(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    check_beside(cache)
    for path in (unfinished_path(cache), removed_path(cache)):
        synthetic.make_full(path, 3)
    run_facts_path(cache).write_text(json.dumps({"settings": {}, "summary": {}}))
    append_reasons(cache, [("a", "broken")])
    check_beside(cache)
    whole = failures_path(cache).read_bytes()
    for torn in (b"", whole[:1], whole[:5], whole[:9], whole[:20] + whole):  # of a run that was killed
        failures_path(cache).write_bytes(torn)
        check_beside(cache)


@pytest.mark.parametrize("name", [*BESIDE, lock_path])
def test_commands_refuse_before_they_look_at_their_input(tmp_path: Path, name: object) -> None:
    assert callable(name)
    one, output = synthetic.make_full(tmp_path / "one.h5", 3), tmp_path / "c.h5"
    name(output).write_bytes(b"my notes\n")
    with pytest.raises(CacheError, match="rename it, or choose another output"):
        merge([one], output)
    if name is not lock_path:  # which is taken once the images are listed
        with pytest.raises(CacheError, match="rename it, or choose another output"):
            extract("no images at all", output)
    assert name(output).read_bytes() == b"my notes\n"
    assert not output.exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(lock_path(tmp_path / "c.h5"))
    with pytest.raises(CacheError, match=r"c\.h5\.lock"), write_lock(tmp_path / "c.h5"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5.lock"]


def test_an_unfinished_file_has_a_name_that_no_file_of_a_user_has(tmp_path: Path) -> None:
    for name in ("a.part", ".a.part", "a.new", ".a.0123456789ab.part.mine", ".b.0123456789ab.part"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".a.0123456789ab.part").write_text("of a run that was killed")
    with replacing(tmp_path / "a", alone=True) as part:
        part.write_text("whole")
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left.pop("a") == "whole"
    assert left == {name: name for name in left}
    assert len(left) == 5
