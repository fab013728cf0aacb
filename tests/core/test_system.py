"""Limits of memory, tried in processes of their own: they stay for the life of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.core import system
from pipeline.core.system import child_environment, has_local_locks, package_stamp

if TYPE_CHECKING:
    from pathlib import Path

START = """
import mmap
from pipeline.core.system import limit_memory, memory_limit_lifted
def fits(mib):
    try:
        return mmap.mmap(-1, mib << 20)
    except (MemoryError, OSError):
        return None
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", START + code], check=True, env=child_environment())


def test_more_than_the_limit_does_not_fit() -> None:
    run("limit_memory(64 << 20); assert fits(32); assert not fits(96)")


def test_a_lifted_limit_comes_back_and_what_was_taken_meanwhile_does_not_count() -> None:
    run(
        "limit_memory(64 << 20)\n"
        "with memory_limit_lifted():\n"
        "    kept = fits(500)\n"
        "assert kept\n"
        "held = fits(40)\n"
        "assert held and not fits(40)\n"
    )


def test_a_lifted_limit_comes_back_after_an_error() -> None:
    run(
        "limit_memory(64 << 20)\n"
        "try:\n"
        "    with memory_limit_lifted():\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    pass\n"
        "assert not fits(96)\n"
    )


def test_without_a_limit_nothing_is_limited() -> None:
    run("with memory_limit_lifted():\n    pass\nlimit_memory(0)\nassert fits(500)")


@pytest.mark.parametrize(
    ("mount", "options", "is_local"),
    [
        ("rw,relatime", "rw,vers=4.2,local_lock=none,addr=10.0.0.1", False),
        ("rw,relatime", "rw,vers=3,nolock,local_lock=all,addr=10.0.0.1", True),
        ("rw,relatime", "rw,vers=3,local_lock=posix", True),
        ("rw,relatime", "rw,vers=3,local_lock=flock", False),  # the other kind of lock
        ("rw,localflock", "rw,lazystatfs", True),
    ],
)
def test_locks_that_other_machines_do_not_see(tmp_path: Path, mount: str, options: str, is_local: bool) -> None:
    device = tmp_path.stat().st_dev
    here = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"22 1 0:99 / /other rw,nolock shared:1 - nfs server:/other rw,nolock\n"
        f"23 1 {here} / /data {mount} shared:2 - nfs server:/data {options}\n"
    )
    assert has_local_locks(tmp_path, mounts) == is_local
    assert not has_local_locks(tmp_path, tmp_path / "none")


def test_the_stamp_of_the_package_tells_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pipeline" / "core"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(system, "__file__", str(folder / "system.py"))
    before = package_stamp()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    assert package_stamp() == before
    (folder / "a.py").write_text("a = 22\n")
    assert package_stamp() != before
    (folder / "b.py").symlink_to("removed.py")
    assert package_stamp() == 0
