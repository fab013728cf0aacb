from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.accelerator import make_accelerator
from pipeline.training.mix import SHARES, choose_share, interpolated, judge_shares, mix_networks
from pipeline.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = np.array([0, 64, 128, 255, 32], dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 3), dtype=np.uint8)
CLASSES = np.array([0, 0, 1, 1, 0], dtype=np.int64)


class Brightness(nn.Module):
    """Two classes by the mean of an image; its statistics and counter stand for those of batch normalisation."""

    def __init__(self, weight: float, bias: float) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-weight], [weight]]))
            self.head.bias.copy_(torch.tensor([bias, -bias]))
        self.register_buffer("count", torch.tensor(int(weight)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.float().mean((1, 2, 3))[:, None] / 255)  # type: ignore[no-any-return]


class Images:
    """Gives batches of two, and counts the images that were read."""

    def __init__(self) -> None:
        self.read = 0

    def batches(self, rows: Any) -> Iterator[np.ndarray[Any, Any]]:
        for at in range(0, len(rows), 2):
            self.read += len(rows[at : at + 2])
            yield IMAGES[rows[at : at + 2]]


def mix(start: nn.Module, tuned: nn.Module, share: float | str, stop: threading.Event | None = None) -> Any:
    images = Images()
    data: Any = SimpleNamespace(images=images, val=np.arange(5), y=CLASSES)
    network: Any = Brightness(0, 0)
    found = mix_networks(
        network,
        start.state_dict(),
        tuned.state_dict(),
        data,
        make_accelerator(TrainSettings(precision="float32", device="cpu")),
        stop or threading.Event(),
        share=share,
        most=1,
    )
    return found, images.read


def test_weights_lie_on_the_line_and_the_ends_are_exact() -> None:
    start, tuned = Brightness(1, 3).state_dict(), Brightness(2, -0.1).state_dict()
    for share, same in ((0.0, start), (1.0, tuned)):
        found = interpolated(start, tuned, share)
        assert all(torch.equal(found[name], same[name]) for name in ("head.weight", "head.bias"))
    quarter = interpolated(start, tuned, 0.25)
    assert quarter["head.weight"].flatten().tolist() == [-1.25, 1.25]
    assert quarter["count"] == 2  # no mean of whole numbers


def test_the_largest_share_within_the_noise_is_taken() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=400)
    right = np.eye(3)[y]
    noise = rng.normal(size=(len(SHARES), 400, 3))
    # Better up to 0.5, hardly worse after that, and clearly worse from 0.9 on.
    signal = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 1.99, 1.98, 1.97, 1.0, 0.5]
    tried = judge_shares([s * right + 0.01 * n for s, n in zip(signal, noise, strict=True)], y)
    assert min(tried, key=lambda entry: entry["val_loss"])["share"] == 0.5
    assert choose_share(tried) == 0.5  # a paired difference that all rows share is no noise
    tried = judge_shares([s * right + 0.2 * n for s, n in zip(signal, noise, strict=True)], y)
    assert 0.5 < choose_share(tried) <= 0.8


def test_a_network_that_is_only_too_sure_is_not_behind() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    logits = np.eye(2)[y] + rng.normal(size=(300, 2))
    tried = judge_shares([logits] * 10 + [3 * logits], y)
    assert tried[-1]["val_loss"] == pytest.approx(tried[0]["val_loss"], rel=0.02)
    assert tried[-1]["val_accuracy"] == tried[0]["val_accuracy"] == np.mean(logits.argmax(1) == y)


def test_auto_reads_every_image_once() -> None:
    # Dark images are class 0. The best boundary is in the middle; the ends have it at the dark and the bright side.
    found, read = mix(Brightness(20, 2), Brightness(20, 14), "auto")
    assert [entry["share"] for entry in found.tried] == list(SHARES)
    assert read == len(CLASSES)
    assert found.share == choose_share(found.tried)
    for entry in found.tried:  # five rows have no temperature
        z = 2 * (IMAGES[:, 0, 0, 0] / 255 * 20 - (2 + entry["share"] * 12)) * np.where(CLASSES == 1, 1, -1)
        assert entry["val_loss"] == pytest.approx(np.log1p(np.exp(-z)).mean(), rel=1e-3)


def test_a_given_share_asks_no_images() -> None:
    for share, taken in ((0.3, 0.3), ("none", 1.0)):
        found, read = mix(Brightness(1, 0), Brightness(2, 0), share)
        assert (found.share, found.tried, read) == (taken, [], 0)


def test_a_stop_ends_it() -> None:
    stop = threading.Event()
    stop.set()
    assert mix(Brightness(1, 0), Brightness(2, 0), "auto", stop)[0] is None
