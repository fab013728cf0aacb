"""The distribution of an extraction's time, and what would make it faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT_SHARE = 0.5
"""A part limits the run when the loop waits for it at least this share of its time."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Shares of the loop's wall time.

    Attributes
    ----------
    shares : dict of str to float
        ``network`` and ``decoding``: share of the time in which the loop waited for either. ``read``, ``decode``,
        ``write``: how busy the decode workers (all of them together) and the writer were, 0 to 1.
    limit : str
        ``network``, ``decoding``, ``storage``, ``disk`` or ``nothing in particular``.
    advice : str
        What would make it faster.
    """

    shares: dict[str, float]
    limit: str
    advice: str

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return f"{parts}; the limit was {self.limit}: {self.advice}"


ADVICE = {
    "network": "a GPU, a smaller backbone or, where its numbers agree, --precision bfloat16 would make it faster",
    "decoding": "more processors (--workers) or smaller images would help",
    "storage": "faster storage, or more --workers to wait for it side by side, would make it faster",
    "disk": "a faster disk for the cache, or --dtype float16, would make it faster",
    "nothing in particular": "its parts are in balance",
}


def find_bottleneck(seconds: Mapping[str, float], *, workers: int) -> Bottleneck:
    """Sum up the times that `pipeline.stages.extract` measured.

    Parameters
    ----------
    seconds : mapping of str to float
        ``loop``: wall time; ``wait for forward``, ``wait for decode``: of it, spent waiting; ``read`` (waiting for an
        image's bytes), ``decode``: of all workers together; ``write``: of the writer's thread.
    workers : int
        How many decode workers there were.

    Examples
    --------
    >>> times = {"loop": 10, "wait for forward": 9, "wait for decode": 1, "read": 0.2, "decode": 4, "write": 0.1}
    >>> find_bottleneck(times, workers=2).limit
    'network'
    """
    loop = max(seconds.get("loop", 0.0), 1e-9)
    shares = {
        "network": seconds.get("wait for forward", 0.0) / loop,
        "decoding": seconds.get("wait for decode", 0.0) / loop,
        "read": seconds.get("read", 0.0) / (loop * workers),
        "decode": seconds.get("decode", 0.0) / (loop * workers),
        "write": seconds.get("write", 0.0) / loop,
    }
    shares = {name: round(min(share, 1.0), 3) for name, share in shares.items()}
    if shares["write"] >= LIMIT_SHARE:
        limit = "disk"
    elif shares["network"] >= LIMIT_SHARE:
        limit = "network"
    elif shares["decoding"] >= LIMIT_SHARE:
        limit = "storage" if shares["read"] > shares["decode"] else "decoding"
    else:
        limit = "nothing in particular"
    return Bottleneck(shares, limit, ADVICE[limit])
