"""What the classifiers of this package share: checks of settings and data, and prediction from linear scores.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.evaluation.calibration import softmax
from pipeline.heads.fit import MANY_CLASSES
from pipeline.heads.model import linear_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def check_setting(fits: bool, name: str, expected: str, value: object) -> None:
    """Refuse a setting that cannot be.

    Raises
    ------
    ValueError
        Where ``fits`` is false, with what was expected and what was found.
    """
    if not fits:
        raise ValueError(f"expected {expected} for {name}, got {value!r}")


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number of at least ``least``."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return (
        isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(0 < float(value) < np.inf)
    )


class ClassHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of two or more classes on float32 features."""

    classes_: NDArray[Any]

    def _validate(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Check X and y with scikit-learn's own checks; return the data and the classes as 0 … K−1."""
        data, target = validate_data(self, X, y, dtype=np.float32, order="C")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", MANY_CLASSES, UserWarning)
            check_classification_targets(target)
        return np.asarray(data), self._codes(target)

    def _codes(self, target: NDArray[Any]) -> NDArray[np.int64]:
        """Learn the classes; return those of the rows as 0 … K−1."""
        self.classes_, codes = np.unique(target, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected rows of at least 2 classes, found one class: {self.classes_.tolist()[0]!r}")
        return codes

    def _row_weight(self, codes: NDArray[np.int64], class_weight: Any) -> NDArray[np.float64] | None:
        """Return the weight of every row, or None where all weigh the same."""
        if class_weight is None:
            return None
        weights = compute_class_weight(class_weight, classes=self.classes_, y=self.classes_[codes])
        return np.asarray(weights[codes], dtype=np.float64)


class LinearClassHead(ClassHead):
    """A classifier whose scores are linear in the features.

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); as in scikit-learn (1, D) and (1,) for two classes.
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def _set_solution(self, coef: NDArray[np.floating], intercept: NDArray[np.float64]) -> None:
        """Keep weights (K, D) and intercepts (K,); of two classes their difference."""
        self.coef_, self.intercept_ = coef.astype(np.float64), intercept
        if len(self.classes_) == 2:
            self.coef_, self.intercept_ = self.coef_[1:] - self.coef_[:1], intercept[1:] - intercept[:1]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores: (N, K), or (N,) for two classes."""
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        scores = linear_scores(data, self.coef_, self.intercept_)
        if len(self.classes_) != 2:
            return scores
        # Some heads of two classes saved by version 0.1.0 have two rows.
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the largest score."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[index])


class SoftmaxHead(LinearClassHead):
    """A linear classifier whose scores are log-probabilities, up to a constant of each row."""

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (N, K)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return softmax(scores)
