"""Sums of rows, from which least squares and discriminant analysis follow, also without the rows of a fold.

Axes: N rows, D features, S columns of the rows as kept (D, or N where there are fewer rows), T targets or classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Target = Callable[[Ints], Floats]
    """From row numbers (n,) to targets (n, T)."""

_STEP_ROWS = 8192
_STEP_VALUES = 1 << 23
"""Values of the largest array of one step: bounds the rows of a step where there are thousands of classes."""


@dataclass
class Moments:
    """Weighted sums of rows: Σw, Σwx, Σwt, Σwxxᵀ and Σwxtᵀ."""

    weight: float
    x: Floats
    t: Floats
    xx: Floats
    xt: Floats

    def without(self, other: Moments) -> Moments:
        """Return the sums of the rows that are not in ``other``."""
        return Moments(
            self.weight - other.weight, self.x - other.x, self.t - other.t, self.xx - other.xx, self.xt - other.xt
        )


class TrainingRows:
    """Rows with their targets and weights, centred, in the span of the rows where these are fewer than the features.

    Penalties on ``‖w‖`` and covariances shrunk towards a multiple of the identity are the same in any orthonormal basis
    of that span, and weights lie in it: nothing is lost, and the eigenvectors of N columns cost less than those of D.

    Parameters
    ----------
    data : ndarray of shape (N, D), float32
        Features.
    target : callable
        Targets of some rows.
    weight : ndarray of shape (N,)
        Weights of the rows.
    """

    def __init__(self, data: NDArray[np.float32], target: Target, weight: Floats) -> None:
        self.shift = data.mean(axis=0, dtype=np.float64)
        self.data: NDArray[np.floating] = data
        self._offset: Floats | None = self.shift
        self._basis: Floats | None = None
        if len(data) < data.shape[1]:
            self._basis, triangle = np.linalg.qr((data - self.shift).T)
            self.data, self._offset = np.ascontiguousarray(triangle.T), None
        self.target = target
        self.weight = weight
        self.n_targets = target(np.zeros(1, dtype=np.int64)).shape[1]
        self.step = int(np.clip(_STEP_VALUES // max(self.data.shape[1], self.n_targets), 256, _STEP_ROWS))

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Floats]]:
        """Return some rows (n, S) in blocks, each with its row numbers."""
        for start in range(0, len(rows), self.step):
            part = rows[start : start + self.step]
            block = self.data[part].astype(np.float64)
            if self._offset is not None:
                block -= self._offset
            yield part, block

    def moments(self, rows: Ints) -> Moments:
        """Return the sums of some rows."""
        width, n_targets = self.data.shape[1], self.n_targets
        total = Moments(0.0, *(np.zeros(s) for s in ((width,), (n_targets,), (width, width), (width, n_targets))))
        for part, block in self.blocks(rows):
            w, values = self.weight[part], self.target(part)
            heavy = block * w[:, None]
            total.weight += w.sum()
            total.x += heavy.sum(axis=0)
            total.t += w @ values
            total.xx += heavy.T @ block
            total.xt += heavy.T @ values
        return total

    def fold_moments(self, fold: Ints) -> tuple[Moments, dict[int, Moments]]:
        """Return the sums of all rows, and those of the rows outside each fold; a negative number is no fold."""
        parts = {int(number): self.moments(np.flatnonzero(fold == number)) for number in np.unique(fold)}
        whole = Moments(*(sum(getattr(p, f) for p in parts.values()) for f in ("weight", "x", "t", "xx", "xt")))
        return whole, {number: whole.without(part) for number, part in parts.items() if number >= 0}

    def as_given(self, coef: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """Turn ``coef`` (T, S) and ``intercept`` (T,) into those of the features as they are, ``coef`` (T, D)."""
        wide = coef if self._basis is None else coef @ self._basis.T
        return wide, intercept - wide @ self.shift
