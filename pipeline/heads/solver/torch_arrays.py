"""The solver's array operations by PyTorch, on the processor or a GPU."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.heads.solver.arrays import Array, NumpyArrays
from pipeline.heads.solver.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager


class TorchArrays(NumpyArrays):
    """Tensors of float32, or of float64 where ``double``; see `pipeline.heads.solver.arrays.NumpyArrays`."""

    def __init__(self, device: str, *, double: bool) -> None:
        self._device = torch.device(device)
        self._dtype = torch.float64 if double else torch.float32

    def doubled(self) -> NumpyArrays:
        return self if self._dtype == torch.float64 else TorchArrays(str(self._device), double=True)

    def of(self, array: Array) -> Array:
        return _as_tensor(array).to(self._device, self._dtype)

    def exact(self, array: Array) -> Array:
        return _as_tensor(array).to(self._device, torch.float64)

    def codes(self, array: Array) -> Array:
        return torch.from_numpy(np.asarray(array, dtype=np.int64)).to(self._device)

    def to_numpy(self, array: Array) -> Array:
        return array.cpu().numpy()

    def zeros(self, *shape: int) -> Array:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def working_zeros(self, *shape: int) -> Array:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def empty_like(self, array: Array, *shape: int) -> Array:
        return array.new_empty(shape)

    def eye(self, size: int) -> Array:
        return torch.eye(size, dtype=torch.float64, device=self._device)

    def copy(self, array: Array) -> Array:
        return array.clone()

    def stack(self, arrays: Sequence[Array]) -> Array:
        return torch.stack(list(arrays))

    def join_last(self, arrays: Sequence[Array]) -> Array:
        return torch.cat(list(arrays), dim=-1)

    def at_least(self, array: Array, least: float) -> Array:
        return array.clamp_min(least)

    def where(self, condition: Array, one: Array, other: Array) -> Array:
        return torch.where(condition, one, other)

    def positions(self, condition: Array) -> Array:
        return torch.nonzero(condition)[:, 0]

    def log(self, array: Array) -> Array:
        return array.log()

    def diagonal_matrix(self, array: Array) -> Array:
        return torch.diag(array)

    def upper(self, matrix: Array) -> Array:
        return torch.triu(matrix)

    def solve_upper(self, matrix: Array, right: Array, *, transposed: bool = False) -> Array:
        if transposed:
            return torch.linalg.solve_triangular(matrix.T, right, upper=False)
        return torch.linalg.solve_triangular(matrix, right, upper=True)

    def eigenvectors(self, matrix: Array) -> Array:
        return torch.linalg.eigh(matrix.double())[1]

    def orthogonal(self, matrix: Array) -> tuple[Array, Array]:
        q, r = torch.linalg.qr(matrix)
        return q, r

    def class_weights(self, codes: Array, weight: Array, count: int) -> Array:
        return self.zeros(count).index_add_(0, codes, weight.double())

    def product_and(self, left: Array, right: Array, bias: Array) -> Array:
        return torch.addmm(bias[:, None], left, right)

    def softmax(self, scores: Array) -> Array:
        return torch.softmax(scores, dim=-1)

    def log_softmax(self, scores: Array) -> Array:
        return torch.log_softmax(scores, dim=1)

    def exp(self, array: Array) -> Array:
        return array.exp_()

    def at_classes(self, array: Array, codes: Array) -> Array:
        return array.gather(1, codes.expand(len(array), 1, len(codes)))[:, 0]

    def less_own_class(self, array: Array, codes: Array) -> Array:
        index = codes.expand(len(array), 1, len(codes))
        return array.scatter_add_(1, index, torch.full(index.shape, -1.0, dtype=array.dtype, device=array.device))

    def largest(self, array: Array) -> Array:
        return array == array.amax(dim=1, keepdim=True)

    def exact_sum(self, array: Array, axis: int) -> Array:
        return array.sum(axis, dtype=torch.float64)

    def threads(self, work: int) -> AbstractContextManager[object]:
        return threads_for(work)


def _as_tensor(array: Array) -> torch.Tensor:
    """Wrap an array that is only read, also one that must not be written."""
    if isinstance(array, torch.Tensor):
        return array
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
