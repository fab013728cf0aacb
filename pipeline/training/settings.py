"""How to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train.

    Attributes
    ----------
    schedule : {"lp-ft", "gradual", "head-only"}
        Which layers learn; see `pipeline.training.schedule.learning`.
    epochs : int
    lr : float or "auto"
        Of the head; ``auto`` makes a range test first.
    layer_decay : float
        Learning rate of a block as a share of the one above it.
    weight_decay : float
    optimizer : {"adamw", "sgd"}
    warmup : float
        Share of the steps in which the rate rises from 0; it then falls along a cosine.
    batch_size : int
        Images per step, over all processes.
    micro_batch : int
        Images per forward pass, accumulated to a step; 0 for the whole step. Halved where memory does not suffice.
    label_smoothing : float
    mixup : float
        α of mixup; 0 for none.
    augment : str
        One of `pipeline.training.images.AUGMENTATIONS`.
    balanced : bool
        Whether all classes count equally in the loss, for any number of rows.
    clip : float
        Largest norm of the gradient; 0 for none.
    ema : float
        Decay of the moving average of the weights, which is then validated and kept; 0 for none.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Of the forward pass; ``auto`` takes bfloat16 where the device computes in it.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    patience : int
        Epochs without a better validation loss before the end; 0 never ends early.
    seed : int
    checkpoint_s : float
        Seconds between checkpoints inside an epoch.
    """

    schedule: Literal["lp-ft", "gradual", "head-only"] = "lp-ft"
    epochs: int = 5
    lr: float | Literal["auto"] = 1e-3
    layer_decay: float = 0.9
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: float = 0.1
    batch_size: int = 32
    micro_batch: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment: str = "flip"
    balanced: bool = False
    clip: float = 1.0
    ema: float = 0.0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    patience: int = 3
    seed: int = 0
    checkpoint_s: float = 300.0
