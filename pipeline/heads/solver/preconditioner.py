"""The Kronecker-factored preconditioner, measured on a sample of the rows.

Axes: D features, K classes, R rows of the sample.

References
----------
George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MOST_CLASS_DIRECTIONS = 256
_ROWS_OF_MANY_CLASSES = 2048
"""With more classes each class is a direction of its own: their Hessian is then nearly diagonal, and its eigenvectors
would cost more than all passes. The features' share of the curvature is the same for all classes, from this many
rows."""


@dataclass(frozen=True)
class Preconditioner:
    """The diagonal of the loss's Hessian in the basis of (K, K) class directions by feature directions.

    ``class_basis`` None stands for the classes themselves.
    """

    class_basis: torch.Tensor | None
    curvature: torch.Tensor

    def solve(self, vectors: torch.Tensor, c: float) -> torch.Tensor:
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
    """

    def __init__(self, rows: torch.Tensor, weight: torch.Tensor, total_weight: float) -> None:
        self._rows, self._weight, self._total_weight = rows, weight, total_weight
        self._squares = rows.square()

    def preconditioner(self, theta: torch.Tensor) -> Preconditioner:
        """Measure the Hessian's diagonal at ``theta`` (K, D + 1)."""
        n_classes, columns = theta.shape
        curvature = torch.empty(n_classes, columns, dtype=torch.float64, device=theta.device)
        if n_classes > _MOST_CLASS_DIRECTIONS:
            class_basis, uncertainty = None, self._of_single_classes(theta, curvature)
        else:
            class_basis, uncertainty = self._of_class_directions(theta, curvature)
        # The shared direction of the intercepts has no curvature at all, and no gradient either.
        least = 1e-3 * self._total_weight / n_classes
        curvature[:, -1] = uncertainty.sum(0).clamp_min(least)
        return Preconditioner(class_basis, curvature)

    def rotation(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the eigenvectors (D, D) of XᵀX, each row weighted by how uncertain ``theta`` is about it."""
        p = _probabilities(self._rows, theta)
        uncertainty = self._weight * (1.0 - p.square().sum(1))
        moments = self._rows.T @ (self._rows * uncertainty[:, None])
        rotation: torch.Tensor = torch.linalg.eigh(moments.double())[1]
        return rotation

    def rotate(self, rotation: torch.Tensor) -> None:
        """Express the rows in another feature basis."""
        self._rows = self._rows @ rotation.to(self._rows.dtype)
        self._squares = self._rows.square()

    def _of_class_directions(self, theta: torch.Tensor, curvature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill in the features' curvature; return the class directions and each row's uncertainty along them."""
        weight = self._weight
        p = _probabilities(self._rows, theta)
        weighted = p * weight[:, None]
        classes = torch.diag(weighted.sum(0)) - weighted.T @ p
        _, class_basis = torch.linalg.eigh(classes.double())
        u = class_basis.to(self._rows.dtype)
        # u_kᵀ (diag(p) − ppᵀ) u_k of every row: how uncertain the row is along class direction k.
        uncertainty = (weighted @ u.square() - weight[:, None] * (p @ u).square()).clamp_min_(0.0)
        curvature[:, :-1] = uncertainty.T @ self._squares
        return class_basis, uncertainty

    def _of_single_classes(self, theta: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
        """Fill in the features' curvature, of the same shape for every class; return each row's uncertainty."""
        every = -(-len(self._rows) // _ROWS_OF_MANY_CLASSES)
        rows, weight = self._rows[::every], self._weight[::every] * every
        p = _probabilities(rows, theta)
        uncertainty = (p - p.square()).mul_(weight[:, None])
        of_rows = uncertainty.sum(1)
        spread = of_rows @ rows.square() / of_rows.sum().clamp_min(1e-30)
        curvature[:, :-1] = uncertainty.sum(0)[:, None] * spread
        return uncertainty


def _probabilities(rows: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Return class probabilities (R, K)."""
    return torch.softmax(rows @ theta[:, :-1].T.to(rows.dtype) + theta[:, -1].to(rows.dtype), dim=1)
