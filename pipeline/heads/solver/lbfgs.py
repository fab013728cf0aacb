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

import torch

if TYPE_CHECKING:
    from pipeline.heads.solver.preconditioner import Preconditioner

_LEAST_SCALE = 0.05
_SCALE_PAIRS = 10
"""Curvature pairs whose median scales the preconditioner."""


class CurvaturePairs:
    """Curvature pairs of the loss alone, oldest first: exact for every C, where ``y = C y_loss + s`` (weights only).

    They are rows of arrays with room for twice as many, so that the oldest drop out by moving a view. Their inner
    products are kept beside them: a step then costs two products with the new pair alone, however many are known.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin = self._end = self._known = 0
        self._products_of: tuple[Preconditioner, float] | None = None

    def add(self, step: torch.Tensor, change: torch.Tensor) -> None:
        """Keep a pair whose curvature stands clear of rounding."""
        product = float((step * change).sum())
        size = float(step.norm() * change.norm())
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
        s, y = self._s[kept].flatten(1), self._y[kept].flatten(1)
        weights = step.clone()
        weights[:, -1] = 0.0
        self._s_y[kept, new] = s @ change.flatten()
        self._s_y[new, kept] = y @ step.flatten()
        self._s_s[kept, new] = self._s_s[new, kept] = s @ weights.flatten()

    def forget(self) -> None:
        """Drop all pairs."""
        self._begin = self._end = self._known = 0

    def rotate(self, rotation: torch.Tensor) -> None:
        """Express all pairs in another feature basis, which leaves their inner products as they are."""
        kept = slice(self._begin, self._end)
        for vectors in (self._s, self._y) if self._end else ():
            vectors[kept, :, :-1] = vectors[kept, :, :-1] @ rotation
        self._products_of = None

    def solve(self, gradient: torch.Tensor, c: float, preconditioner: Preconditioner) -> torch.Tensor:
        """Return the L-BFGS inverse Hessian times ``gradient`` (Byrd, Nocedal and Schnabel 1994, equation 3.1).

        Along the steps taken the preconditioner underestimates the curvature, by 2 to 20 times, and full steps would
        be refused again and again: it is scaled by what the last pairs say of it.
        """
        first = preconditioner.solve(gradient[None], c)[0]
        if self._begin == self._end:
            return first
        self._update_products(preconditioner, c)
        kept = slice(self._begin, self._end)
        s, h0_y = self._s[kept].flatten(1), self._h0_y[kept].flatten(1)
        s_y = c * self._s_y[kept, kept] + self._s_s[kept, kept]
        y_h0_y = self._y_h0_y[kept, kept]
        ratios = (s_y.diagonal() / y_h0_y.diagonal())[-_SCALE_PAIRS:]
        scale = ratios.median().clamp(_LEAST_SCALE, 1.0)
        upper = torch.triu(s_y)
        middle = torch.diag(s_y.diagonal()) + scale * y_h0_y
        g = gradient.flatten()
        solved = torch.linalg.solve_triangular(upper, (s @ g)[:, None], upper=True)
        right = middle @ solved - scale * (h0_y @ g)[:, None]
        left = torch.linalg.solve_triangular(upper.T, right, upper=False)
        correction: torch.Tensor = s.T @ left - scale * (h0_y.T @ solved)
        return scale * first + correction[:, 0].view_as(gradient)

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
        products = self._h0_y[kept].flatten(1) @ y.flatten(1).T
        self._y_h0_y[kept, new], self._y_h0_y[new, kept] = products, products.T
        self._known = self._end

    def _make_room(self, like: torch.Tensor) -> None:
        room = 2 * self._most
        self._s, self._y, self._h0_y = (like.new_empty(room, *like.shape) for _ in range(3))
        self._s_y, self._s_s, self._y_h0_y = (like.new_zeros(room, room) for _ in range(3))

    def _move_to_front(self) -> None:
        count, kept = self._end - self._begin, slice(self._begin, self._end)
        for vectors in (self._s, self._y, self._h0_y):
            vectors[:count] = vectors[kept].clone()
        for products in (self._s_y, self._s_s, self._y_h0_y):
            products[:count, :count] = products[kept, kept].clone()
        self._known = max(self._known - self._begin, 0)
        self._begin, self._end = 0, count


def rotated(vector: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Return ``vector`` (K, D + 1) in another feature basis; the intercepts stay."""
    out = vector.clone()
    out[:, :-1] = vector[:, :-1] @ rotation
    return out
