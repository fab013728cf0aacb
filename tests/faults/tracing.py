"""Running a scenario under strace, which kills it or fails it at an exact system call.

Without ``--seccomp-bpf``: with it, strace 6.1 injects no signals.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.cache import open_cache
from pipeline.cache.replace import unfinished_path
from pipeline.errors import CacheError
from tests.cache import synthetic
from tests.faults import scenario

CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "fallocate", "ftruncate", "unlink")
ROOT = Path(__file__).parent.parent.parent


def need_strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.fail("these sweeps need strace (Debian and Ubuntu: apt-get install strace)")
    return found


def trace(name: str, path: Path, *options: str, writer: str = "") -> subprocess.CompletedProcess[str]:
    command = [need_strace(), "-f", "-qq", "-e", f"trace={','.join(CALLS)}", *options]
    command += [sys.executable, "-m", "tests.faults.scenario", name, str(path), *filter(None, [writer])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=120)


def count_calls(name: str, folder: Path) -> Counter[str]:
    """Return how often each call is made in an undisturbed run."""
    path, log = folder / "count.h5", folder / "log"
    scenario.prepare(name, path)
    run = trace(name, path, "-o", str(log))
    assert run.returncode == 0, run.stderr
    return Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", log.read_text(), re.MULTILINE))


def check(name: str, path: Path, printed: str, whole: bytes) -> list[str]:
    """Return what is wrong after a fault: before going on, and after."""
    wrong = list[str]()
    safe = max([0, *(int(line) for line in printed.split() if line.isdecimal())])
    if name == "update" and not path.exists():
        wrong.append("the cache is gone")
    for file in (path, unfinished_path(path)):
        if file.exists():
            try:
                wrong += synthetic.wrong_rows(file)
            except CacheError as error:
                wrong.append(str(error))
    if not wrong and name == "update":
        if (open_cache(path).status == 0).any():
            wrong.append("the cache in use has rows to do")
        progress = unfinished_path(path) if unfinished_path(path).exists() else path
    else:
        progress = path
    if not wrong and safe and int((open_cache(progress).status != 0).sum()) < safe:
        wrong.append(f"fewer than the {safe} rows that were safe")
    if not wrong:
        getattr(scenario, name)(path)  # the same command goes on
        if path.read_bytes() != whole:
            wrong.append("what it ends with differs from an undisturbed run")
        left = sorted(
            file.name
            for file in path.parent.iterdir()
            if file.name.startswith(path.name + ".") and file.suffix != ".lock"
        )
        if left:
            wrong.append(f"left behind: {left}")
    return wrong
