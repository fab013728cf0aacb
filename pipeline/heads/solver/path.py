"""The regularisation path of multinomial logistic regression: every C and every fold in one stream of passes.

A *fold path* is the sequence of solutions for one training set (one fold, or all rows) over ascending C, from strong to
weak regularisation. Each pass over the data evaluates one trial point of every unfinished path, so one matrix product
serves all of them, and no path waits for another. Three things keep the number of passes small:

- L-BFGS works around a Kronecker-factored preconditioner: the eigenvectors of the curvature-weighted XᵀX on one
  side, those of the mean softmax Hessian of the classes on the other, and the Hessian's own diagonal in that basis.
- The next C starts from the last solutions, extrapolated in log C.
- L-BFGS keeps its curvature pairs when C changes. The objective is ``C L(θ) + ½‖W‖²``, so a pair measured on L alone
  is exact for every C.

Two measures of how far a point is from the optimum are reported. ``gap_bound`` is a certificate: by Fenchel-Young, the
duality gap at a point whose intercept gradient is zero is ``½‖∇_W‖²``; what the intercepts can still gain is added. It
is loose where C is large. ``gap_estimate`` is half the squared Newton decrement ``½ gᵀH⁻¹g`` under the preconditioner,
times a safety factor that grows with the passes spent on one C; the stopping rule takes the smaller one.

Axes: N rows, D features, K classes, P fold paths, R rows of one block.

References
----------
Böhning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in limited memory methods",
Math. Programming 63 (1994).
George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
Shalev-Shwartz and Zhang, "Stochastic dual coordinate ascent", JMLR 14 (2013), for the dual.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.heads.solver.fold_path import ALL_ROWS, Evaluation, FoldPath, PathPoint, PathRules
from pipeline.heads.solver.lbfgs import CurvaturePairs
from pipeline.heads.solver.preconditioner import CurvatureSample
from pipeline.heads.solver.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_BLOCK_BYTES = 5 << 20
"""A block of rows is read twice, forward and backward; this many bytes of it stay in the processor's cache."""

_CUDA_BLOCK_BYTES = 1 << 30

_SAMPLE_ROWS = 4096
_SAMPLE_ROWS_PER_FEATURE = 8
"""The preconditioner is built on this many rows: enough for its eigenvectors, at the cost of a pass or two."""

_WIDEST_EIGENBASIS = 4096
"""Above this width an eigendecomposition costs more than the passes it saves, and the basis is the features' own."""

_BASIS_BAND = 100.0
"""The feature basis, which costs an eigendecomposition, is used within this factor of C."""

_PAIR_BYTES = 1 << 30
"""Curvature pairs of all fold paths together take at most this."""

_LEAST_PAIRS, _QUICK_BYTES = 8, 32 << 20
"""Steps of one path that take more bytes than this cost more, read on each pass, than the passes they save. This many
pairs are kept even then."""

_PASSES_OVER_VECTORS = 100
"""A step reads and writes the parameters and curvature pairs about so often."""

_DOUBLE_VALUES = 4_000_000
"""Up to this many feature values everything is computed in float64: it costs little there, and large values of C, whose
optimum lies beyond float32's rounding, are then solved too."""


