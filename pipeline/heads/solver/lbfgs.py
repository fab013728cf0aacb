"""The curvature pairs of L-BFGS, kept for every value of C at once.

Axes: K classes, D features.

References
----------
Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in limited memory methods",
Math. Programming 63 (1994).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.heads.solver.arrays import Array, NumpyArrays
    from pipeline.heads.solver.preconditioner import Preconditioner

_LEAST_SCALE = 0.05
_SCALE_PAIRS = 10
"""Curvature pairs whose median scales the preconditioner."""


class CurvaturePairs:
    """Curvature pairs of the loss alone, oldest first: exact for every C, where ``y = C y_loss + s`` (weights only).

    They are rows of arrays with room for twice as many, so that the oldest drop out by moving a view. Their inner
    products are kept beside them: a step then costs two products with the new pair alone, however many are known.
    """

    def __init__(self, most: int, arrays: NumpyArrays) -> None:
        self._most, self._arrays = most, arrays
        self._begin = self._end = self._known = 0
        self._products_of: tuple[Preconditioner, float] | None = None

    def add(self, step: Array, change: Array) -> None:
        """Keep a pair whose curvature stands clear of rounding."""
        product = float((step * change).sum())
        size = math.sqrt(float((step * step).sum()) * float((change * change).sum()))
        if not (math.isfinite(product) and product > 1e-8 * size):
            return
        if not self._end:
            self._make_room(step)
        elif self._end == 2 * self._most:
            self._move_to_front()
        new = self._end
        self._end += 1
        self._begin = max(self._begin, self._end - self._most)
        kept = slice(self._begin, self._end)
        self._s[new], self._y[new] = step, change
        s, y = _flat(self._s[kept]), _flat(self._y[kept])
        weights = self._arrays.copy(step)
        weights[:, -1] = 0.0
        self._s_y[kept, new] = s @ change.reshape(-1)
        self._s_y[new, kept] = y @ step.reshape(-1)
        self._s_s[kept, new] = self._s_s[new, kept] = s @ weights.reshape(-1)

    def forget(self) -> None:
        """Drop all pairs."""
        self._begin = self._end = self._known = 0

    def rotate(self, rotation: Array) -> None:
        """Express all pairs in another feature basis, which leaves their inner products as they are."""
        kept = slice(self._begin, self._end)
        for vectors in (self._s, self._y) if self._end else ():
            vectors[kept, :, :-1] = vectors[kept, :, :-1] @ rotation
        self._products_of = None

    def solve(self, gradient: Array, c: float, preconditioner: Preconditioner) -> Array:
        """Return the L-BFGS inverse Hessian times ``gradient`` (Byrd, Nocedal and Schnabel 1994, equation 3.1).

        Along the steps taken the preconditioner underestimates the curvature, by 2 to 20 times, and full steps would
        be refused again and again: it is scaled by what the last pairs say of it.
        """
        first = preconditioner.solve(gradient[None], c)[0]
        if self._begin == self._end:
            return first
        self._update_products(preconditioner, c)
        kept = slice(self._begin, self._end)
        arrays, s, h0_y = self._arrays, _flat(self._s[kept]), _flat(self._h0_y[kept])
        s_y = c * self._s_y[kept, kept] + self._s_s[kept, kept]
        y_h0_y = self._y_h0_y[kept, kept]
        ratios = (s_y.diagonal() / y_h0_y.diagonal())[-_SCALE_PAIRS:]
        # The lower of the two in the middle.
        median = sorted(arrays.to_numpy(ratios).tolist())[(len(ratios) - 1) // 2]
        scale = float(np.clip(median, _LEAST_SCALE, 1.0))
        upper = arrays.upper(s_y)
        middle = arrays.diagonal_matrix(s_y.diagonal()) + scale * y_h0_y
        g = gradient.reshape(-1)
        solved = arrays.solve_upper(upper, (s @ g)[:, None])
        right = middle @ solved - scale * (h0_y @ g)[:, None]
        left = arrays.solve_upper(upper, right, transposed=True)
        correction = s.T @ left - scale * (h0_y.T @ solved)
        return scale * first + correction[:, 0].reshape(gradient.shape)

    def _update_products(self, preconditioner: Preconditioner, c: float) -> None:
        """Compute the products with the preconditioner: for new pairs, or for all where it or C has changed."""
        if self._products_of is None or self._products_of[0] is not preconditioner or self._products_of[1] != c:
            self._products_of, self._known = (preconditioner, c), self._begin
        new, kept = slice(max(self._known, self._begin), self._end), slice(self._begin, self._end)
        if new.start == new.stop:
            return
        y = c * self._y[new]
        y[:, :, :-1] += self._s[new][:, :, :-1]
        self._h0_y[new] = preconditioner.solve(y, c)
        products = _flat(self._h0_y[kept]) @ _flat(y).T
        self._y_h0_y[kept, new], self._y_h0_y[new, kept] = products, products.T
        self._known = self._end

    def _make_room(self, like: Array) -> None:
        room = 2 * self._most
        self._s, self._y, self._h0_y = (self._arrays.empty_like(like, room, *like.shape) for _ in range(3))
        self._s_y, self._s_s, self._y_h0_y = (self._arrays.zeros(room, room) for _ in range(3))

    def _move_to_front(self) -> None:
        count, kept = self._end - self._begin, slice(self._begin, self._end)
        for vectors in (self._s, self._y, self._h0_y):
            vectors[:count] = self._arrays.copy(vectors[kept])
        for products in (self._s_y, self._s_s, self._y_h0_y):
            products[:count, :count] = self._arrays.copy(products[kept, kept])
        self._known = max(self._known - self._begin, 0)
        self._begin, self._end = 0, count


def rotated(vector: Array, rotation: Array, arrays: NumpyArrays) -> Array:
    """Return ``vector`` (K, D + 1) in another feature basis; the intercepts stay."""
    return arrays.join_last([vector[:, :-1] @ rotation, vector[:, -1:]])


def _flat(vectors: Array) -> Array:
    """Return (n, K × (D + 1)) of (n, K, D + 1)."""
    return vectors.reshape(len(vectors), -1)
