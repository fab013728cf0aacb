"""Nearest class mean as a linear head.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import ClassHead
from pipeline.heads.knn import KnnHead as KnnHead  # head.joblib files of earlier versions name it here
from pipeline.heads.model import linear_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class LinearClassHead(ClassHead):
    """Validation and prediction from ``coef_``: one row a class, and one row alone for two classes."""

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores: (N, K), or (N,) for two classes."""
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        scores = linear_scores(data, self.coef_, self.intercept_)
        if len(self.classes_) != 2:
            return scores
        # Heads of two classes saved by earlier versions have two rows.
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the largest score."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[index])


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
        self.coef_ = 2 * self.centroids_
        self.intercept_ = -(self.centroids_**2).sum(axis=1)
        if len(self.classes_) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        return self
