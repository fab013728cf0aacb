"""The first groups: images that look alike, the largest and clearest first.

Axes: n rows, d directions, G groups.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

MOST_GROUPS = 100
_ROWS_A_GROUP = 15
_SAMPLE = 4000
"""Rows that place the centres. Choosing the first centres takes nearly all the time, which grows with these rows."""
_DIRECTIONS = 48
_BLOCK = 8192
_STEPS = 15


@dataclass(frozen=True)
class Groups:
    """A division of the rows.

    Attributes
    ----------
    member : (n,) int64
        The group of each row.
    distance : (n,) float32
        To the centre of its group.
    clarity : (n,) float32
        How much nearer that centre is than the next one: 0 on the border of two groups, 1 at the centre.
    count : int
        G.
    """

    member: Ints
    distance: Floats
    clarity: Floats
    count: int

    def order(self, left: NDArray[np.bool_]) -> list[int]:
        """Return the groups that have rows left, by the sum of their clarity: the largest and clearest first."""
        weight = np.bincount(self.member[left], weights=self.clarity[left], minlength=self.count)
        size = np.bincount(self.member[left], minlength=self.count)
        return [int(group) for group in np.argsort(-weight, kind="stable") if size[group]]

    def rows_of(self, group: int, left: NDArray[np.bool_]) -> Ints:
        """Return the rows of a group that are left, nearest to its centre first."""
        rows = np.flatnonzero((self.member == group) & left)
        return rows[np.argsort(self.distance[rows], kind="stable")]


def find_groups(points: Floats, *, count: int | None = None, seed: int = 0) -> Groups:
    """Divide rows by k-means on their leading directions.

    Parameters
    ----------
    points : (n, d) float32
        Directions by falling variance.
    count : int, optional
        Groups; by default one for every 15 rows, 100 at most.
    seed : int
        Of the sample that places the centres, and of their start.
    """
    from scipy.cluster.vq import kmeans2  # takes a third of a second to load

    near = np.ascontiguousarray(points[:, :_DIRECTIONS])
    groups = min(count or max(2, len(near) // _ROWS_A_GROUP), MOST_GROUPS if count is None else count, len(near))
    rng = np.random.default_rng(seed)
    sample = near[rng.permutation(len(near))[:_SAMPLE]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty group, which stays where it is
        centres, _ = kmeans2(sample, groups, iter=_STEPS, minit="++", rng=rng)
    member = np.empty(len(near), np.int64)
    distance, clarity = np.empty(len(near), np.float32), np.empty(len(near), np.float32)
    length = np.einsum("gd,gd->g", centres, centres)
    for start in range(0, len(near), _BLOCK):
        block = near[start : start + _BLOCK]
        square = length - 2 * block @ centres.T + np.einsum("nd,nd->n", block, block)[:, None]
        part = slice(start, start + len(block))
        member[part] = square.argmin(axis=1)
        two = np.sqrt(np.maximum(np.partition(square, min(1, groups - 1), axis=1)[:, :2], 0))
        distance[part] = two[:, 0]
        clarity[part] = 1 - two[:, 0] / np.maximum(two[:, -1], 1e-12)
    return Groups(member, distance, clarity, groups)
