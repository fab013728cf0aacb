"""The parts of a training step: optimizer, schedule of its rate, moving average, weights of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.training.network import FineTuningNetwork
    from pipeline.training.settings import TrainSettings

_LEAST_RATE = 0.01
"""Where the cosine ends, as a share of the learning rate."""
_MOMENTUM = 0.9


def moving_average(network: FineTuningNetwork, settings: TrainSettings) -> Any:
    """Return the moving average of the weights, or None where there is none."""
    return ModelEmaV3(network, decay=settings.ema, use_warmup=True) if settings.ema else None


def new_optimizer(network: FineTuningNetwork, settings: TrainSettings) -> Any:
    """Return the optimizer, at rate 1 times each block's share: the schedule sets the rate."""
    return create_optimizer_v2(
        network,
        opt=settings.optimizer,
        lr=1.0,
        weight_decay=settings.weight_decay,
        momentum=_MOMENTUM,
        layer_decay=settings.layer_decay,
    )


def new_scheduler(optimizer: Any, settings: TrainSettings, *, lr: float, steps: int) -> Any:
    """Return the schedule of the rate over all steps: it rises to ``lr``, then falls along a cosine."""
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    warmup = round(settings.warmup * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup),
        lr_min=_LEAST_RATE * lr,
        warmup_t=warmup,
        warmup_lr_init=lr / max(1, warmup),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def rates_by_depth(network: FineTuningNetwork, optimizer: Any, lr: float) -> list[tuple[int, float]]:
    """Return the depth of every block and its peak learning rate, from the image to the head."""
    scale = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    depth = network.group_matcher()
    found = {depth(name): scale[id(parameter)] for name, parameter in network.named_parameters()}
    return [(level, lr * found[level]) for level in sorted(found)]


def class_weights(y: NDArray[np.int64], classes: int, *, balanced: bool) -> Tensor:
    """Return the weight of each class in the loss: 1, or weights that make all classes count equally."""
    counts = np.bincount(y, minlength=classes)
    return torch.from_numpy(len(y) / (len(counts) * counts)).float() if balanced else torch.ones(len(counts))
