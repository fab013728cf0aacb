"""Whole commands, stopped at random moments from exec on: no traceback, the right exit code, nothing half-written.

``RANDOM_STOPS`` sets how many runs there are of each command.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import open_cache
from pipeline.core.items import Status

pytestmark = pytest.mark.faults

RUNS = int(os.environ.get("RANDOM_STOPS", "100"))
PIPELINE = str(Path(sys.executable).with_name("pipeline"))
OWN_LINE = re.compile(r'File ".*/pipeline/\S+\.py"')
"""Of a traceback; one without was printed by Python before the first line of the package, where nobody can help it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDINGS = (".part", ".lock", ".old")
EXTRACT = ["extract", "images", "-o", "c.h5", "--precision", "float32", "--workers", "1", "--batch-size", "4"]


def run_undisturbed(folder: Path, command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([PIPELINE, *command], cwd=folder, check=True, capture_output=True)
    return time.monotonic() - started


def wrong_after(folder: Path, command: list[str], signum: signal.Signals, delay: float) -> list[str]:
    """Stop a run after a delay, with its whole group as a terminal does; return what is wrong with how it ended."""
    run = subprocess.Popen(
        [PIPELINE, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(run.pid, signum) if run.poll() is None else None
    said = run.communicate(timeout=120)[0]
    at = f"{command[0]} after {delay:.3f} s of {signum.name}: "
    found = []
    if "Traceback" in said and OWN_LINE.search(said):
        found.append(f"{at}a traceback: {said[-2000:]}")
    is_of_python = signum == signal.SIGINT and "KeyboardInterrupt" in said and not OWN_LINE.search(said)
    if run.returncode not in (128 + signum, -signum, 0, *([1] if is_of_python else [])):  # 1 while `site` is imported
        found.append(f"{at}exit code {run.returncode}: {said[-200:]}")
    for left in [path for path in folder.iterdir() if path.suffix in ENDINGS]:
        found.append(f"{at}{left.name} is left")
        shutil.rmtree(left) if left.is_dir() else left.unlink()  # counted once
    if run.returncode == 0 and command == EXTRACT and not (open_cache(folder / "c.h5").status == Status.DONE).all():
        found.append(f"{at}exit code 0 with rows to do")
    return found


@pytest.fixture(scope="module")
def folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stops")
    shutil.copytree(image_folder, root / "images")
    run_undisturbed(root, EXTRACT)
    (root / "c.h5").rename(root / "whole.h5")
    return root


@pytest.mark.parametrize(
    "command",
    [
        EXTRACT,
        ["fit-head", "whole.h5", "-o", "run"],
        ["select", "whole.h5", "-k", "3", "--all", "-o", "a.csv"],
        ["export", "whole.h5", "--to", "csv", "-o", "e.csv"],
        ["info", "whole.h5"],
    ],
    ids=lambda command: command[0],
)
def test_a_stop_at_any_moment(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    takes = run_undisturbed(folder, command)
    chosen, wrong, stopped = random.Random(17), list[str](), 0
    for _ in range(RUNS):
        for name in ("c.h5", "run"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True) if (folder / name).is_file() else None
        found = wrong_after(folder, command, chosen.choice(SIGNALS), chosen.uniform(0.02, takes))
        stopped += 1
        wrong += found
        with capsys.disabled():
            print("".join(f"\n{one}" for one in found), end="")
    with capsys.disabled():
        print(f"\n{command[0]}: {stopped} runs stopped within {takes:.1f} s, {len(wrong)} wrong")
    assert not wrong
