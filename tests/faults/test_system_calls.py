"""Kill, EIO and ENOSPC at every system call by which a cache is laid out, filled and brought up to date."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import scenario
from tests.faults.tracing import CALLS, check, count_calls, trace

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


@pytest.mark.parametrize("planted", ["sync", "order"])
def test_the_sweep_catches_planted_bugs(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that does not commit, or says done first, is caught by the same oracle after a kill."""
    code = {
        "sync": "_put_status = lambda self, rows, statuses: None",
        "order": (
            "def _write_rows(self, rows, outputs, hashes, statuses, base=CacheWriter._write_rows):\n"
            "        self._put_status(rows, statuses)\n        base(self, rows, outputs, hashes, statuses)"
        ),
    }[planted]
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'tests.faults.scenario' in sys.orig_argv:\n"
        f"    from pipeline.cache.writer import CacheWriter\n    class Broken(CacheWriter):\n        {code}\n"
        "    CacheWriter._put_status = Broken._put_status\n    CacheWriter._write_rows = Broken._write_rows\n"
    )
    from tests.faults import tracing

    whole = whole_file("fill", tmp_path)
    real = tracing.subprocess.run
    monkeypatch.setattr(
        tracing.subprocess,
        "run",
        lambda command, env, **more: real(
            command, env={**env, "PYTHONPATH": f"{tmp_path}:{env['PYTHONPATH']}"}, **more
        ),
    )
    calls = count_calls("fill", tmp_path)
    found = list[str]()
    for when in range(calls["pwrite64"] - 30, calls["pwrite64"], 7):
        path = tmp_path / f"{when}.h5"
        run = trace("fill", path, "-e", f"inject=pwrite64:signal=KILL:when={when}", "-o", "/dev/null")
        printed = re.sub(r"\b0\b", "8", run.stdout)  # what a writer that never sets a status would claim
        found += check("fill", path, printed, whole)
    assert found
