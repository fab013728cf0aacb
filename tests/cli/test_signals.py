"""A command that is told to end clears away what it has begun, shows no traceback, and says so by its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.cli.signals import Stopped, end_on_signals, stop_on_signal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
INSIDE = """
import os, sys
from pathlib import Path
from pipeline.cli.signals import end_on_signals
from pipeline.core.ending import uninterrupted
from pipeline.core.files import replacing, replacing_folder
from pipeline.cache import write_lock

end_on_signals()
folder, signum = Path(sys.argv[1]), int(sys.argv[2])
(folder / "run").mkdir()
(folder / "run" / "old").touch()
with write_lock(folder / "c.h5"), replacing(folder / "a.csv") as file, replacing_folder(folder / "run") as part:
    file.write_text("half")
    (part / "half").touch()
    try:
        os.kill(os.getpid(), signum)
    except BaseException:
        print("raised")
print("went on")
"""


def run_inside(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("signum", "exit_code"), SIGNALS)
def test_a_signal_removes_unfinished_files_and_raises_nothing(
    tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    ended = run_inside(INSIDE, tmp_path, int(signum))
    assert (ended.returncode, ended.stdout, ended.stderr) == (exit_code, "", "")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["run", "run/old"]


def test_an_end_waits_for_steps_of_which_one_alone_would_lose_a_folder(tmp_path: Path) -> None:
    code = INSIDE.replace(
        "os.kill(os.getpid(), signum)",
        "rename = Path.rename; Path.rename = lambda a, b: (rename(a, b), os.kill(os.getpid(), signum))",
    )
    ended = run_inside(code, tmp_path, int(signal.SIGTERM))
    assert (ended.returncode, ended.stderr) == (143, "")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["run", "run/half"]


@pytest.mark.parametrize(("signum", "exit_code"), SIGNALS)
def test_the_first_signal_asks_and_the_second_ends(signum: signal.Signals, exit_code: int) -> None:
    code = """
import os, sys
from pipeline.cli.signals import stop_on_signal
with stop_on_signal() as stop:
    os.kill(os.getpid(), int(sys.argv[1]))
    print(stop.is_set(), flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    print("went on", flush=True)
"""
    ended = run_inside(code, int(signum))
    assert (ended.returncode, ended.stdout) == (exit_code, "True\n")


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum, _ in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def stop_by(signum: signal.Signals) -> None:
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signum)
        assert stop.wait(5)


@pytest.mark.usefixtures("handlers")
def test_leaving_tells_of_the_signal_and_restores_the_handlers() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(Stopped) as stopped:
        stop_by(signal.SIGHUP)
    assert stopped.value.exit_code == 129
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_on_signals()
    with stop_on_signal():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=end_on_signals)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_importing_the_command_line_handles_no_signal_and_loads_little() -> None:
    code = """
import sys, signal
before = set(sys.modules)
import pipeline.cli
print(sorted(name for name in set(sys.modules) - before if name != "pipeline" and not name.startswith("pipeline.")))
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert run_inside(code).stdout == "[]\nTrue\n"


@pytest.mark.parametrize("verb", [["fit-head", "c.h5", "-o", "run"], ["select", "c.h5"], ["map", "c.h5"]])
def test_a_seed_that_no_generator_takes_is_refused(verb: list[str]) -> None:
    for seed in ("-1", "4294967296", "one"):
        result = CliRunner().invoke(cli, [*verb, "--seed", seed])
        assert result.exit_code == 2
        assert "--seed" in result.output