def _as_tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """Wrap an array that is only read, also one that must not be written."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class SoftmaxPath:
    """Data prepared once for any number of fold paths.

    Parameters
    ----------
    X : ndarray of shape (N, D), float32
        Finite features. Large ones are read, never copied or changed, on the CPU.
    y : ndarray of shape (N,), int
        Classes 0 … K−1.
    n_classes : int
        K.
    row_weight : ndarray of shape (N,), optional
        Non-negative weights of the rows.
    fold : ndarray of shape (N,), int, optional
        The fold whose path holds the row out.
    standardise : bool
        Penalise the weights of features in units of their standard deviation over the path's own training rows. The
        solution is returned in the units of X all the same.
    device : str
        ``"cpu"`` or ``"cuda"``.
    memory : int
        Curvature pairs that a path keeps at most.
    """

    ALL_ROWS = ALL_ROWS

    def __init__(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.integer],
        n_classes: int,
        *,
        row_weight: NDArray[np.floating] | None = None,
        fold: NDArray[np.integer] | None = None,
        standardise: bool = False,
        device: str = "cpu",
        memory: int = 100,
    ) -> None:
        self.n_classes = n_classes
        self.device = torch.device(device)
        self.memory = memory
        self.standardise = standardise
        self._dtype = torch.float64 if X.size <= _DOUBLE_VALUES else torch.float32
        self._X = _as_tensor(np.ascontiguousarray(X, dtype=np.float32)).to(self.device, self._dtype)
        # Weights lie in the span of the rows, and the penalty is the same in any orthonormal basis of it; a scale for
        # each feature is not.
        self._span: torch.Tensor | None = None
        if len(X) < X.shape[1] and not standardise:
            self._span, triangle = torch.linalg.qr(self._X.T.double())
            self._X = triangle.T.to(self._dtype).contiguous()
        n_rows, width = self._X.shape
        self.width = width
        self._y = torch.from_numpy(np.asarray(y, dtype=np.int64)).to(self.device)
        weight = np.ones(n_rows) if row_weight is None else np.asarray(row_weight)
        self._weight = torch.from_numpy(weight.astype(np.float64)).to(self.device, self._dtype)
        folds = np.full(n_rows, ALL_ROWS - 1) if fold is None else np.asarray(fold)
        self._fold = torch.from_numpy(folds.astype(np.int64)).to(self.device)
        self._held_out: dict[int, torch.Tensor] = {}
        budget = _BLOCK_BYTES if self.device.type == "cpu" else _CUDA_BLOCK_BYTES
        self._block = max(64, min(n_rows, budget // (self._X.element_size() * width)))
        self._prepare()

    def _prepare(self) -> None:
        """Find the weighted mean, and the rows on which the preconditioners are built."""
        n_rows, width = self._X.shape
        self._total_weight = float(self._weight.sum(dtype=torch.float64))
        mean = torch.zeros(width, dtype=torch.float64, device=self.device)
        for rows in self._blocks(8):
            mean += (self._weight[rows] @ self._X[rows]).double()
        self._mean = (mean / self._total_weight).to(self._dtype)
        size = min(n_rows, max(_SAMPLE_ROWS_PER_FEATURE * width, _SAMPLE_ROWS))
        chosen = np.random.default_rng(0).permutation(n_rows)[:size]
        chosen.sort()
        self._sample_rows = torch.from_numpy(chosen).to(self.device)

    def _start_basis(self, inverse_scale: torch.Tensor) -> None:
        """Take the features themselves as basis, and fetch the sample of rows."""
        weight = self._weight[self._sample_rows]
        self._basis = torch.eye(self.width, dtype=torch.float64, device=self.device)
        self._basis_band: int | None = None
        self._sample = CurvatureSample(
            (self._X[self._sample_rows] - self._mean) * inverse_scale.to(self._dtype),
            weight * (self._total_weight / float(weight.sum())),
            self._total_weight,
        )

    def _blocks(self, times: int = 1) -> list[slice]:
        n_rows, size = self._X.shape[0], self._block * times
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]

    # --- one pass over the data ----------------------------------------------------------------------------

    def _evaluate(self, paths: Sequence[FoldPath]) -> list[Evaluation]:
        """Loss, gradient and held-out scores of every path's trial point, in one read of X."""
        n_paths, k, d = len(paths), self.n_classes, self.width
        dtype, device = self._dtype, self.device
        theta = torch.stack([path.trial for path in paths])
        inverse_scale = torch.stack([path.inverse_scale for path in paths])[:, None, :].to(dtype)
        basis = self._basis.to(dtype)
        weights = (theta[:, :, :d].reshape(n_paths * k, d).to(dtype) @ basis.T).view(n_paths, k, d)
        weights = (weights * inverse_scale).view(n_paths * k, d)
        # X is never centred in memory: the mean goes into the intercept here and comes out of the gradient below.
        bias = theta[:, :, d].reshape(-1).to(dtype) - weights @ self._mean
        folds = torch.tensor([path.fold for path in paths], device=device)[:, None]
        gradient = torch.zeros(n_paths * k, d, dtype=dtype, device=device)
        gradient_bias = torch.zeros(n_paths * k, dtype=torch.float64, device=device)
        has_folds = any(path.fold != ALL_ROWS for path in paths)
        held_out = torch.zeros(3, n_paths, len(self._X) if has_folds else 0, dtype=dtype, device=device)
        loss = torch.zeros(n_paths, dtype=torch.float64, device=device)
        for rows in self._blocks():
            block, truth = self._X[rows], self._y[rows]
            size = len(truth)
            scores = torch.addmm(bias[:, None], weights, block.T).view(n_paths, k, size)
            log_p = torch.log_softmax(scores, dim=1)
            index = truth.expand(n_paths, 1, size)
            at_truth = log_p.gather(1, index)
            weight = torch.where(folds == self._fold[rows], 0.0, self._weight[rows])
            loss -= (at_truth[:, 0] * weight).sum(1, dtype=torch.float64)
            if has_folds:
                # A tie is right in one of as many cases as there are classes in it; NaN equals nothing.
                best = log_p == log_p.amax(dim=1, keepdim=True)
                right = best.gather(1, index)[:, 0]
                held_out[0, :, rows] = -at_truth[:, 0]
                held_out[1, :, rows] = -log_p.mean(1)
                held_out[2, :, rows] = right / best.sum(1).clamp_min(1)
            residual = log_p.exp_()
            residual.scatter_add_(1, index, torch.full_like(at_truth, -1.0))
            residual *= weight[:, None, :]
            flat = residual.view(n_paths * k, size)
            gradient.addmm_(flat, block)
            gradient_bias += flat.sum(1, dtype=torch.float64)
        gradient -= gradient_bias.to(dtype)[:, None] * self._mean
        scaled = (gradient.view(n_paths, k, d) * inverse_scale).view(n_paths * k, d) @ basis
        full = torch.cat([scaled.double().view(n_paths, k, d), gradient_bias.view(n_paths, k, 1)], dim=2)
        losses = loss.cpu().tolist()
        return [
            Evaluation(path.trial, losses[i], full[i], held_out[:, i, self._rows_of(path.fold)])
            for i, path in enumerate(paths)
        ]

    def _rows_of(self, fold: int) -> torch.Tensor:
        """Return the rows that a fold holds out."""
        if fold not in self._held_out:
            self._held_out[fold] = torch.nonzero(self._fold == fold)[:, 0]
        return self._held_out[fold]

    # --- the paths ------------------------------------------------------------------------------------------

    def solve(
        self,
        paths: Sequence[tuple[int, Sequence[float]]],
        *,
        starts: Sequence[PathPoint] | None = None,
        stop: Callable[[list[list[PathPoint]]], bool] | None = None,
        tol: float = 1e-4,
        max_passes: int = 500,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[PathPoint]]:
        """Solve every fold path at its values of C.

        Parameters
        ----------
        paths : sequence of (fold, values of C)
            The fold to hold out (``ALL_ROWS`` for none) and ascending values of C.
        starts : sequence of PathPoint, optional
            Where each path starts; by default at the class shares and no weights.
        stop : callable, optional
            Called with the points of all paths after every pass; a true result ends all paths.
        tol : float
            Relative gap to the optimum at which a value of C counts as solved.
        max_passes : int
            Passes after which one value of C is given up, reported as not converged.
        progress : callable, optional
            Called with (solved, all) pairs of path and C.

        Returns
        -------
        list of list of PathPoint
            For each path, one point for each of its values of C (fewer where ``stop`` ended it).
        """
        states = self._new_paths(paths, starts)
        rules = PathRules(tol, max_passes, lambda theta: self._sample.preconditioner(theta), self._coefficients)
        total = sum(len(state.values) for state in states)
        active = list(states)
        self._start_basis(states[0].inverse_scale)
        while active:
            with threads_for(self._X.shape[0] * self.width * self.n_classes * len(active)):
                self._choose_basis(active)
                found = self._evaluate(active)
            # Short vectors are quicker on one thread, and on a busy machine many times so.
            with threads_for(_PASSES_OVER_VECTORS * self.n_classes * self.width):
                for path, value in zip(active, found, strict=True):
                    path.advance(value, rules)
            active = [path for path in active if not path.is_finished]
            if stop is not None and stop([path.points for path in states]):
                active = []
            if progress is not None:
                progress(sum(path.position for path in states), total)
        return [state.points for state in states]

    def _new_paths(
        self, paths: Sequence[tuple[int, Sequence[float]]], starts: Sequence[PathPoint] | None
    ) -> list[FoldPath]:
        size = 8 * self.n_classes * (self.width + 1)
        few, most = max(_LEAST_PAIRS, _QUICK_BYTES // size), max(3, _PAIR_BYTES // (6 * size * len(paths)))
        memory = min(self.memory, few, most)
        states = []
        for number, (fold, values) in enumerate(paths):
            if list(values) != sorted(values) or not values or min(values) <= 0:
                raise ValueError(f"values of C must be positive and ascending, got {list(values)}")
            scale = self._scale(fold)
            start = self._start(fold) if starts is None else self._resume(starts[number], scale)
            states.append(FoldPath(fold, list(values), CurvaturePairs(memory), start, 1.0 / scale))
        return states

    def _start(self, fold: int) -> torch.Tensor:
        """Return the optimum without weights: intercepts at the log of the training rows' class shares."""
        start = torch.zeros(self.n_classes, self.width + 1, dtype=torch.float64, device=self.device)
        train = self._fold != fold
        share = torch.zeros(self.n_classes, dtype=torch.float64, device=self.device)
        share.index_add_(0, self._y[train], self._weight[train].double())
        log_share = (share / share.sum()).clamp_min(1e-6).log()
        start[:, -1] = log_share - log_share.mean()
        return start

    def _resume(self, point: PathPoint, scale: torch.Tensor) -> torch.Tensor:
        """Turn a solution back into the path's own centred and scaled parameters."""
        coef = torch.from_numpy(point.coef).double().to(self.device)
        if self._span is not None:
            coef = coef @ self._span
        intercept = torch.from_numpy(point.intercept).to(self.device) + coef @ self._mean.double()
        return torch.cat([coef * scale, intercept[:, None]], dim=1)

    def _scale(self, fold: int) -> torch.Tensor:
        """Return the standard deviations of the path's training rows, or ones; constant features keep one."""
        if not self.standardise:
            return torch.ones(self.width, dtype=torch.float64, device=self.device)
        sums = torch.zeros(2, self.width, dtype=torch.float64, device=self.device)
        total = 0.0
        for rows in self._blocks(8):
            weight = torch.where(self._fold[rows] == fold, 0.0, self._weight[rows])
            centred = self._X[rows] - self._mean
            sums[0] += (weight @ centred).double()
            sums[1] += (weight @ centred.square_()).double()
            total += float(weight.sum())
        deviation = (sums[1] / total - (sums[0] / total).square()).clamp_min(0.0).sqrt()
        floor = 1e-6 * float(deviation.max())
        return torch.where(deviation > floor, deviation, 1.0)

    def _choose_basis(self, paths: Sequence[FoldPath]) -> None:
        """Rotate everything to the eigenvectors of XᵀX, rows weighted by how uncertain the leading path is on them."""
        leader = max(paths, key=lambda path: path.c)
        band = math.floor(math.log(leader.c) / math.log(_BASIS_BAND))
        # Only ever upwards: when the leader has finished, the others keep the basis they have.
        known = self._basis_band is not None and band <= self._basis_band
        if known or self.width > _WIDEST_EIGENBASIS:
            return
        self._basis_band = band
        rotation = self._sample.rotation(leader.trial)
        self._basis = self._basis @ rotation
        self._sample.rotate(rotation)
        for path in paths:
            path.rotate(rotation)

    def _coefficients(
        self, theta: torch.Tensor, inverse_scale: torch.Tensor
    ) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
        """Return weights (K, D) and intercepts (K,) in the units of the data."""
        weights = (theta[:, :-1] @ self._basis.T) * inverse_scale
        intercept = theta[:, -1] - weights @ self._mean.double()
        if self._span is not None:
            weights = weights @ self._span.T
        return weights.to(self._dtype).cpu().numpy(), intercept.cpu().numpy()
