"""The parts of a job array, looked at while they are written, after their writers died, and when they are through."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pipeline.cache import open_cache
from pipeline.cache.lock import holder_of, lock_path
from pipeline.cache.parts import State, find_parts, look_at
from pipeline.core.shards import ShardRecord
from pipeline.errors import CacheError
from tests.cache.synthetic import make_partial
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.cache import Cache

WRITER = """
import sys, time
from pathlib import Path
from pipeline.cache import write_lock
with write_lock(Path(sys.argv[1])) as lock:
    lock.computing(2)
    print("held", flush=True)
    time.sleep(60)
"""


def writer_of(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def part_of_five(folder: Path, number: int, done: int, failed: int, to_do: int) -> Path:
    """Write a cache that is one of five shards of a list."""
    shard = ShardRecord(number, 5, 5 * (done + failed + to_do), "0" * 64)
    return make_partial(folder / f"photos-{number}.h5", done=done, failed=failed, to_do=to_do, shard=shard)


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """Return a folder: part 1 done, 2 done with a failure, 3 begun; 4 and 5 have no file."""
    part_of_five(tmp_path, 1, 4, 0, 0)
    part_of_five(tmp_path, 2, 3, 1, 0)
    part_of_five(tmp_path, 3, 3, 0, 1)
    return tmp_path


def test_a_running_writer_is_told_from_a_dead_one(array: Path) -> None:
    path = array / "photos-3.h5"
    with writer_of(path) as process:
        (part,) = look_at([path], datetime.now(UTC) + timedelta(seconds=10)).parts
        assert (part.state, part.done, part.failed, part.to_do) == (State.RUNNING, 3, 0, 1)
        assert part.holder is not None
        assert part.holder.process == process.pid
        assert part.rate is not None
        assert 0.05 < part.rate <= 0.1  # one row more than when it began, ten seconds ago
        assert part.seconds_left == pytest.approx(1 / part.rate)
        process.send_signal(signal.SIGKILL)
    (part,) = look_at([path]).parts
    assert (part.state, part.rate) == (State.DIED, None)
    assert f"process {process.pid} on " in str(part)


def test_looking_does_not_free_the_lock_of_this_process(tmp_path: Path) -> None:
    from pipeline.cache import write_lock

    path = tmp_path / "c.h5"
    with write_lock(path):
        assert holder_of(path) is not None
        refused = subprocess.run([sys.executable, "-c", WRITER, str(path)], capture_output=True, text=True, check=False)
        assert "LockedError" in refused.stderr
    assert holder_of(path) is None


def test_missing_shards_and_those_without_a_process_are_named(array: Path) -> None:
    parts = look_at(find_parts([str(array)]))
    assert [part.state for part in parts.parts] == [State.DONE, State.FAILED, State.TO_DO]
    assert (parts.missing, parts.idle_shards, parts.complete, parts.failed) == ((4, 5), (3, 4, 5), False, 1)


def test_a_part_that_has_begun_but_has_no_file_is_one(array: Path) -> None:
    with writer_of(array / "photos-4.h5") as process:
        parts = look_at(find_parts([str(array / "photos-*.h5")]))
        assert [part.state for part in parts.parts].count(State.RUNNING) == 1
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("names", "code"), [(["photos-1.h5"], 4), (["photos-1.h5", "photos-2.h5"], 4), (["whole.h5"], 3), (["all.h5"], 0)]
)
def test_exit_codes(array: Path, names: list[str], code: int) -> None:
    make_partial(array / "whole.h5", done=1, failed=1)
    make_partial(array / "all.h5", done=1)
    ran = run_command("status", *(array / name for name in names))
    assert ran.exit_code == code
    assert ran.stdout.splitlines()[-1].startswith("total: ")


def test_the_output_for_programs(array: Path) -> None:
    assert run_command("status", array, "--idle-shards").stdout == "3,4,5\n"
    facts = json.loads(run_command("status", array, "--json").stdout)
    assert [part["state"] for part in facts["parts"]] == ["done", "some failed", "to do"]
    assert facts["missing_shards"] == [4, 5]


def test_other_files_of_a_folder_are_no_parts(array: Path) -> None:
    (array / "notes.h5").write_text("no cache")
    assert len(find_parts([str(array)])) == 3
    with pytest.raises(CacheError, match="found no file nothing-"):
        find_parts(["nothing-*.h5"])


def test_a_damaged_part_is_one_and_does_not_hide_the_others(array: Path) -> None:
    file = array / "photos-1.h5"
    file.write_bytes(file.read_bytes()[:600])
    found = look_at(find_parts([str(array)]))
    assert {part.path.name: part.state for part in found.parts} == {
        "photos-1.h5": State.UNREADABLE, "photos-2.h5": State.FAILED, "photos-3.h5": State.TO_DO,
    }  # fmt: skip
    assert not found.complete
    assert "1 unreadable" in found.total()
    (damaged,) = (part for part in found.parts if part.state == State.UNREADABLE)
    assert f"{file}  unreadable  expected a cache" in str(damaged)
    assert json.loads(run_command("status", str(array), "--json").stdout)["parts"][0]["reason"] == damaged.reason


@pytest.mark.parametrize("text", ["", "process of an older version", "process 1 on host since yesterday"])
def test_a_lock_file_without_a_name_is_nobodys(tmp_path: Path, text: str) -> None:
    lock_path(tmp_path / "c.h5").write_text(text)
    assert holder_of(tmp_path / "c.h5") is None


def test_an_update_that_takes_the_place_of_its_cache_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_partial(tmp_path / "c.h5", done=1, to_do=2)
    update = make_partial(tmp_path / "c.h5.new", done=3)

    def publish_before(name: Path) -> Cache:
        if name == update and update.exists():
            update.replace(path)
        return open_cache(name)

    monkeypatch.setattr("pipeline.cache.parts.open_cache", publish_before)
    assert [part.done for part in look_at([path]).parts] == [3]
