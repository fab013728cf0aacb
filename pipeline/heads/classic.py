"""The other heads: scikit-learn's own estimators where they serve, two small ones where they do not.

Each is fitted inside the folds as well, so that its scores can be calibrated and its doubtful labels found.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.model import linear_scores
from pipeline.heads.validation import ClassHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

DEFAULT_ALPHAS: tuple[float, ...] = tuple(10.0**e for e in range(-3, 8))

_STEP_ROWS = 8192


class _Scores(ClassHead):
    """Validation and prediction from one row of ``coef_`` a class."""

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def _all_scores(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        return linear_scores(data, self.coef_, self.intercept_)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores: (N, K), or (N,) for two classes."""
        scores = self._all_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the largest score."""
        best = self._all_scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class RidgeHead(_Scores):
    """Least squares on ±1 targets, the strength of L2 chosen by the leave-one-out error of all rows.

    One eigendecomposition of the centred XᵀX serves every strength: with V its eigenvectors, the leverages and
    residuals of any strength come from XV, read block by block.

    Parameters
    ----------
    alphas : sequence of float
        Strengths to try.

    Attributes
    ----------
    alpha_ : float
        The strength with the smallest leave-one-out squared error.
    loo_error_ : ndarray of shape (n_alphas,)
        Mean squared leave-one-out error of every strength.

    References
    ----------
    Rifkin and Lippert, "Notes on regularized least squares", MIT-CSAIL-TR-2007-025, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> float(RidgeHead().fit(X, y).score(X, y)) > 0.8
    True
    """

    def __init__(self, *, alphas: Sequence[float] = DEFAULT_ALPHAS) -> None:
        self.alphas = alphas

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit all strengths, keep the best.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        """
        data, codes = self._validate(X, y)
        n_rows, width, k = len(data), data.shape[1], len(self.classes_)
        mean = data.mean(axis=0, dtype=np.float64)
        target_mean = 2 * np.bincount(codes, minlength=k) / n_rows - 1
        moments, cross = np.zeros((width, width)), np.zeros((width, k))
        for block, target in self._centred(data, codes, mean, target_mean):
            moments += block.T @ block
            cross += block.T @ target
        values, vectors = np.linalg.eigh(moments)
        values = values.clip(min=0.0)
        alphas = np.asarray(self.alphas, dtype=np.float64)
        shrink = 1.0 / (values[:, None] + alphas)
        rotated = vectors.T @ cross
        error = np.zeros(len(alphas))
        for block, target in self._centred(data, codes, mean, target_mean):
            turned = block @ vectors
            # The intercept's own leverage is 1 / N.
            leverage = turned**2 @ shrink + 1.0 / n_rows
            for i in range(len(alphas)):
                residual = target - turned @ (rotated * shrink[:, i : i + 1])
                error[i] += ((residual / np.maximum(1 - leverage[:, i : i + 1], 1e-9)) ** 2).sum()
        self.loo_error_ = error / (n_rows * k)
        best = int(self.loo_error_.argmin())
        self.alpha_ = float(alphas[best])
        self.coef_ = (vectors @ (rotated * shrink[:, best : best + 1])).T
        self.intercept_ = target_mean - self.coef_ @ mean
        return self

    @staticmethod
    def _centred(data: NDArray[np.float32], codes: NDArray[np.int64], mean: Any, target_mean: Any) -> Any:
        for start in range(0, len(data), _STEP_ROWS):
            rows = slice(start, start + _STEP_ROWS)
            target = np.full((len(codes[rows]), len(target_mean)), -1.0)
            target[np.arange(len(target)), codes[rows]] = 1.0
            yield data[rows] - mean, target - target_mean


class CentroidHead(_Scores):
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
        return self


class KnnHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """k nearest neighbours by cosine, in plain numpy: one matrix product a block.

    Parameters
    ----------
    n_neighbors : int
        k; at most as many as there are rows.

    Attributes
    ----------
    neighbours_ : ndarray of shape (N, D), float32
        Training rows at unit length.
    """

    def __init__(self, *, n_neighbors: int = 15) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep the rows at unit length.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        """
        data, target = validate_data(self, X, y, dtype=np.float32, order="C")
        check_classification_targets(target)
        self.classes_, codes = np.unique(target, return_inverse=True)
        norm = np.linalg.norm(data, axis=1, keepdims=True)
        self.neighbours_ = data / np.where(norm > 0, norm, 1.0)
        self.codes_ = codes.astype(np.int64)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the classes' shares among the neighbours."""
        from pipeline.heads.registry import knn_model

        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        return knn_model(self).scores(data)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the most neighbours."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


def out_of_fold_scores(
    estimator: Any, X: NDArray[np.float32], y: NDArray[np.int64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the scores (N, K) of every row from a fit on the other folds.

    Parameters
    ----------
    estimator : object
        Unfitted; cloned for every fold.
    X : ndarray of shape (N, D)
        Features.
    y : ndarray of shape (N,), int
        Classes 0 … K−1, each outside every fold.
    fold : ndarray of shape (N,), int
        Fold that holds the row out.
    """
    out = np.empty((len(X), int(y.max()) + 1))
    for number in np.unique(fold):
        held_out = fold == number
        fitted = clone(estimator).fit(X[~held_out], y[~held_out])
        out[held_out] = class_scores(fitted, X[held_out])
    return out


def class_scores(estimator: Any, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return one score a class: the decision function, or else log-probabilities."""
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(X), dtype=np.float64)
        return np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
    return np.log(np.clip(np.asarray(estimator.predict_proba(X), dtype=np.float64), 1e-12, 1.0))
