"""Embeddings of several layers side by side, each divided by a scale of its own, and heads fitted on them.

Axes: N rows, D features of all layers together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.heads.model import HeadModel

    Floats = NDArray[np.float64]


def block_scale(X: NDArray[np.floating]) -> float:
    """Return what a block of features is divided by: the root of its total variance, so that no block dominates.

    A penalty on weights favours features that vary much, and a wide block has many of them. Divided by this scale,
    every block varies by one in all, however wide it is.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Training rows of one layer.

    Returns
    -------
    float
        1 where the rows do not vary.

    Examples
    --------
    >>> block_scale(np.array([[0.0, 0.0], [6.0, 8.0]]))
    5.0
    """
    variance = float(np.var(X, axis=0, dtype=np.float64).sum())
    return variance**0.5 if variance > 0 else 1.0


LEAST_DEVIATION = 1e-3
"""Standard deviation of features (root mean square) below which penalties of usual sizes hold every weight near 0."""


def deviation(X: NDArray[np.floating]) -> float:
    """Return the standard deviation of features (N, D), root mean square; 1 where the rows do not vary.

    Examples
    --------
    >>> deviation(np.array([[0.0, 1e-4], [2e-4, 1e-4]])) < LEAST_DEVIATION
    True
    """
    return block_scale(X) / X.shape[1] ** 0.5 if np.ptp(X, axis=0).any() else 1.0


class SideBySide:
    """Arrays side by side; rows are read when they are asked for.

    Parameters
    ----------
    arrays : sequence of array of shape (rows, D of the array)
        Such as maps of a file.

    Attributes
    ----------
    shape : tuple of int
        Rows, and D.
    dtype : dtype
        float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = tuple(arrays)
        self.shape = (len(arrays[0]), sum(array.shape[1] for array in arrays))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return np.concatenate([array[rows] for array in self._arrays], axis=1, dtype=np.float32)


class Blocks(SideBySide):
    """Arrays side by side, each divided by its scale.

    Parameters
    ----------
    arrays : sequence of array of shape (rows, D of the array)
    scales : sequence of float
        One for each array.
    """

    def __init__(self, arrays: Sequence[Any], scales: Sequence[float]) -> None:
        super().__init__(arrays)
        self._scales = tuple(scales)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        parts = [array[rows] / np.float32(scale) for array, scale in zip(self._arrays, self._scales, strict=True)]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    @property
    def parts(self) -> tuple[tuple[Any, ...], tuple[float, ...]]:
        """The arrays and their scales."""
        return self._arrays, self._scales

    @property
    def scale(self) -> Floats:
        """The scale of every feature (D,)."""
        return np.repeat(self._scales, [array.shape[1] for array in self._arrays])


def on_raw_features(model: HeadModel, scale: Floats) -> HeadModel:
    """Return a head that takes features as they are, from one fitted on features divided by ``scale`` (D,).

    The scales become part of its arrays, so that prediction needs no other step.
    """
    a = dict(model.arrays)
    if model.kind == "linear":
        return replace(model, arrays=a | {"coef": a["coef"] / scale})
    names = {"mlp": ("mean", "scale"), "knn": ("center", "scale")}.get(model.kind)
    if names is None:
        estimator = estimator_on_raw_features(model.notes["estimator"], scale)
        return replace(model, notes=model.notes | {"estimator": estimator})
    return replace(model, arrays=a | {name: (a[name] * scale).astype(a[name].dtype) for name in names})


def estimator_on_raw_features(estimator: Any, scale: Floats) -> Any:
    """Return a scikit-learn pipeline that divides features by ``scale`` (D,) and calls the fitted estimator."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    divide = StandardScaler(with_mean=False).fit(np.zeros((1, len(scale))))
    divide.scale_, divide.var_ = scale, scale**2
    return make_pipeline(divide, estimator)


def joined_layers(layers: Sequence[str], arrays: Any) -> NDArray[Any]:
    """Return the features (N, D) that a head on these layers takes, from arrays (N, D of the layer) by name.

    One layer is returned as it is, such as the map of a file.

    Raises
    ------
    HeadError
        A layer is not among the arrays.
    """
    missing = [name for name in layers if name not in arrays]
    if missing:
        raise HeadError(
            f"expected the layers {', '.join(layers)} that the head was fitted on, found no {missing[0]!r}: "
            f"extract with --layer {missing[0]}"
        )
    found = [arrays[name] for name in layers]
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)
