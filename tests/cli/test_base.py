from __future__ import annotations

import errno
import json
import math
import os
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.cache import format as fmt
from pipeline.cli import base
from tests.cache import synthetic
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


def test_json_has_no_numbers_and_names_that_parsers_refuse(capfd: pytest.CaptureFixture[str]) -> None:
    base.print_json({"\udcff": [math.nan, (math.inf, 1.5)], "b": {"c": None, "d": "\udce9.h5", "e": True}})
    found = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert found == {r"\xff": [None, [None, 1.5]], "b": {"c": None, "d": r"\xe9.h5", "e": True}}


def test_a_cache_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 2)
    path.chmod(0)
    monkeypatch.setattr(os, "access", lambda *_: False)  # what click asks, and root would be told otherwise
    monkeypatch.setattr(fmt, "open_hdf5", denied)
    ran = run_command("info", path)
    assert (ran.exit_code, ran.stderr) == (
        1,
        f"error: cannot read {path} (Permission denied): change its permissions\n",
    )


def denied(path: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")
