"""The few array operations of the solver that NumPy and PyTorch spell differently.

Small problems are solved by NumPy: importing PyTorch would take longer than they do. Large ones, and those on a GPU,
are solved by PyTorch. What both spell alike (indexing, ``@``, ``.T``, ``.sum(axis)``, ``.reshape``) is used directly.

Axes: N rows, P fold paths, K classes, D features, R rows of one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

Array = Any
"""An ndarray or a Tensor."""


class NumpyArrays:
    """Arrays of NumPy, all numbers float64."""

    def doubled(self) -> NumpyArrays:
        """Return the arrays whose working precision is float64: these, where it is already."""
        return self

    def of(self, array: Array) -> Array:
        """Return numbers as an array of the working precision."""
        return np.asarray(array, dtype=np.float64)

    def exact(self, array: Array) -> Array:
        """Return numbers as float64."""
        return np.asarray(array, dtype=np.float64)

    def codes(self, array: Array) -> Array:
        """Return whole numbers as an array."""
        return np.asarray(array, dtype=np.int64)

    def to_numpy(self, array: Array) -> Array:
        """Return an array as an ndarray."""
        return array

    def zeros(self, *shape: int) -> Array:
        """Return float64 zeros."""
        return np.zeros(shape)

    def working_zeros(self, *shape: int) -> Array:
        """Return zeros of the working precision."""
        return np.zeros(shape)

    def empty_like(self, array: Array, *shape: int) -> Array:
        """Return room for numbers of an array's type."""
        return np.empty(shape, dtype=array.dtype)

    def eye(self, size: int) -> Array:
        """Return the float64 identity."""
        return np.eye(size)

    def copy(self, array: Array) -> Array:
        """Return a copy."""
        return array.copy()

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Stack along a new first axis."""
        return np.stack(arrays)

    def join_last(self, arrays: Sequence[Array]) -> Array:
        """Join along the last axis."""
        return np.concatenate(arrays, axis=-1)

    def at_least(self, array: Array, least: float) -> Array:
        """Replace smaller numbers."""
        return np.maximum(array, least)

    def where(self, condition: Array, one: Any, other: Any) -> Array:
        """Choose by a condition."""
        return np.where(condition, one, other)

    def positions(self, condition: Array) -> Array:
        """Return where a condition holds."""
        return np.flatnonzero(condition)

    def log(self, array: Array) -> Array:
        """Return the natural logarithm."""
        return np.log(array)

    def diagonal_matrix(self, array: Array) -> Array:
        """Return a matrix with this diagonal."""
        return np.diag(array)

    def upper(self, matrix: Array) -> Array:
        """Return the upper triangle."""
        return np.triu(matrix)

    def solve_upper(self, matrix: Array, right: Array, *, transposed: bool = False) -> Array:
        """Solve with an upper triangular matrix, or with its transpose."""
        from scipy.linalg import solve_triangular  # only where something is solved

        return solve_triangular(matrix, right, lower=False, trans=int(transposed), check_finite=False)

    def eigenvectors(self, matrix: Array) -> Array:
        """Return the eigenvectors of a symmetric matrix, those of small eigenvalues first."""
        from scipy.linalg import eigh  # as above

        return eigh(matrix, check_finite=False, driver="evd")[1]

    def orthogonal(self, matrix: Array) -> tuple[Array, Array]:
        """Return the QR decomposition."""
        with _one_thread():
            q, r = np.linalg.qr(matrix)
        return q, r

    def class_weights(self, codes: Array, weight: Array, count: int) -> Array:
        """Sum weights by class."""
        return np.bincount(codes, weights=weight, minlength=count)

    def product_and(self, left: Array, right: Array, bias: Array) -> Array:
        """Return ``left @ right + bias[:, None]``."""
        found = left @ right
        found += bias[:, None]
        return found

    def softmax(self, scores: Array) -> Array:
        """Return probabilities over the last axis."""
        found = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found /= found.sum(axis=-1, keepdims=True)
        return found

    def log_softmax(self, scores: Array) -> Array:
        """Return log-probabilities (P, K, R) over K, in place."""
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def exp(self, array: Array) -> Array:
        """Return the exponential, in place."""
        return np.exp(array, out=array)

    def at_classes(self, array: Array, codes: Array) -> Array:
        """Return the entries (P, R) of the rows' own classes in an array (P, K, R)."""
        return array[:, codes, np.arange(len(codes))]

    def less_own_class(self, array: Array, codes: Array) -> Array:
        """Subtract one from the entries of the rows' own classes, in place."""
        array[:, codes, np.arange(len(codes))] -= 1.0
        return array

    def largest(self, array: Array) -> Array:
        """Return where the largest number over K is, as (P, K, R)."""
        return array == array.max(axis=1, keepdims=True)

    def exact_sum(self, array: Array, axis: int) -> Array:
        """Sum in float64."""
        return array.sum(axis)

    def threads(self, work: int) -> AbstractContextManager[object]:
        """Use one thread: these problems are too small to share."""
        return _one_thread()


def _one_thread() -> AbstractContextManager[object]:
    from threadpoolctl import ThreadpoolController  # loaded with scikit-learn

    if not _controllers:
        _controllers.append(ThreadpoolController())
    return _controllers[0].limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


_controllers: list[Any] = []
"""One, made when it is first needed: to look for the libraries takes milliseconds."""
