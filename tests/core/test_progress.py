"""The bar on a terminal and in a notebook, and the lines of a log."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.core import progress
from pipeline.core.progress import ProgressLine, in_notebook, show

if TYPE_CHECKING:
    import pytest


def run(said: list[str]) -> None:
    line = ProgressLine("extract", say=said.append)
    for ready in (2, 5, 10):
        line(ready, 1, 10)
    line.close()


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    run(said)
    assert said == []
    monkeypatch.setattr(progress, "LOG_EVERY_S", -1.0)
    run(said)
    assert [text.partition(",")[0] for text in said] == ["extract: 5 of 10 images", "extract: 10 of 10 images"]
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    said: list[str] = []
    run(said)
    assert said == []
    captured = capsys.readouterr()
    assert "extract: 100%" in captured.out + captured.err


def test_a_message_in_a_notebook_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show("in a script")
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    show("in a notebook")
    assert capsys.readouterr() == ("in a notebook\n", "in a script\n")


def test_a_kernel_is_told_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, expected in (
        (None, False),
        (SimpleNamespace(config={"TerminalIPythonApp": {}}), False),
        (SimpleNamespace(config={"IPKernelApp": {}}), True),
    ):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
