from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pipeline.backbones import known, load_backbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.layers import Weights
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

SMALL = "timm/test_efficientnet"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path


def test_the_second_time_no_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_backbone(SMALL, "random", ("blocks.1",))
    monkeypatch.setattr("pipeline.backbones._body", None)  # it would be called, and fail
    second = load_backbone(SMALL, "random", ("blocks.1",))
    assert second.to_spec() == first.to_spec()
    assert (second.layers, second.preprocess) == (first.layers, first.preprocess)
    with pytest.raises(TypeError):
        second.network.eval()


def test_a_network_that_is_needed_is_built_once() -> None:
    load_backbone(SMALL, "random")
    again = load_backbone(SMALL, "random")
    # Fine-tuning changes the weights of the network in place, and then names them.
    tuned = replace(again, weights=Weights("fine-tuned", "here", "0"))
    assert tuned.network is again.network


def test_other_bytes_of_a_file_are_other_weights(folder: Path) -> None:
    file = folder / "w.safetensors"
    file.write_bytes(b"one")
    first = known.question(SMALL, str(file), ())
    file.write_bytes(b"two")
    assert known.question(SMALL, str(file), ()) != first
    file.write_bytes(b"one")
    assert known.question(SMALL, str(file), ()) == first
    assert known.question(SMALL, str(file), ("blocks.1",)) != first


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"backbone": 1'])
def test_what_is_damaged_is_not_recalled(content: str) -> None:
    known.remember("asked", load_backbone(SMALL, "random").to_spec())
    assert known.recall("asked") is not None
    known._file("asked").write_text(content)
    assert known.recall("asked") is None


def test_a_network_that_is_no_longer_the_same_is_refused() -> None:
    real = load_backbone(SMALL, "random")
    spec = real.to_spec()
    other = Backbone.of_spec({**spec, "weights": {**spec["weights"], "sha256": "0" * 64}}, lambda: real)
    with pytest.raises(BackboneError, match="changed since they were last used: run again"):
        other.network.eval()
