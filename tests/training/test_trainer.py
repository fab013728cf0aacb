from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.core.callbacks import Callbacks
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.errors import EngineError, PipelineError, SourceError
from pipeline.heads import load_head
from pipeline.training import trainer
from pipeline.training.accelerator import make_accelerator
from pipeline.training.images import CachedImages, augmentation
from pipeline.training.network import FineTuningNetwork
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Trainer, Training, TrainingData

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.training.probe import Probe

SETTINGS = TrainSettings(
    epochs=2, batch_size=8, precision="float32", device="cpu", augment="standard", lr=3e-3, ema=0.5
)
TRAIN, VAL = np.split(np.random.default_rng(0).permutation(60)[:36], [24])


def build(
    probe: Probe,
    folder: Path,
    settings: TrainSettings = SETTINGS,
    *,
    stop: threading.Event | None = None,
    said: list[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    cache, head = probe.cache, load_head(probe.run)
    torch.manual_seed(0)
    backbone = backbone_of_spec(head.spec)
    network = FineTuningNetwork(backbone, head.layer, len(head.class_names))
    network.start_from(head)
    images = CachedImages(cache, decode_of_spec(cache.spec), backbone.preprocess, batch_size=8, workers=1)
    size = backbone.preprocess.crop
    y = cache.labels.astype(np.int64)
    callbacks = Callbacks(
        stop or threading.Event(),
        (said if said is not None else []).append,
        lambda done, failed, total: progress(done, total),
    )
    data = TrainingData(images, TRAIN, VAL, y, size)
    return Trainer(network, data, settings, folder, make_accelerator(settings), callbacks=callbacks)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Return an uninterrupted run."""
    return build(probe, tmp_path_factory.mktemp("whole")).run()


def test_training_learns_and_keeps_the_best_epoch(whole: Training) -> None:
    assert [entry["epoch"] for entry in whole.history] == [0, 1, 2]
    assert not whole.stopped
    trained = whole.history[1:]
    best = min(trained, key=lambda entry: entry["val_loss"])
    assert whole.best_epoch == best["epoch"]
    assert trained[-1]["train_loss"] < trained[0]["train_loss"]


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_stopped_run_goes_on_bit_for_bit(probe: Probe, whole: Training, tmp_path: Path, after: int) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == after:
            stop.set()

    part = build(probe, tmp_path, stop=stop, progress=progress).run()
    assert part.stopped
    assert (tmp_path / trainer.CHECKPOINT).exists()
    said: list[str] = []
    again = build(probe, tmp_path, said=said).run()
    assert "going on at epoch" in said[0]
    assert same(again.best, whole.best)
    assert same(again.last, whole.last)
    for found, expected in zip(again.history, whole.history, strict=True):
        assert {k: v for k, v in found.items() if k != "images_per_s"} == {
            k: v for k, v in expected.items() if k != "images_per_s"
        }


@pytest.mark.slow
def test_accumulated_steps_are_those_of_the_whole_batch(probe: Probe, tmp_path: Path) -> None:
    plain = dataclasses.replace(SETTINGS, epochs=1, augment="none", ema=0.0)
    whole = build(probe, tmp_path / "a", plain).run()
    parts = build(probe, tmp_path / "b", dataclasses.replace(plain, micro_batch=5)).run()
    for name, tensor in whole.last.items():
        torch.testing.assert_close(parts.last[name], tensor, rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_without_memory_the_parts_shrink_and_the_steps_stay(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dataclasses.replace(SETTINGS, epochs=1, augment="none", ema=0.0)
    reference = build(probe, tmp_path / "a", plain).run()
    forward = FineTuningNetwork.forward

    def small(self: FineTuningNetwork, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > 5:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, images)

    monkeypatch.setattr(FineTuningNetwork, "forward", small)
    said: list[str] = []
    found = build(probe, tmp_path / "b", plain, said=said).run()
    assert found.micro_batch == 4
    assert any("not enough memory" in line for line in said)
    for name, tensor in reference.last.items():
        torch.testing.assert_close(found.last[name], tensor, rtol=1e-2, atol=2e-4)

    def none(self: FineTuningNetwork, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, images)

    monkeypatch.setattr(FineTuningNetwork, "forward", none)
    with pytest.raises(EngineError, match="not enough memory to train on 1 images"):
        build(probe, tmp_path / "c", plain).run()


def test_a_loss_that_is_no_number_ends_the_run(probe: Probe, tmp_path: Path) -> None:
    wild = dataclasses.replace(SETTINGS, lr=1e30, optimizer="sgd", clip=0.0, warmup=0.0, layer_decay=1.0, ema=0.0)
    with pytest.raises(PipelineError, match=r"the loss became (nan|inf).*smaller --lr"):
        build(probe, tmp_path, wild).run()


def test_other_settings_do_not_go_on(probe: Probe, tmp_path: Path) -> None:
    stop = threading.Event()
    build(probe, tmp_path, stop=stop, progress=lambda done, total: stop.set()).run()
    with pytest.raises(PipelineError, match=r"expected lr 0\.1, got 0\.003"):
        build(probe, tmp_path, dataclasses.replace(SETTINGS, lr=0.1)).run()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", None])
def test_a_damaged_checkpoint_is_refused(probe: Probe, tmp_path: Path, damage: bytes | None) -> None:
    if damage is None:  # a pickle that would run code
        torch.save({"format": contextlib.nullcontext}, tmp_path / trainer.CHECKPOINT)
    else:
        (tmp_path / trainer.CHECKPOINT).write_bytes(damage)
    with pytest.raises(PipelineError, match="expected a checkpoint"):
        build(probe, tmp_path).run()


@pytest.mark.slow
def test_the_range_test_leaves_the_start_as_it_was(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.schedule.RANGE_STEPS", 8)
    found = build(probe, tmp_path / "a", dataclasses.replace(SETTINGS, lr="auto", epochs=1)).run()
    assert len(found.rates) == len(found.losses) > 3
    assert 1e-7 < found.lr <= 0.1
    given = build(probe, tmp_path / "b", dataclasses.replace(SETTINGS, lr=found.lr, epochs=1)).run()
    assert same(found.last, given.last)


def test_training_ends_when_validation_does_not_improve(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.5, 0.9, 0.8, 0.7])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_loss": next(losses), "val_accuracy": 0.0})
    found = build(probe, tmp_path, dataclasses.replace(SETTINGS, epochs=9, patience=2)).run()
    assert (len(found.history) - 1, found.best_epoch, found.stopped) == (3, 1, False)


OPTIONS = (
    {"mixup": 0.4},
    {"label_smoothing": 0.1, "balanced": True},
    {"schedule": "gradual"},
    {"optimizer": "sgd", "precision": "bfloat16"},
)


@pytest.mark.slow
@pytest.mark.parametrize("change", OPTIONS)
def test_the_options_train(probe: Probe, tmp_path: Path, change: dict[str, Any]) -> None:
    found = build(probe, tmp_path, dataclasses.replace(SETTINGS, epochs=1, **change)).run()
    assert np.isfinite(found.history[-1]["train_loss"])
    assert not same(found.last, build(probe, tmp_path / "start", dataclasses.replace(SETTINGS, epochs=0)).run().last)


def test_an_image_that_changed_or_went_is_named(probe: Probe, tmp_path: Path) -> None:
    row, other = TRAIN[:2]
    key = probe.cache.keys[row]
    file = probe.images / str(key)
    kept = file.read_bytes()
    try:
        file.write_bytes((probe.images / str(probe.cache.keys[other])).read_bytes())
        with pytest.raises(SourceError, match=f"{key} has other content"):
            build(probe, tmp_path / "a").run()
        file.unlink()
        with pytest.raises(SourceError, match=f"expected the image {key}"):
            build(probe, tmp_path / "b").run()
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ["none", "flip", "standard", "strong"])
def test_augmentation_keeps_shape_and_follows_the_generator(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 24, 3)).astype(np.uint8)
    change = augmentation(name, (32, 24))
    torch.manual_seed(3)
    first = change(images)
    torch.manual_seed(3)
    assert torch.equal(first, change(images))
    assert first.shape == (4, 32, 24, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, torch.from_numpy(images)) == (name == "none")


def test_half_of_the_images_are_mirrored() -> None:
    images = np.random.default_rng(0).integers(0, 255, (400, 4, 3, 3)).astype(np.uint8)
    found = augmentation("flip", (4, 3))(images).numpy()
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == images).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250
