"""What every classifier of this package asks of its training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

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
        check_classification_targets(target)
        return np.asarray(data), self._codes(target)

    def _codes(self, target: NDArray[Any]) -> NDArray[np.int64]:
        """Learn the classes; return those of the rows as 0 … K−1."""
        self.classes_, codes = np.unique(target, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected rows of at least 2 classes, found one class: {self.classes_[0]!r}")
        return codes
