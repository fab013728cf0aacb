"""The streams of a whole process: what cannot be written is an error of the stream, and never of the work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = f"exec {sys.executable} -m pipeline"
ROOT = Path(__file__).parent.parent.parent


def shell(line: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **more},
    )


@pytest.mark.parametrize(
    ("redirection", "exit_code", "said"),
    [
        (">/dev/full", 1, "error: cannot write to standard output (No space left on device): name a file with -o\n"),
        (">&-", 1, "error: cannot write to standard output (Bad file descriptor): name a file with -o\n"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
        ("<&- 2>&-", 0, ""),
    ],
)
def test_lost_data_are_an_error_and_lost_messages_are_none(
    tmp_path: Path, redirection: str, exit_code: int, said: str
) -> None:
    ended = shell(f"{PIPELINE} --version {redirection}", tmp_path)
    assert (ended.returncode, ended.stderr) == (exit_code, said)
    if ">" not in redirection.replace("2>", ""):
        assert ended.stdout.startswith("pipeline, version ")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_an_error_without_a_place_for_its_message_keeps_its_exit_code(tmp_path: Path, redirection: str) -> None:
    assert shell(f"{PIPELINE} info none.h5 {redirection}", tmp_path).returncode == 1


def test_a_reader_that_has_enough_ends_the_command_as_its_signal_would(tmp_path: Path) -> None:
    line = f"(sh -c '{PIPELINE} --help'; echo $? >code) | true; cat code"
    ended = shell(f"sleep 0.05; {line}", tmp_path)
    assert (ended.stdout, ended.stderr) == ("141\n", "")


def test_a_folder_that_was_removed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ended = shell(f"cd gone && rmdir ../gone && {PIPELINE} info /none.h5", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: expected a current folder, found none (No such file or directory): change to a folder that exists\n"
    )


def test_a_lack_of_memory_is_one_line(tmp_path: Path) -> None:
    code = """
import sys
from pipeline.cli import base, process
base.cli.main = lambda **more: bytearray(1 << 60)
sys.argv = ["pipeline", "info"]
process.run()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: expected more memory")
    assert ended.stderr.count("\n") == 1


def test_a_thread_without_memory_ends_the_process(tmp_path: Path) -> None:
    code = f"""
import sys, threading
from pathlib import Path
from pipeline.cli import base, process
from pipeline.core.files import replacing

def fail():
    raise RuntimeError("can't start new thread")

def work(**more):
    with replacing(Path({str(tmp_path)!r}) / "a.csv") as part:
        part.write_text("half")
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

base.cli.main = work
process.run()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: expected more memory")
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_stream_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    code = """
import os, sys
from pipeline.cli.streams import open_standard_streams
os.set_blocking(1, False)
lost = open_standard_streams()
sys.stdout.write("x" * 1_000_000)
sys.stdout.flush()
print(lost.lost, file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (len(ended.stdout), ended.stderr) == (1_000_000, "None\n")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "from pipeline.cli.streams import *; open_standard_streams(); print(os.open(os.devnull, 0) > 2)"
    ended = shell(f"exec {sys.executable} -c '{code}' <&- 2>&-", tmp_path)
    assert ended.stdout == "True\n"
