"""Kill, EIO and ENOSPC at every system call by which a cache is laid out, filled and brought up to date."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults import scenario
from tests.faults.tracing import CALLS, check, count_calls, trace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults


def whole_file(name: str, folder: Path) -> bytes:
    path = folder / "whole.h5"
    scenario.prepare(name, path)
    getattr(scenario, name)(path)
    return path.read_bytes()


def sweep(name: str, folder: Path, fault: str, every: dict[str, int]) -> tuple[Counter[str], dict[str, list[str]]]:
    """Inject a fault at each call in turn; return how many points of each call, and what was wrong where."""
    whole, calls = whole_file(name, folder), count_calls(name, folder)
    points, wrong = Counter[str](), dict[str, list[str]]()
    for call in CALLS:
        for when in range(1, calls[call] + 1, every.get(call, 1)):
            path = folder / f"{call}{when}.h5"
            scenario.prepare(name, path)
            run = trace(name, path, "-e", f"inject={call}:{fault}:when={when}", "-o", "/dev/null")
            if fault == "signal=KILL":
                assert run.returncode != 0, f"{call} {when}: not killed"
            elif run.returncode not in (0, 1) or "Traceback" in run.stderr:
                wrong[f"{call} {when}"] = ["no one-line error", run.stderr[-500:]]
                continue
            points[call] += 1
            if found := check(name, path, run.stdout, whole):
                wrong[f"{call} {when}"] = found
            for file in folder.glob(path.name + "*"):
                file.unlink()
    return points, wrong


@pytest.mark.parametrize("name", ["fill", "update"])
def test_kill_at_every_call(name: str, tmp_path: Path) -> None:
    points, wrong = sweep(name, tmp_path, "signal=KILL", {})
    print(f"\nkill, {name}: {points.total()} points {dict(points)}")
    assert wrong == {}
    assert points.total() >= 80


@pytest.mark.parametrize("name", ["fill", "update"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_disk_errors_at_calls(name: str, error: str, tmp_path: Path) -> None:
    points, wrong = sweep(name, tmp_path, f"error={error}", {"pwrite64": 5})
    print(f"\n{error}, {name}: {points.total()} points {dict(points)}")
    assert wrong == {}
    assert points.total() >= 20


@pytest.mark.parametrize("writer", ["status first", "rows swapped"])
def test_the_sweep_catches_planted_bugs(writer: str, tmp_path: Path) -> None:
    whole, calls = whole_file("fill", tmp_path), count_calls("fill", tmp_path)["pwrite64"]
    found = list[str]()
    for when in range(calls - 30, calls, 4):
        path = tmp_path / f"{when}.h5"
        run = trace("fill", path, "-e", f"inject=pwrite64:signal=KILL:when={when}", "-o", "/dev/null", writer=writer)
        found += check("fill", path, run.stdout, whole)
    print(f"\n{writer}: caught {len(found)} times")
    assert found
