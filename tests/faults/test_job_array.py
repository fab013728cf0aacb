"""A job array of 40 parts: tasks die, hosts are gone, ``status`` names what is missing, one command completes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cache.holder import described
from pipeline.cache.lock import lock_path
from tests.cli.run import run_command

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
PARTS, IMAGES, AT_ONCE = 40, 1200, 2
KILLED, HOSTS_GONE = 8, 2
TASK = """
import sys
from scripts.trivial_network import trivial_network
from pipeline.cli import main
with trivial_network(size=32, batch_size=4):
    main()
"""


def task(folder: Path, number: int | None) -> subprocess.Popen[bytes]:
    """Start the extraction of a part, or of everything."""
    shard = [] if number is None else ["--shard", f"{number}/{PARTS}"]
    output = folder / ("whole.h5" if number is None else "photos-{shard}.h5")
    arguments = ["extract", str(folder / "images"), "-o", str(output), "--workers", "1", *shard]
    return subprocess.Popen([sys.executable, "-c", TASK, *arguments], stderr=subprocess.DEVNULL, cwd=ROOT)


def run_array(folder: Path, numbers: list[int], kill: int) -> set[int]:
    """Run parts, some at a time; kill as many as asked, at random moments; return those."""
    choose, waiting, killed = random.Random(3), list(numbers), set[int]()
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            doomed = len(killed) + sum(moment < float("inf") for _, moment in running.values())
            is_doomed = doomed < kill and choose.random() < 0.5
            moment = time.monotonic() + choose.uniform(0.2, 4.0) if is_doomed else float("inf")
            number = waiting.pop(0)
            running[number] = task(folder, number), moment
        for number, (process, moment) in list(running.items()):
            if time.monotonic() > moment and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed.add(number)
            if process.poll() is not None:
                assert process.returncode == 0 or number in killed, number
                del running[number]
        time.sleep(0.02)
    return killed


def lose_host(folder: Path, number: int, *, lease: bool) -> None:
    """Leave the lock file of a part as a host does that is gone: nobody holds its lock, or renews its lease."""
    text = described("0123456789ab" if lease else None).replace(os.uname().nodename, f"gone{number}")
    lock = lock_path(folder / f"photos-{number:02d}.h5")
    lock.write_text(text.replace(" of ", " of another-"))
    os.utime(lock, (1e9, 1e9))


def test_an_array_is_completed_by_one_command(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (20 + number % 7, 20), (number % 256, number // 256, 7)).save(images / f"{number:04d}.png")
    killed = run_array(tmp_path, list(range(1, PARTS + 1)), KILLED + HOSTS_GONE)
    idle = {int(n) for n in run_command("status", tmp_path, "--idle-shards").stdout.split(",")}
    assert len(killed) == KILLED + HOSTS_GONE
    assert len(idle) > HOSTS_GONE  # others were through before they were killed
    lost = sorted(idle)[:HOSTS_GONE]
    for number in lost:
        lose_host(tmp_path, number, lease=number == lost[0])
    assert idle <= killed
    facts = json.loads(run_command("status", tmp_path, "--json").stdout)
    hosts = {part["holder"]["host"] for part in facts["parts"] if part["state"] == "died"}
    assert {f"gone{number}" for number in lost} <= hosts
    again = run_command("status", tmp_path, "--idle-shards").stdout.split(",")
    assert sorted(map(int, again)) == sorted(idle)
    assert not run_array(tmp_path, [int(number) for number in again], 0)
    assert run_command("status", tmp_path).exit_code == 0
    parts = [tmp_path / f"photos-{number:02d}.h5" for number in range(1, PARTS + 1)]
    assert run_command("merge", *parts, "-o", tmp_path / "merged.h5").exit_code == 0
    assert task(tmp_path, None).wait() == 0
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    print(
        f"\n{PARTS} parts, {len(killed)} killed, {len(lost)} of them on hosts that are gone; status named the "
        f"{len(idle)} that were not through, and the merged file equals that of one run byte for byte"
    )
