"""The engine that a CPU opens first opens while the sample is decoded."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.decoding.image import DecodePolicy
from pipeline.embedding import choose
from pipeline.embedding.settings import RunSettings
from pipeline.errors import EngineError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = RunSettings(engine="openvino", device="cpu")
PATIENCE = 30.0


class StandInEngine:
    """An engine that knows whether it is open."""

    name, device, precision = "openvino", "cpu", "float32"
    precisions = ("float32",)
    is_open = True

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def choose_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return `choose_engine` with stand-ins for decoding the sample and opening the engine."""

    def call(sampled: Callable[[], Any], opened: Callable[[], Any], decode: DecodePolicy = DecodePolicy()) -> Any:
        monkeypatch.setattr(choose, "_sample", lambda *asked: (sampled(), []))
        monkeypatch.setattr(choose, "open_engine", lambda *args, **kwargs: opened())
        source, backbone = [0, 1], None
        return choose.choose_engine(source, backbone, decode, SETTINGS)  # type: ignore[arg-type]

    return call


def nothing() -> Any:
    return np.empty((0, 4, 4, 3), np.uint8)


def test_neither_waits_for_the_other(choose_with: Callable[..., Any]) -> None:
    begun = {"sample": threading.Event(), "engine": threading.Event()}

    def wait_for(own: str, other: str, result: Any) -> Any:
        begun[own].set()
        assert begun[other].wait(PATIENCE)
        return result

    engine = StandInEngine()
    found, check = choose_with(
        lambda: wait_for("sample", "engine", nothing()), lambda: wait_for("engine", "sample", engine)
    )
    assert found is engine
    assert check == {"images": 0, "cosine": {}}


def test_an_engine_is_closed_where_the_sample_fails(choose_with: Callable[..., Any]) -> None:
    engine = StandInEngine()

    def fail() -> Any:
        raise PipelineError("expected workers to start")

    with pytest.raises(PipelineError, match="workers"):
        choose_with(fail, lambda: engine)
    assert not engine.is_open


def test_an_engine_that_does_not_open_is_the_error(choose_with: Callable[..., Any]) -> None:
    def fail() -> Any:
        raise EngineError("no such device")

    with pytest.raises(EngineError, match="no such device"):
        choose_with(nothing, fail)


def test_images_decoded_on_a_gpu_come_before_the_engine(choose_with: Callable[..., Any]) -> None:
    order: list[str] = []

    def note(name: str, result: Any) -> Any:
        order.append(name)
        return result

    decode = DecodePolicy(jpeg_decoder="gpu")
    choose_with(lambda: note("sample", nothing()), lambda: note("engine", StandInEngine()), decode)
    assert order == ["sample", "engine"]
