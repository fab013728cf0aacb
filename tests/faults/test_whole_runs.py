"""Faults on whole runs of ``pipeline extract``: random kills, a full disk, several writers, killed decode workers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.cache.verify import verify
from pipeline.errors import CacheError
from tests.cache import synthetic
from tests.stages.test_extract_faults import many, start, wait_for_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.faults
IMAGES, KILLS = 4000, 30


@pytest.fixture(scope="module")
def images(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "images"
    shutil.copytree(image_folder, root)
    small = next(root.glob("*/01.jpg"))
    from PIL import Image

    Image.open(small).resize((64, 64)).save(root / "ant" / "00.jpg")
    many(root, IMAGES)
    return root


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "whole.h5"
    with start(images, path) as process:
        assert process.wait(timeout=300) == 0
    return path


def test_random_kills(images: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment of one run after the other, each going on where the last was killed."""
    path, choose, kills, restarts = tmp_path / "c.h5", random.Random(4), 0, 0
    right = open_cache(whole)
    while kills < KILLS:
        with start(images, path) as process:
            try:
                process.wait(timeout=choose.uniform(2.0, 9.0))
                path.unlink()  # it came through: once more from the beginning
                restarts += 1
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if path.exists():
            cache = open_cache(path)
            done = np.flatnonzero(cache.status == 1)
            assert np.array_equal(cache.embeddings[done], right.embeddings[done])
            assert verify(path).failed == 0
    with start(images, path) as process:
        assert process.wait(timeout=300) == 0
    assert path.read_bytes() == whole.read_bytes()
    print(f"\n{kills} kills, {restarts} runs came through before theirs, the file equals an undisturbed one")


def test_decode_workers_killed_at_random(images: Path, whole: Path, tmp_path: Path) -> None:
    path, choose, killed = tmp_path / "c.h5", random.Random(5), 0
    with start(images, path) as process:
        wait_for_rows(path, process)
        while process.poll() is None:
            time.sleep(choose.uniform(0.5, 1.2))
            found = Path(f"/proc/{process.pid}/task").glob("*/children")
            for child in " ".join(file.read_text() for file in found).split()[:1]:
                os.kill(int(child), signal.SIGKILL)
                killed += 1
        assert process.returncode == 0, process.stderr and process.stderr.read()
    assert path.read_bytes() == whole.read_bytes()
    print(f"\n{killed} decode workers killed, no image failed")
    assert killed >= 2


def test_two_writers(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with start(images, path) as first:
        wait_for_rows(path, first)
        with start(images, path) as second:
            assert second.wait(timeout=120) == 1
            assert second.stderr is not None
            assert f"is being written by process {first.pid} on" in second.stderr.read()
        assert first.wait(timeout=300) == 0
    assert verify(path).complete


RACE = """
import sys, time
from pathlib import Path
from pipeline.cache import write_lock
from pipeline.errors import LockedError
mark = Path(sys.argv[1] + ".mark")
end, held = time.monotonic() + 4, 0
while time.monotonic() < end:
    try:
        with write_lock(Path(sys.argv[1])):
            mark.touch(exist_ok=False)
            mark.unlink()
            held += 1
    except LockedError:
        pass
print(held)
"""


def test_many_processes_race_for_the_lock(tmp_path: Path) -> None:
    """Never two at once: the mark would exist already."""
    path = str(tmp_path / "c.h5")
    racers = [subprocess.Popen([sys.executable, "-c", RACE, path], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    held = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 6
    print(f"\nthe lock was held {sum(held)} times by 6 processes, never by two")
    assert sum(held) > 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a full disk needs the right to mount a small tmpfs (run as root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """At every amount of free space: an error before the first row and nothing left, or a cache that can be filled."""
    ballast, refused, made, reasons = small_disk / "ballast", 0, 0, set[bool]()
    path = small_disk / "c.h5"
    for free in range(0, 1024, 16):
        ballast.write_bytes(bytes((1024 - free) * 1024))
        try:
            synthetic.make_cache(path, 400, synthetic.make_spec(300))
        except CacheError as error:
            reasons.add("space" in str(error))
            assert [file.name for file in small_disk.iterdir()] == ["ballast"]
            refused += 1
        else:
            rest = small_disk / "rest"
            rest.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
            synthetic.fill(path)  # with not one block free
            assert verify(path).complete
            rest.unlink()
            path.unlink()
            made += 1
        ballast.unlink()
    print(
        f"\n{refused} times refused with nothing left behind, {made} times filled on a disk that had since become full"
    )
    assert refused > 10
    assert reasons == {True}
    assert made > 5
