"""The audit: how right the head is, from images drawn at random that it is never fitted on.

The images that a person is asked for because the head is unsure of them are harder than others, and those that are
confirmed a page at a time are easier. Accuracy on either says little about the collection. So the first images of a
random order are held back: no view but the audit shows them, and no head is fitted on them. Only the images up to the
first one without a label count, since any such beginning of a random order is a random sample, and what somebody leaves
out further on cannot bias it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.shares import share_interval
from pipeline.labelling.state import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from numpy.typing import NDArray

MOST_HELD_BACK = 400
SHARE_HELD_BACK = 0.2
BATCH = 10
"""Images that the page asks for at a time."""


def audit_order(keys: Sequence[str], seed: str) -> NDArray[np.int64]:
    """Return the positions of the images held back, in the order in which they are asked for.

    The order is that of a hash of seed and key: it does not depend on the order of the rows, and an image that is
    added to the cache later takes its own place.
    """
    count = min(MOST_HELD_BACK, int(len(keys) * SHARE_HELD_BACK))
    salt = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    marks = [hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, key=salt).digest() for key in keys]
    order = np.argsort(np.array(marks, dtype="S8").view(">u8"), kind="stable")
    return np.asarray(order[:count], dtype=np.int64)


def sampled(order: NDArray[np.int64], keys: Sequence[str], labelled: Container[str]) -> NDArray[np.int64]:
    """Return the positions that count: those before the first one without a label."""
    for place, position in enumerate(order.tolist()):
        if keys[position] not in labelled:
            return order[:place]
    return order


@dataclass(frozen=True)
class Figure:
    """How right the head is.

    Attributes
    ----------
    rows : int
        Images of the sample.
    value, low, high : float
        For classes and label sets the share of images that is wholly right, with its 95 % interval; for numbers the
        mean absolute error, with the interval of a mean. NaN where there are too few images.
    """

    rows: int
    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {"rows": self.rows, **{name: round(x, 6) if np.isfinite(x) else None for name, x in found.items()}}


def audited(task: str, truth: NDArray[Any], outputs: NDArray[np.float32]) -> Figure:
    """Compare the sample's labels with the head's outputs, (m,) or (m, K) with (m, K)."""
    m = len(outputs)
    if m == 0:
        return Figure(0, np.nan, np.nan, np.nan)
    if task == NUMBERS:
        error = np.abs(outputs[:, 0] - truth)
        half = 1.96 * float(error.std(ddof=1)) / np.sqrt(m) if m > 1 else np.nan
        return Figure(m, float(error.mean()), max(float(error.mean()) - half, 0.0), float(error.mean()) + half)
    right = outputs.argmax(axis=1) == truth if truth.ndim == 1 else ((outputs >= 0.5) == truth).all(axis=1)
    share = float(np.mean(right))
    return Figure(m, share, *share_interval(share, m))
