"""A command that is told to end clears away what it has begun."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from tests.heads.standin import stand_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_fit_that_is_stopped_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    monkeypatch.setattr("pipeline.stages.fit_head.open_cache", lambda path: stand_in())

    def stop(*args: object, **more: object) -> None:
        assert [file.suffix for file in tmp_path.iterdir()] == [".part"]
        os.kill(os.getpid(), signum)

    monkeypatch.setattr("pipeline.stages.fit_head.read_rows", stop)
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(cli, ["fit-head", "c.h5", "-o", str(tmp_path / "run")])
    assert result.exit_code == exit_code
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("verb", [["fit-head", "c.h5", "-o", "run"], ["select", "c.h5"], ["map", "c.h5"]])
def test_a_seed_that_no_generator_takes_is_refused(verb: list[str]) -> None:
    for seed in ("-1", "4294967296", "one"):
        result = CliRunner().invoke(cli, [*verb, "--seed", seed])
        assert result.exit_code == 2
        assert "--seed" in result.output
