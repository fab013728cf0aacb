from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.cli import base

if TYPE_CHECKING:
    import pytest


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
