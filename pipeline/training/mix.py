"""The network between the start of a training and its end, by interpolating all weights.

The start knows what the large pretraining set taught, the end what the training rows taught. A network between the two
is often better than both, on the training rows' distribution and off it [1]_.

References
----------
.. [1] Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt: Robust fine-tuning
   of zero-shot models. CVPR 2022.

Axes: n validation rows, B batch, K classes, S shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.evaluation.calibration import fit_temperature, softmax
from pipeline.evaluation.classification import row_losses

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.training.network import FineTuningNetwork
    from pipeline.training.trainer import TrainingData

SHARES = tuple(step / 10 for step in range(11))
"""The shares of the tuned network that ``auto`` tries."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How start and tuned network were mixed.

    Attributes
    ----------
    share : float
        Of the tuned network: 0 is the start, 1 the tuned network.
    tried : list of dict
        For each share that the validation rows were asked about, what `judge_shares` returns.
    """

    share: float
    tried: list[dict[str, float]]


def interpolated(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the state ``(1 − share) · start + share · tuned``; exactly one of the two at 0 and at 1.

    Counters, which are whole numbers, are those of ``tuned``.
    """
    return {
        name: torch.lerp(start[name].to(end.device), end, share) if end.is_floating_point() else end
        for name, end in tuned.items()
    }


def judge_shares(logits: Sequence[NDArray[np.float64]], y: NDArray[np.int64]) -> list[dict[str, float]]:
    """Return ``share``, ``val_loss``, ``val_accuracy`` and ``behind`` of every share in `SHARES`, from 0 on.

    The loss is that at the temperature that fits these rows best, as the result's head will have one: a network that
    is only too sure of itself is not a worse one. ``behind`` is by how many standard errors, of the paired difference
    over rows, a share's loss lies above the least.

    Parameters
    ----------
    logits : sequence of S ndarrays of shape (n, K)
    y : ndarray of shape (n,), int64
    """
    losses = [row_losses(y, softmax(found / fit_temperature(found, y))) for found in logits]
    best = min(losses, key=lambda loss: float(loss.mean()))
    out = []
    for share, found, loss in zip(SHARES, logits, losses, strict=True):
        error = float(np.std(loss - best) / np.sqrt(len(y)))
        behind = float((loss - best).mean()) / error if error else 0.0
        accuracy = float((found.argmax(axis=1) == y).mean())
        out.append({"share": share, "val_loss": float(loss.mean()), "val_accuracy": accuracy, "behind": behind})
    return out


def choose_share(tried: Sequence[Mapping[str, float]]) -> float:
    """Return the largest share whose loss is not clearly above the least one: by one standard error at most.

    On shifted images the tuned network gained more than the mixes did (docs/results.md).

    Examples
    --------
    >>> choose_share([{"share": 0.5, "behind": 0.0}, {"share": 0.8, "behind": 0.9}, {"share": 1.0, "behind": 1.2}])
    0.8
    """
    return max(entry["share"] for entry in tried if entry["behind"] <= 1)


def mix_networks(
    network: FineTuningNetwork,
    start: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    data: TrainingData,
    accelerator: Any,
    stop: threading.Event,
    *,
    share: float | str,
    most: int,
) -> Mix | None:
    """Return how much of the tuned network to take; None when stopped.

    Parameters
    ----------
    network, start, tuned, data, accelerator, stop, most
        As in `try_shares`.
    share : float, "auto" or "none"
        A share; or the one that `choose_share` takes; or 1.
    """
    if share != "auto":
        return Mix(1.0 if share == "none" else float(share), [])
    tried = try_shares(network, start, tuned, data, accelerator, stop, most=most)
    return None if tried is None else Mix(choose_share(tried), tried)


def try_shares(
    network: FineTuningNetwork,
    start: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    data: TrainingData,
    accelerator: Any,
    stop: threading.Event,
    *,
    most: int,
) -> list[dict[str, float]] | None:
    """Return what `judge_shares` says of the validation rows; None when stopped.

    Every image is read once. The network is left in one of the states.

    Parameters
    ----------
    network : FineTuningNetwork
        Its architecture and device.
    start, tuned : mapping of str to Tensor
        States of it.
    data : TrainingData
    accelerator : accelerate.Accelerator
    stop : threading.Event
    most : int
        Images in a forward pass.
    """
    found: list[list[Tensor]] = [[] for _ in SHARES]
    network.eval()
    device = next(network.parameters()).device
    first = {name: tensor.to(device) for name, tensor in start.items()}
    last = {name: tensor.to(device) for name, tensor in tuned.items()}
    with torch.inference_mode(), accelerator.autocast():
        for batch in data.images.batches(data.val):
            whole = torch.tensor(batch)
            for at in range(0, len(whole), most):
                images = whole[at : at + most].to(device)
                if stop.is_set():
                    return None
                for logits, share in zip(found, SHARES, strict=True):
                    network.load_state_dict(interpolated(first, last, share))
                    logits.append(network(images).float().cpu())
    return judge_shares([torch.cat(logits).double().numpy() for logits in found], data.y[data.val])
