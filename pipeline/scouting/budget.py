"""How many images each network gets in a limited time: the weakest are dropped until the others can have all rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_ROWS = 200
"""Rows that every network gets when the time is limited: enough to measure its speed, and a first accuracy."""

_GROWTH = 2.0
_LEAST_GROWTH = 1.25
_LEAST_NETWORKS = 2
"""So many are never dropped: the answer is a comparison."""


@dataclass(frozen=True)
class Pace:
    """What a round found out about a network: images a second, and the accuracy of its best candidate."""

    images_per_second: float
    accuracy: float


@dataclass(frozen=True)
class Round:
    """What comes next.

    Attributes
    ----------
    rows : int
        Rows that every network kept is to have.
    kept : tuple of str
        Names of these networks, in the order given.
    """

    rows: int
    kept: tuple[str, ...]


def next_round(rows: int, most: int, paces: Mapping[str, Pace], seconds_left: float) -> Round:
    """Plan the next round by successive halving.

    All networks get all rows where the time suffices. Otherwise the time left is shared by the halvings still to come.
    While a share lets every network have twice its rows, it gets them; when it does not, the weaker half is dropped.

    Parameters
    ----------
    rows : int
        Rows that every network has.
    most : int
        Rows that were asked for.
    paces : mapping of str to Pace
        By network.
    seconds_left : float
        For embedding.

    Returns
    -------
    Round
        With ``rows`` as they are where the time allows nothing more that would matter.

    References
    ----------
    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.

    Examples
    --------
    >>> paces = {"a": Pace(50, 0.9), "b": Pace(50, 0.8), "c": Pace(50, 0.7), "d": Pace(50, 0.6)}
    >>> next_round(200, 2000, paces, 200.0)
    Round(rows=2000, kept=('a', 'b', 'c', 'd'))
    >>> next_round(200, 2000, paces, 80.0)
    Round(rows=700, kept=('a', 'b', 'c', 'd'))
    >>> next_round(700, 2000, paces, 40.0)
    Round(rows=1700, kept=('a', 'b'))
    """
    kept = tuple(paces)
    while True:
        seconds_per_row = sum(1 / paces[name].images_per_second for name in kept)
        reached = rows + int(max(seconds_left, 0.0) / seconds_per_row)
        if reached >= most:
            return Round(most, kept)
        halvings = max(math.ceil(math.log2(len(kept) / _LEAST_NETWORKS)), 0)
        shared = rows + int(max(seconds_left, 0.0) / (halvings + 1) / seconds_per_row)
        if halvings == 0:
            return Round(reached if reached >= _LEAST_GROWTH * rows else rows, kept)
        if shared >= _GROWTH * rows:
            return Round(shared, kept)
        count = max(math.ceil(len(kept) / 2), _LEAST_NETWORKS)
        best = sorted(kept, key=lambda name: -paces[name].accuracy)[:count]
        kept = tuple(name for name in kept if name in best)
