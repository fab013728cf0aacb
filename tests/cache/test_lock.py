"""One writer: the second is refused with the holder named; a dead holder holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.cache import write_lock
from pipeline.cache.lock import lock_path
from pipeline.errors import CacheError, LockedError

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from pipeline.cache import write_lock
with write_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_and_a_dead_holder_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with holder(path) as process:
        with pytest.raises(LockedError, match=f"process {process.pid} on "), write_lock(path):
            pass
        process.send_signal(signal.SIGKILL)
    assert lock_path(path).exists()  # left behind, and free
    with write_lock(path):
        pass
    assert not lock_path(path).exists()


def test_a_process_cannot_lock_twice_and_a_refusal_does_not_free_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with write_lock(path):
        with pytest.raises(LockedError, match="by this process"), write_lock(path):
            pass
        taken = subprocess.run([sys.executable, "-c", HOLD, str(path)], capture_output=True, text=True, check=False)
        assert "LockedError" in taken.stderr
        assert f"process {os.getpid()}" in taken.stderr
    with write_lock(path):
        pass


def test_a_disk_that_fails_is_told_from_a_second_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.raises(CacheError, match="cannot write") as caught, write_lock(tmp_path / "c.h5"):
        pass
    assert not isinstance(caught.value, LockedError)
    assert not list(tmp_path.iterdir())


def test_a_link_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "c.h5").symlink_to("large/c.h5")
    for one, other in (
        (tmp_path / "c.h5", tmp_path / "large" / "c.h5"),
        (tmp_path / "large" / "c.h5", tmp_path / "c.h5"),
    ):
        with write_lock(one), pytest.raises(LockedError, match="by this process"), write_lock(other):
            pass


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot write"), write_lock(tmp_path / "none" / "c.h5"):
        pass
