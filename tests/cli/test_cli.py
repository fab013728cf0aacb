"""The command line as a user meets it: exit codes, one-line errors, signals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pipeline import open_cache
from tests.cli.run import run_command
from tests.measured import processor_time, processor_time_of_ended

if TYPE_CHECKING:
    from pathlib import Path

RUN = [sys.executable, "-m", "pipeline"]


def pipeline(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; `run_command` does the same in this one."""
    command = [*RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def cache_file(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "c.h5"
    done = run_command("extract", image_folder, "-o", path, "--precision", "float32")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "24 of 24 images done (24 now, 0 failed)" in done.stderr
    return path


def test_info_says_what_is_in_it(cache_file: Path) -> None:
    done = run_command("info", cache_file)
    assert done.exit_code == 0
    assert done.stderr == ""
    for expected in ("24", "done 24", "efficientnet_lite0", "penultimate 1280", "ant 8, bee 8, cat 8"):
        assert expected in done.stdout
    assert json.loads(run_command("info", "--json", cache_file).stdout)["images"] == 24


def test_some_failed_is_exit_code_3(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "ant", tmp_path / "images")
    whole = (tmp_path / "images" / "00.png").read_bytes()
    (tmp_path / "images" / "00.png").write_bytes(whole[:-3000])
    (tmp_path / "images" / "notes.txt").write_text("x")
    done = pipeline("extract", tmp_path / "images", "-o", tmp_path / "c.h5", "--precision", "float32")
    assert done.returncode == 3, done.stderr
    assert "1 image failed" in done.stderr
    assert "left out: 1 not an image (such as notes.txt)" in done.stderr
    listed = run_command("info", "--failed", tmp_path / "c.h5")
    assert listed.stdout.startswith("00.png\tcorrupt: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["extract", "{none}", "-o", "{tmp}/c.h5"], 1, "found nothing"),
        (["extract", "{empty}", "-o", "{tmp}/c.h5"], 1, "found an empty folder"),
        (["extract", "{images}", "-o", "{tmp}/no/c.h5"], 1, "make it first"),
        (
            ["extract", "{images}", "-o", "{tmp}/c.h5", "--backbone", "torchvision/resnet5"],
            1,
            "did you mean torchvision/resnet50",
        ),
        (["extract", "{images}", "-o", "{tmp}/c.h5", "--layer", "block.1"], 1, "did you mean blocks.1"),
        (["extract", "{images}", "-o", "{tmp}/c.h5", "--device", "cuda:99"], 1, "there is no device cuda:99"),
        (["extract", "{images}"], 2, "Missing option"),
        (["extract", "{images}", "-o", "{tmp}/c.h5", "--dtype", "int8"], 2, "Invalid value"),
        (["info", "{none}"], 1, "found nothing"),
        (["info", "{self}"], 1, "found something else"),
        (["predict", "{none}", "{images}", "-o", "{tmp}/o.csv"], 1, "fit one with pipeline fit-head"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], code: int, message: str, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "empty").mkdir()
    places = {
        "none": tmp_path / "none",
        "empty": tmp_path / "empty",
        "tmp": tmp_path / "out",
        "images": image_folder,
        "self": __file__,
    }
    done = run_command(*[argument.format(**places) for argument in arguments])
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert [line.startswith("error: ") for line in done.stderr.splitlines()][-1:] == [True]
        assert done.stderr.count("error: ") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow  # every run has both signals, on a smaller network, in tests/stages/test_extract_faults.py
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_commits_and_the_same_command_goes_on(
    signum: signal.Signals, code: int, image_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "many.csv"
    for copy in range(16):
        shutil.copytree(image_folder, tmp_path / f"copy{copy:02d}")
    paths = sorted(tmp_path.glob("copy*/*/*"))
    table.write_text("path\n" + "\n".join(map(str, paths)) + "\n")
    command = [*RUN, "extract", str(table), "-o", str(tmp_path / "c.h5"), "--precision", "float32"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if (tmp_path / "c.h5").exists() and open_cache(tmp_path / "c.h5").status.any():
            break
    before = processor_time(process.pid) + processor_time_of_ended()
    process.send_signal(signum)
    _, said = process.communicate(timeout=120)
    assert processor_time_of_ended() - before < 5
    assert process.returncode == code, said
    assert "the same command resumes" in said
    done = int((open_cache(tmp_path / "c.h5").status == 1).sum())
    assert 0 < done < len(paths)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"({len(paths) - done} now, 0 failed)" in again.stderr


def test_an_error_is_one_line_and_an_exit_code_of_the_process_too(tmp_path: Path) -> None:
    done = pipeline("info", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_every_command_and_option_has_help() -> None:
    from pipeline.cli import cli

    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None) or getattr(parameter, "show_default", None), (
                    name,
                    parameter.name,
                )
