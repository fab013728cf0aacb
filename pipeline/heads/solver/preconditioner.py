"""The Kronecker-factored preconditioner, measured on a sample of the rows.

Axes: D features, K classes, R rows of the sample.

References
----------
George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.heads.solver.arrays import Array, NumpyArrays


MOST_CLASS_DIRECTIONS = 256
_ROWS_OF_MANY_CLASSES = 2048
"""With more classes each class is a direction of its own: their Hessian is then nearly diagonal, and its eigenvectors
would cost more than all passes. The features' share of the curvature is the same for all classes, from this many
rows."""


@dataclass(frozen=True)
class Preconditioner:
    """The diagonal of the loss's Hessian in the basis of (K, K) class directions by feature directions.

    ``class_basis`` None stands for the classes themselves.
    """

    class_basis: Array | None
    curvature: Array

    def solve(self, vectors: Array, c: float) -> Array:
        """Divide ``vectors`` (n, K, D + 1) by ``c × curvature + 1``; the last column, the intercepts, has no + 1."""
        diagonal = c * self.curvature
        diagonal[:, :-1] += 1.0
        if self.class_basis is None:
            return vectors / diagonal
        return self.class_basis @ ((self.class_basis.T @ vectors) / diagonal)


class CurvatureSample:
    """A sample of the rows, in the feature basis, on which Hessians are measured.

    Parameters
    ----------
    rows : Tensor of shape (R, D)
        Centred and scaled features.
    weight : Tensor of shape (R,)
        Weights of the rows, which sum to ``total_weight``.
    total_weight : float
        The weight of all rows of the data.
    arrays : NumpyArrays
        The operations on these arrays.
    scores : Tensor of shape (R, K), optional
        Added to the scores of the rows.
    """

    def __init__(
        self, rows: Array, weight: Array, total_weight: float, arrays: NumpyArrays, scores: Array | None = None
    ) -> None:
        self._rows, self._weight, self._total_weight, self._arrays = rows, weight, total_weight, arrays
        self._scores = scores
        self._squares = rows * rows

    def preconditioner(self, theta: Array) -> Preconditioner:
        """Measure the Hessian's diagonal at ``theta`` (K, D + 1)."""
        n_classes, columns = theta.shape
        curvature = self._arrays.zeros(n_classes, columns)
        if n_classes > MOST_CLASS_DIRECTIONS:
            class_basis, uncertainty = None, self._of_single_classes(theta, curvature)
        else:
            class_basis, uncertainty = self._of_class_directions(theta, curvature)
        # The shared direction of the intercepts has no curvature at all, and no gradient either.
        least = 1e-3 * self._total_weight / n_classes
        curvature[:, -1] = self._arrays.at_least(uncertainty.sum(0), least)
        return Preconditioner(class_basis, curvature)

    def rotation(self, theta: Array) -> Array:
        """Return the eigenvectors (D, D) of XᵀX, each row weighted by how uncertain ``theta`` is about it."""
        p = self._probabilities(theta)
        uncertainty = self._weight * (1.0 - (p * p).sum(1))
        return self._arrays.eigenvectors(self._rows.T @ (self._rows * uncertainty[:, None]))

    def rotate(self, rotation: Array) -> None:
        """Express the rows in another feature basis."""
        self._rows = self._rows @ self._arrays.of(rotation)
        self._squares = self._rows * self._rows

    def _of_class_directions(self, theta: Array, curvature: Array) -> tuple[Array, Array]:
        """Fill in the features' curvature; return the class directions and each row's uncertainty along them."""
        weight, arrays = self._weight, self._arrays
        p = self._probabilities(theta)
        weighted = p * weight[:, None]
        class_basis = arrays.eigenvectors(arrays.diagonal_matrix(weighted.sum(0)) - weighted.T @ p)
        u = arrays.of(class_basis)
        # u_kᵀ (diag(p) − ppᵀ) u_k of every row: how uncertain the row is along class direction k.
        uncertainty = arrays.at_least(weighted @ (u * u) - weight[:, None] * (p @ u) ** 2, 0.0)
        curvature[:, :-1] = uncertainty.T @ self._squares
        return class_basis, uncertainty

    def _of_single_classes(self, theta: Array, curvature: Array) -> Array:
        """Fill in the features' curvature, of the same shape for every class; return each row's uncertainty."""
        every = -(-len(self._rows) // _ROWS_OF_MANY_CLASSES)
        rows, weight = self._rows[::every], self._weight[::every] * every
        p = self._probabilities(theta, every)
        uncertainty = (p - p * p) * weight[:, None]
        of_rows = uncertainty.sum(1)
        spread = of_rows @ (rows * rows) / max(float(of_rows.sum()), 1e-30)
        curvature[:, :-1] = uncertainty.sum(0)[:, None] * spread
        return uncertainty

    def _probabilities(self, theta: Array, every: int = 1) -> Array:
        """Return class probabilities (R, K), of all rows or of one in so many."""
        of = self._arrays.of
        scores = self._rows[::every] @ of(theta[:, :-1]).T + of(theta[:, -1])
        return self._arrays.softmax(scores if self._scores is None else scores + self._scores[::every])
