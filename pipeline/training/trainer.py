"""The training loop: batches, accumulation, validation, early stopping, checkpoints.

Axes: B images to a step, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.core.callbacks import Callbacks
from pipeline.errors import EngineError, PipelineError
from pipeline.training import schedule
from pipeline.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from pipeline.training.depthwise import gradient_mode
from pipeline.training.images import augmentation
from pipeline.training.network import freeze_statistics
from pipeline.training.optim import class_weights, moving_average, new_optimizer, new_scheduler, rates_by_depth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.training.images import CachedImages
    from pipeline.training.network import FineTuningNetwork
    from pipeline.training.settings import TrainSettings

CHECKPOINT = "checkpoint.pt"


@dataclass(slots=True)
class Training:
    """The result of a training.

    Attributes
    ----------
    history : list of dict
        For every epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_accuracy``, ``lr``, ``images_per_s``. Epoch 0 is
        the start.
    best : dict of str to Tensor
        State of the network at the least validation loss (of the moving average, where there is one).
    last : dict of str to Tensor
        The same at the end.
    best_epoch : int
    rates, losses : list of float
        The range test's; empty without one.
    lr : float
        The learning rate used.
    rates_by_depth : list of (int, float)
        Depth of every block and its peak learning rate, from the image to the head.
    stopped : bool
        A stop came; `best` may be the start.
    micro_batch : int
        The state at the end.
    """

    history: list[dict[str, float]]
    best: dict[str, Tensor]
    last: dict[str, Tensor]
    best_epoch: int
    rates: list[float]
    losses: list[float]
    lr: float
    rates_by_depth: list[tuple[int, float]]
    stopped: bool
    micro_batch: int


@dataclass(slots=True)
class _State:
    """The state of training besides network and optimizer."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    micro_batch: int = 0
    lr: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a training.

    Attributes
    ----------
    images : CachedImages
        With batches of `TrainSettings.batch_size` over the number of processes.
    train, val : (n,) int64
        Rows of the cache.
    y : (N,) int64
        Class by row of the cache.
    size : (int, int)
        H and W of the prepared images.
    """

    images: CachedImages
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    y: NDArray[np.int64]
    size: tuple[int, int]


class Trainer:
    """Trains a network on the images of a cache, resumable at any step.

    Parameters
    ----------
    network : FineTuningNetwork
        At its start.
    data : TrainingData
    settings : TrainSettings
    folder : Path
        Where the checkpoint is; must exist.
    accelerator : accelerate.Accelerator
        Device, precision and processes; see `make_accelerator`.
    begun_from : str
        What identifies the start (cache, rows, head): a checkpoint of another start is not resumed.
    callbacks : Callbacks
        A stop ends training after a checkpoint; progress is in images.
    """

    def __init__(
        self,
        network: FineTuningNetwork,
        data: TrainingData,
        settings: TrainSettings,
        folder: Path,
        accelerator: Any,
        *,
        begun_from: str = "",
        callbacks: Callbacks | None = None,
    ) -> None:
        self._settings = settings
        self._images, self._train, self._val, self._y = data.images, data.train, data.val, data.y
        self._augment = augmentation(settings.augment, data.size)
        self._checkpoint = folder / CHECKPOINT
        self._accelerator, self._begun_from = accelerator, begun_from
        callbacks = callbacks or Callbacks()
        self._stop, self._say, self._progress = callbacks.stop, callbacks.say, callbacks.progress
        self._world, self._rank = int(accelerator.num_processes), int(accelerator.process_index)
        if settings.batch_size % self._world:
            raise PipelineError(
                f"expected a batch that divides by the {self._world} processes, found {settings.batch_size}: give "
                "another --batch-size"
            )
        self._steps = max(1, self._usable(len(data.train)) // settings.batch_size)
        if self._steps * settings.batch_size < self._usable(len(data.train)):
            self._steps += 1
        torch.manual_seed(settings.seed + self._rank)
        freeze_statistics(network)
        network.to(device=accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network
        self._ema = moving_average(network, settings)
        self._model, self._optimizer = accelerator.prepare(network, new_optimizer(network, settings))
        self._weight = class_weights(data.y[data.train], network.head.out_features, balanced=settings.balanced).to(
            accelerator.device
        )
        self._state = _State(micro_batch=settings.micro_batch or settings.batch_size)
        self._best: dict[str, Tensor] = {}
        self._gradient_mode = gradient_mode(accelerator.device, accelerator.mixed_precision)

    # ---- the run ----

    def run(self) -> Training:
        """Train to the end, or to a stop.

        Raises
        ------
        PipelineError
            The loss is not finite, the checkpoint has other settings, or memory does not suffice for one
            image.
        """
        settings = self._settings
        resumed = self._resume()
        state = self._state
        if not resumed:
            state.lr = self._find_rate() if settings.lr == "auto" else float(settings.lr)
            if self._any(self._stop.is_set()):  # before anything worth keeping
                return self._result()
            state.history.append({"epoch": 0, **self._validate()})
        scheduler = new_scheduler(self._optimizer, settings, lr=state.lr, steps=settings.epochs * self._steps)
        while state.epoch < settings.epochs and not self._any(self._stop.is_set()) and not self._is_over():
            self._open_layers(state.epoch)
            self._model.train()
            self._run_epoch(scheduler)
            if state.step < self._steps:  # stopped inside it
                break
            self._close_epoch()
        self._save()
        return self._result()

    def _result(self) -> Training:
        state = self._state
        return Training(
            history=state.history,
            best=self._best or self._kept(),
            last=self._kept(),
            best_epoch=state.best_epoch,
            rates=state.rates,
            losses=state.losses,
            lr=state.lr,
            rates_by_depth=rates_by_depth(self._network, self._optimizer, state.lr),
            stopped=state.epoch < self._settings.epochs and not self._is_over(),
            micro_batch=state.micro_batch,
        )

    def _run_epoch(self, scheduler: Any) -> None:
        state = self._state
        saved, started = time.monotonic(), time.perf_counter()
        for images, rows in self._steps_of(state.epoch, state.step):
            scheduler.step_update(state.epoch * self._steps + state.step)
            loss = self._step(images, self._y[rows])
            if not math.isfinite(loss):
                raise PipelineError(
                    f"the loss became {loss} in epoch {state.epoch + 1}, step {state.step + 1}, at learning rate "
                    f"{self._optimizer.param_groups[-1]['lr']:.3g}: use a smaller --lr, or --lr auto, with --restart"
                )
            state.loss_sum += loss
            state.step += 1
            if self._ema is not None:
                self._ema.update(self._network, step=state.epoch * self._steps + state.step)
            state.seconds += time.perf_counter() - started
            self._progress(
                (state.epoch * self._steps + state.step) * self._settings.batch_size,
                0,
                self._settings.epochs * self._steps * self._settings.batch_size,
            )
            if self._any(self._stop.is_set()):
                return
            if self._any(time.monotonic() - saved > self._settings.checkpoint_s):
                self._save()
                saved = time.monotonic()
            started = time.perf_counter()

    def _any(self, here: bool) -> bool:
        """Return whether a condition holds in any process, so that all processes act alike."""
        if self._world == 1:
            return here
        flag = torch.tensor([float(here)], device=self._accelerator.device)
        return bool(self._accelerator.gather(flag).any())

    def _close_epoch(self) -> None:
        state = self._state
        found = self._validate()
        earlier = [entry["val_loss"] for entry in state.history[1:]]
        state.epoch += 1
        state.history.append(
            {
                "epoch": state.epoch,
                "train_loss": state.loss_sum / self._steps,
                **found,
                "lr": self._optimizer.param_groups[-1]["lr"],
                "images_per_s": self._usable(len(self._train)) / max(state.seconds, 1e-9),
            }
        )
        if not earlier or found["val_loss"] < min(earlier):
            state.best_epoch, self._best = state.epoch, self._kept()
        self._say(
            f"epoch {state.epoch} of {self._settings.epochs}: training loss {state.history[-1]['train_loss']:.4f}, "
            f"validation loss {found['val_loss']:.4f}, accuracy {found['val_accuracy']:.4f}"
        )
        state.step, state.loss_sum, state.seconds = 0, 0.0, 0.0
        self._save()

    def _is_over(self) -> bool:
        patience = self._settings.patience
        return bool(patience) and self._state.epoch - self._state.best_epoch >= patience

    # ---- one step ----

    def _step(self, images: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
        """Take one step on B images and return the loss; none where that is no number.

        The micro-batch is halved where memory does not suffice.
        """
        state = self._state
        while True:
            before = random_state()
            try:
                loss = self._gradient(images, y)
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._optimizer.zero_grad()
                if state.micro_batch == 1 or self._world > 1:
                    raise EngineError(
                        f"not enough memory to train on {state.micro_batch} images at once ({error}): use a smaller "
                        "--micro-batch, or a smaller backbone"
                    ) from None
                state.micro_batch = max(1, min(state.micro_batch, len(images)) // 2)
                self._say(f"not enough memory: {state.micro_batch} images at once from here, steps as large as before")
                set_random_state(before)
        if not math.isfinite(loss):
            self._optimizer.zero_grad()
            return loss
        if self._settings.clip:
            self._accelerator.clip_grad_norm_(self._network.parameters(), self._settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _gradient(self, images: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
        """Add up the gradient of the mean loss over the step's images."""
        device = self._accelerator.device
        x = self._augment(images).to(device)
        target: Tensor = torch.from_numpy(y).to(device)
        if self._settings.mixup:
            from torchvision.transforms import v2

            mixed = v2.MixUp(alpha=self._settings.mixup, num_classes=len(self._weight))
            x, target = mixed(x.float(), target)
            total = (target @ self._weight).sum()
        else:
            total = self._weight[target].sum()
        loss = torch.zeros((), device=device)
        micro = self._state.micro_batch
        for first in range(0, len(x), micro):
            part = slice(first, first + micro)
            last = first + micro >= len(x)
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._model), self._gradient_mode:
                logits = self._model(x[part])
                share = cross_entropy(
                    logits.float(), target[part], self._weight,
                    label_smoothing=self._settings.label_smoothing, reduction="sum",
                ) / total  # fmt: skip
                self._accelerator.backward(share)
            loss += share.detach()
        return float(self._accelerator.gather(loss.reshape(1)).mean())

    # ---- data ----

    def _usable(self, rows: int) -> int:
        """Return how many rows an epoch has: every process has as many."""
        return rows - rows % self._world

    def _order(self, epoch: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + epoch)
        order: NDArray[np.int64] = torch.randperm(len(self._train), generator=generator).numpy()
        return self._train[order[: self._usable(len(order))]]

    def _steps_of(self, epoch: int, first: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield this process's images and rows of an epoch's steps, from step ``first`` on."""
        size = self._settings.batch_size
        order = self._order(epoch)
        steps = [order[at : at + size][self._rank :: self._world] for at in range(first * size, len(order), size)]
        if steps:
            with contextlib.closing(self._images.batches(np.concatenate(steps))) as batches:
                yield from zip(batches, steps, strict=True)

    def _validate(self) -> dict[str, float]:
        """Return loss and accuracy on the validation rows; the first process computes, all get the same."""
        logits = self.logits(self._val) if self._rank == 0 else None
        found = [{"val_loss": math.nan, "val_accuracy": math.nan}]
        if logits is not None:
            y = torch.from_numpy(self._y[self._val])
            found = [
                {
                    "val_loss": float(cross_entropy(logits, y)),
                    "val_accuracy": float((logits.argmax(1) == y).double().mean()),
                }
            ]
        if self._world > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        return found[0]

    def logits(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the logits (n, K) float32 of rows of the cache, of the moving average where there is one."""
        network = self._network if self._ema is None else self._ema.module
        training = network.training
        network.eval()
        out = []
        with torch.inference_mode(), self._accelerator.autocast():
            for images in self._images.batches(rows):
                whole, size = torch.from_numpy(np.array(images)), self._state.micro_batch
                for first in range(0, len(whole), size):
                    part = whole[first : first + size].to(self._accelerator.device)
                    out.append(network(part).float().cpu())
        network.train(training)
        return torch.cat(out).clone()

    # ---- parts ----

    def _open_layers(self, epoch: int) -> None:
        learning = {
            id(p) for p in schedule.learning(self._network, self._settings.schedule, epoch, self._settings.epochs)
        }
        for parameter in self._network.parameters():
            parameter.requires_grad_(id(parameter) in learning)

    def _find_rate(self) -> float:
        """Raise the learning rate step by step on a copy of the start, and choose it by the losses."""
        state, network = self._state, self._network
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        fresh, generators = self._optimizer.state_dict(), random_state()
        self._open_layers(self._settings.epochs)
        self._model.train()
        rates = schedule.range_rates()
        epoch, stopped = 0, False
        while len(state.losses) < len(rates) and not (state.losses and schedule.diverged(state.losses)):
            for images, rows in self._steps_of(-1 - epoch, 0):
                rate = rates[len(state.losses)]
                for group in self._optimizer.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                state.losses.append(self._step(images, self._y[rows]))
                state.rates.append(rate)
                stopped = self._any(self._stop.is_set())
                if stopped or schedule.diverged(state.losses) or len(state.losses) == len(rates):
                    break
            if stopped:
                break
            epoch += 1
        network.load_state_dict(before)
        self._optimizer.load_state_dict(fresh)
        self._optimizer.zero_grad()
        set_random_state(generators)
        chosen = schedule.pick_rate(state.rates, state.losses)
        self._say(f"learning rate {chosen:.3g}, from a range test of {len(state.rates)} steps")
        return chosen

    def _kept(self) -> dict[str, Tensor]:
        """Return a copy of the state to keep: of the moving average where there is one."""
        network = self._network if self._ema is None else self._ema.module
        return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

    # ---- checkpoints ----

    def _save(self) -> None:
        generators = [random_state()]
        if self._world > 1:
            from accelerate.utils import gather_object

            generators = gather_object(generators)
        if self._rank:
            return
        save_checkpoint(
            self._checkpoint,
            {
                "settings": dataclasses.asdict(self._settings),
                "processes": self._world,
                "begun_from": self._begun_from,
                "state": dataclasses.asdict(self._state),
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": {} if self._accelerator.scaler is None else self._accelerator.scaler.state_dict(),
                "ema": {} if self._ema is None else self._ema.module.state_dict(),
                "best": self._best,
                "random": generators,
            },
        )

    def _resume(self) -> bool:
        found = load_checkpoint(self._checkpoint)
        if found is None:
            return False
        wanted = {**dataclasses.asdict(self._settings), "processes": self._world}
        there = {**found["settings"], "processes": found["processes"]}
        differing = [name for name in wanted if wanted[name] != there.get(name)]
        if differing:
            fields = "; ".join(f"expected {name} {wanted[name]!r}, got {there.get(name)!r}" for name in differing)
            raise PipelineError(
                f"{self._checkpoint.parent} holds an unfinished fine-tuning of other settings: {fields}: use the same, "
                "or --restart to start again"
            )
        if found["begun_from"] != self._begun_from:
            raise PipelineError(
                f"{self._checkpoint.parent} holds an unfinished fine-tuning of another cache, split, probe or start: "
                "give another folder with -o, or --restart to start again"
            )
        self._state = _State(**found["state"])
        self._network.load_state_dict(found["network"])
        self._optimizer.load_state_dict(found["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(found["scaler"])
        if self._ema is not None:
            self._ema.module.load_state_dict(found["ema"])
        self._best = found["best"]
        set_random_state(found["random"][self._rank])
        self._say(f"going on at epoch {self._state.epoch + 1}, step {self._state.step + 1} of {self._steps}")
        return True


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error is a lack of memory; on a CPU PyTorch raises a plain RuntimeError for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)
