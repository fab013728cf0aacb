from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.backbones.identity import file_sha256, of_path
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_is_another_when_one_of_its_files_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = of_path(str(tmp_path))
    (tmp_path / "inner").mkdir()
    assert of_path(str(tmp_path)) == first
    (tmp_path / "config.json").write_text("[]")
    assert of_path(str(tmp_path)) != first


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"cannot read .*gone\.onnx: No such file"):
        file_sha256(tmp_path / "gone.onnx")
