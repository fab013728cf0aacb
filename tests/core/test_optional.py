"""A package that is there and cannot be loaded is not called missing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.core.optional import optional_part
from pipeline.errors import AnalysisError

if TYPE_CHECKING:
    from pathlib import Path


def load(name: str) -> None:
    with optional_part("this needs it", "pip install it", AnalysisError):
        __import__(name)


def test_what_is_missing_and_what_fails_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AnalysisError, match=r"^this needs it, which is not installed: pip install it$"):
        load("no_such_part")
    monkeypatch.setitem(sys.modules, "switched_off_part", None)
    with pytest.raises(AnalysisError, match="is not installed"):
        load("switched_off_part")
    (tmp_path / "part_of_another_version.py").write_text("from os import gone\n")
    with pytest.raises(AnalysisError, match=r"which fails \(cannot import name 'gone' from 'os'"):
        load("part_of_another_version")


def test_a_lack_of_memory_is_not_a_missing_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "libx.so: failed to map segment from shared object"
    (tmp_path / "part_without_memory.py").write_text(f"raise ImportError({text!r})\n")
    with pytest.raises(ImportError, match="failed to map"):
        load("part_without_memory")
