"""Nearest class mean as a linear head.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.heads.base import LinearClassHead
from pipeline.heads.fit import FitOptions, scaled, with_params
from pipeline.heads.knn import KnnHead as KnnHead  # head.joblib files of earlier versions name it here

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class CentroidHead(LinearClassHead):
    """Nearest class mean, by Euclidean distance.

    Attributes
    ----------
    centroids_ : ndarray of shape (K, D)
        Class means.

    References
    ----------
    Snell, Swersky and Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017, section 2.3: squared
    distance to a mean is a linear score.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Take the means.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        """
        data, codes = self._validate(X, y)
        means = [data[codes == label].mean(axis=0, dtype=np.float64) for label in range(len(self.classes_))]
        self.centroids_ = np.stack(means)
        self._set_solution(2 * self.centroids_, -(self.centroids_**2).sum(axis=1))
        return self


def make_centroid(options: FitOptions) -> Any:
    """Return the unfitted head of these options; --balanced makes no difference to class means."""
    return scaled(with_params(CentroidHead(), options.params, "the centroid head"), options)
