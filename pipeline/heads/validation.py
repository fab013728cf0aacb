"""What every classifier of this package asks of its training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ClassHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of two or more classes on float32 features."""

    classes_: NDArray[Any]

    def _validate(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Check X and y with scikit-learn's own checks; return the data and the classes as 0 … K−1."""
        data, target = validate_data(self, X, y, dtype=np.float32, order="C")
        check_classification_targets(target)
        return np.asarray(data), self._codes(target)

    def _codes(self, target: NDArray[Any]) -> NDArray[np.int64]:
        """Learn the classes; return those of the rows as 0 … K−1."""
        self.classes_, codes = np.unique(target, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected rows of at least 2 classes, found one class: {self.classes_[0]!r}")
        return codes
