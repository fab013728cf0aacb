"""The layers that learn in each epoch, and their learning rates.

Linear probing first and fine-tuning everything afterwards, at small rates, preserves the pretrained features [1]_.
Unfreezing from the top is the older method [2]_.

References
----------
.. [1] Kumar, Raghunathan, Jones, Ma, Liang: Fine-tuning can distort pretrained features and underperform
   out-of-distribution. ICLR 2022.
.. [2] Howard, Ruder: Universal language model fine-tuning for text classification. ACL 2018.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from pipeline.training.network import FineTuningNetwork

SCHEDULES = ("lp-ft", "gradual", "head-only")

RANGE_STEPS = 40
RANGE_FROM, RANGE_TO = 1e-6, 1.0
_SMOOTHING = 0.85
_TOO_HIGH = 4.0
"""The range test ends when the smoothed loss is this many times its least."""
_BELOW_LEAST = 10.0


def learning(network: FineTuningNetwork, schedule: str, epoch: int, epochs: int) -> list[nn.Parameter]:
    """Return the parameters that learn in an epoch.

    Parameters
    ----------
    network : FineTuningNetwork
    schedule : str
        One of `SCHEDULES`: everything; stage by stage from the top, all of them in the last third; the head alone.
    epoch, epochs : int
        Which one (from 0), and how many there are.
    """
    depth = network.group_matcher(coarse=True)
    named = list(network.named_parameters())
    top = max(depth(name) for name, _ in named)
    lowest = {"lp-ft": 0, "head-only": top}.get(schedule)
    if lowest is None:
        stages_open = math.ceil((epoch + 1) / max(1.0, epochs * 2 / 3) * (top + 1))
        lowest = max(0, top + 1 - stages_open)
    return [parameter for name, parameter in named if depth(name) >= lowest]


def range_rates(steps: int = RANGE_STEPS) -> list[float]:
    """Return the learning rates of a range test, rising by the same factor from step to step."""
    return [float(rate) for rate in np.geomspace(RANGE_FROM, RANGE_TO, steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponentially weighted mean of losses, corrected for its start.

    Examples
    --------
    >>> smoothed([2.0, 2.0])
    [2.0, 2.0]
    """
    mean, out = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        out.append(round(mean / (1 - _SMOOTHING**count), 12))
    return out


def diverged(losses: Sequence[float]) -> bool:
    """Return whether a range test may end."""
    curve = smoothed(losses)
    return not math.isfinite(losses[-1]) or (len(curve) > 2 and curve[-1] > _TOO_HIGH * min(curve))


def pick_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return a learning rate from a range test: a tenth of the one at the least smoothed loss [1]_.

    References
    ----------
    .. [1] Smith: Cyclical learning rates for training neural networks. WACV 2017; the tenth is fastai's rule.

    Examples
    --------
    >>> pick_rate([1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.5, 0.1, 9.0])
    0.001
    """
    known = [(loss, rate) for rate, loss in zip(rates, smoothed(losses), strict=False) if math.isfinite(loss)]
    if not known:
        return rates[0]
    return float(f"{min(known)[1] / _BELOW_LEAST:.6g}")
