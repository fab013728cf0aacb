from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pipeline.cli import base
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path


def test_a_slow_command_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(base, "_PATIENCE_SECONDS", 0.0)
    base.announce("map: reading c.h5")
    assert base._announcement is not None
    base._announcement.join()
    assert capfd.readouterr().err == "map: reading c.h5\n"


def test_an_error_that_comes_first_stays_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "_PATIENCE_SECONDS", 0.05)
    base.announce("map: reading c.h5")
    base.say("error: none")
    time.sleep(0.1)
    assert capfd.readouterr().err == "error: none\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["info", ""], "'CACHE'"),
        (["status", "a.h5", ""], "'FILE...'"),
        (["extract", "images", "-o", ""], "'-o' / '--output'"),
        (["extract", "images", "-o", "c.h5", "--backbone", ""], "'--backbone'"),
        (["extract", "images", "-o", "c.h5", "--ray="], "'--ray'"),
        (["fit-head", "c.h5", "-o", "run", "--target", "age", "--target", ""], "'--target'"),
        (["search", "c.h5", "a.png", "--page", ""], "'--page'"),
        (["label", "c.h5", "-o", ""], "'-o' / '--output'"),
    ],
)
def test_a_variable_that_is_not_set_stands_for_no_default(arguments: list[str], named: str) -> None:
    ran = run_command(*arguments)
    assert ran.exit_code == 2
    assert ran.stderr.endswith(f"Error: Invalid value for {named}: expected a value, got an empty one: give one\n")


def test_values_that_may_be_empty_are_taken(tmp_path: Path) -> None:
    ran = run_command("export", tmp_path / "none.h5", "--to", "csv", "-o", tmp_path / "a.csv", "--split", "")
    assert (ran.exit_code, "found nothing" in ran.stderr) == (1, True)
