"""Networks that end the process in OpenVINO's compiler are refused; all others pass."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("openvino")

from pipeline.backbones import load_backbone
from pipeline.engines import open_engine
from pipeline.engines.openvino_trial import crash_of
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path


def a_python(folder: Path, script: str) -> str:
    """Return a program that stands in for Python."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(("script", "found"), [("kill -SEGV $$", "SIGSEGV"), ("kill -KILL $$", ""), ("exit 1", "")])
def test_a_crash_is_told_from_other_ends(
    script: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", a_python(tmp_path, script))
    assert crash_of(tmp_path / "network.xml", (4, 8, 8, 3), ["f32"]) == found


def test_a_network_that_crashes_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    backbone = load_backbone("timm/test_resnet", "random")
    monkeypatch.setattr(sys, "executable", a_python(tmp_path, "kill -SEGV $$"))
    with pytest.raises(EngineError, match=r"cannot run timm/test_resnet \(its process ends by SIGSEGV\)"):
        open_engine(backbone, engine="openvino", device="cpu", batch_size=2)
    assert not list(tmp_path.glob("kept/**/network.xml"))


@pytest.mark.slow
def test_a_network_of_timm_that_ends_processes_does_not_end_this_one() -> None:
    """Under OpenVINO 2026.4; a later version may run it."""
    with contextlib.suppress(EngineError):
        open_engine(load_backbone("timm/efficientnet_b0_gn", "random"), engine="openvino", device="cpu").close()
