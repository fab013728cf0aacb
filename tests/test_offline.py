"""Nothing leaves the machine unless the user asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.training.probe import Probe

RECORDER = Path(__file__).parent / "offline"
RUN = """
import json, sys
from tests.cli.run import run_command
for arguments in json.loads(sys.argv[1]):
    ran = run_command(*arguments)
    assert ran.exit_code == 0, (arguments, ran.stderr)
"""


def attempts(folder: Path, code: str, *arguments: str) -> str:
    """Run code in a process of its own; return what it and its children tried to reach."""
    file = folder / "attempts"
    path = os.pathsep.join([str(RECORDER), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "ATTEMPTS": str(file), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return file.read_text() if file.exists() else ""


def test_the_recorder_records(tmp_path: Path) -> None:
    code = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 1)"
    assert "127.0.0.1" in attempts(tmp_path, code)


@pytest.mark.slow
def test_local_work_opens_no_connection(probe: Probe, tmp_path: Path) -> None:
    import json

    verbs = [
        ["extract", probe.images, "-o", "c.h5", "--engine", "openvino", "--precision", "float32", "--workers", "1"],
        ["fit-head", "c.h5", "-o", "run"],
        ["predict", "run", probe.images, "-o", "p.csv"],
        ["map", "c.h5", "-o", "map.html"],
    ]
    inside = f"import os\nos.chdir({str(tmp_path)!r})\n{RUN}"
    assert attempts(tmp_path, inside, json.dumps(verbs, default=str)) == ""


@pytest.mark.slow
def test_finetuning_opens_no_connection(probe: Probe, tmp_path: Path) -> None:
    import json

    verbs = [["finetune", probe.cache_path, probe.run, "-o", tmp_path / "run2", "--epochs", "1"]]
    assert attempts(tmp_path, RUN, json.dumps(verbs, default=str)) == ""


@pytest.mark.parametrize(
    "name", ["HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED", "NO_ALBUMENTATIONS_UPDATE"]
)
def test_usage_reports_of_libraries_are_off_and_the_users_choice_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os, pipeline; print(os.environ[{name!r}])"

    def said() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.delenv(name, raising=False)
    assert said() == ("0" if name == "RAY_USAGE_STATS_ENABLED" else "1")
    monkeypatch.setenv(name, "what the user set")
    assert said() == "what the user set"
