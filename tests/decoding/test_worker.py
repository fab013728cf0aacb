from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.items import Status
from pipeline.decoding import worker
from pipeline.decoding.image import DecodePolicy
from pipeline.decoding.preprocess import Preprocess


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> worker.Setup:
    """Return settings with a preparation that always fails."""

    def fail(*args: Any) -> None:
        raise TypeError("a fault\nof the program")

    monkeypatch.setattr(Preprocess, "apply", fail)
    prepare: Any = Preprocess((8,), (8, 8), "bilinear", (0.0,) * 3, (1.0,) * 3)
    read: Any = None
    return worker.Setup(read, DecodePolicy(), prepare, (1, 1, 8, 8, 3), 1, 0, 0, 60.0)


def outcome(setup: worker.Setup) -> worker.Outcome:
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, "PNG")
    return worker._work(setup, 0, out.getvalue, np.empty((8, 8, 3), np.uint8), np.empty(0, np.uint8))


def test_an_error_of_the_program_does_not_call_a_sound_image_corrupt(setup: worker.Setup) -> None:
    found = outcome(setup)
    assert (found.status, found.reason) == (Status.DECODER_CRASHED, "TypeError: a fault of the program")


def test_an_error_of_a_replaced_program_ends_the_worker(setup: worker.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "package_stamp", lambda: 0)
    with pytest.raises(TypeError):
        outcome(setup)
