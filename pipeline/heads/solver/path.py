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
from typing import TYPE_CHECKING

import numpy as np

from pipeline.heads.solver.arrays import Array, NumpyArrays
from pipeline.heads.solver.fold_path import ALL_ROWS, Evaluation, FoldPath, PathPoint, PathRules
from pipeline.heads.solver.lbfgs import CurvaturePairs
from pipeline.heads.solver.preconditioner import MOST_CLASS_DIRECTIONS, CurvatureSample, Preconditioner

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


_EXPECTED_PASSES = 100
"""Of a sweep; a fit at one C takes some tens."""

_ROTATED_VALUES = 1 << 26
"""With more than `MOST_CLASS_DIRECTIONS` classes, taking their parameters to a basis and back is a fifth of a pass: the
data are rotated once instead, to the eigenvectors of XᵀX, if they have at most so many values."""


def _rotates_data(X: NDArray[np.float32], n_classes: int) -> bool:
    return n_classes > MOST_CLASS_DIRECTIONS and X.size <= _ROTATED_VALUES and X.shape[1] <= _WIDEST_EIGENBASIS


def arrays_for(values: int, device: str) -> NumpyArrays:
    """Return the arrays for a problem of so many feature values: NumPy's, or PyTorch's for large ones and GPUs."""
    if device == "cpu" and values <= _DOUBLE_VALUES:
        return NumpyArrays()
    from pipeline.heads.solver.torch_arrays import TorchArrays  # imports torch

    return TorchArrays(device, double=values <= _DOUBLE_VALUES)


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
    origin : ndarray of shape (K, D), optional
        Weights that the penalty pulls to, in the units of X, instead of zero: ``½‖W − origin‖²``.
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
        origin: NDArray[np.floating] | None = None,
    ) -> None:
        self.n_classes = n_classes
        self._arrays = arrays_for(X.size, device)
        self._exact_arrays = self._arrays.doubled()
        # Where passes are short, an eigendecomposition for every range of C costs more than it saves.
        self._keeps_basis = X.size <= _DOUBLE_VALUES
        self._sample: CurvatureSample | None = None
        self.memory = memory
        self.standardise = standardise
        arrays = self._arrays
        self._X = arrays.of(np.ascontiguousarray(X, dtype=np.float32))
        # Weights lie in the span of the rows, and the penalty is the same in any orthonormal basis of it; a scale for
        # each feature is not.
        self._span: Array | None = None
        self._keeps_features = X.shape[1] > _WIDEST_EIGENBASIS
        if len(X) < X.shape[1] and not standardise:
            self._span, triangle = arrays.orthogonal(arrays.exact(self._X.T))
            self._X = arrays.copy(arrays.of(triangle.T))
        elif _rotates_data(X, n_classes) and not standardise:
            centred = self._X - self._X.mean(0)
            self._span = arrays.eigenvectors(arrays.exact(centred.T @ centred))
            self._X = self._X @ arrays.of(self._span)
            self._keeps_features = True
        self._whole_origin = origin
        self._origin = None if origin is None else self._in_span(arrays.exact(np.asarray(origin, dtype=np.float64)))
        n_rows, width = self._X.shape
        self.width = width
        self._y = arrays.codes(y)
        weight = np.ones(n_rows) if row_weight is None else np.asarray(row_weight)
        self._weight = arrays.of(weight.astype(np.float64))
        folds = np.full(n_rows, ALL_ROWS - 1) if fold is None else np.asarray(fold)
        self._fold = arrays.codes(folds)
        self._held_out: dict[int, Array] = {}
        budget = _BLOCK_BYTES if device == "cpu" else _CUDA_BLOCK_BYTES
        self._block = max(64, min(n_rows, budget // (self._X.itemsize * width)))
        with arrays.threads(self._X.shape[0] * width):
            self._prepare()

    def _prepare(self) -> None:
        """Find the weighted mean, and the rows on which the preconditioners are built."""
        n_rows, width = self._X.shape
        arrays = self._arrays
        self._total_weight = float(arrays.exact_sum(self._weight, 0))
        mean = arrays.zeros(width)
        for rows in self._blocks(8):
            mean += arrays.exact(self._weight[rows] @ self._X[rows])
        self._mean = arrays.of(mean / self._total_weight)
        size = min(n_rows, max(_SAMPLE_ROWS_PER_FEATURE * width, _SAMPLE_ROWS))
        chosen = np.random.default_rng(0).permutation(n_rows)[:size]
        chosen.sort()
        self._sample_rows = arrays.codes(chosen)

    def _start_basis(self, inverse_scale: Array) -> None:
        """Take the features themselves as basis, and fetch the sample of rows."""
        weight = self._weight[self._sample_rows]
        self._basis = self._arrays.eye(self.width)
        self._basis_band: int | None = None
        self._sample = CurvatureSample(
            (self._X[self._sample_rows] - self._mean) * self._arrays.of(inverse_scale),
            weight * (self._total_weight / float(weight.sum())),
            self._total_weight,
            self._arrays,
            None if self._origin is None else self._origin_scores(),
        )

    def _origin_scores(self) -> Array:
        """Return what the origin alone gives the sample of rows: (R, K)."""
        return (self._X[self._sample_rows] - self._mean) @ self._arrays.of(self._origin).T

    def _in_span(self, coef: Array) -> Array:
        """Return weights (K, D) in the basis in which the data are kept."""
        return coef if self._span is None else coef @ self._span

    def _blocks(self, times: int = 1) -> list[slice]:
        n_rows, size = self._X.shape[0], self._block * times
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]

    # --- one pass over the data ----------------------------------------------------------------------------

    def _evaluate(self, paths: Sequence[FoldPath]) -> list[Evaluation]:
        """Loss, gradient and held-out scores of every path's trial point, in one read of X for each precision."""
        found: dict[int, Evaluation] = {}
        for is_exact, arrays in ((False, self._arrays), (True, self._exact_arrays)):
            some = [number for number, path in enumerate(paths) if path.is_exact == is_exact]
            if some:
                found |= zip(some, self._evaluate_in(arrays, [paths[number] for number in some]), strict=True)
        return [found[number] for number in range(len(paths))]

    def _evaluate_in(self, arrays: NumpyArrays, paths: Sequence[FoldPath]) -> list[Evaluation]:
        """Evaluate in the working precision of ``arrays``, to which X is taken block by block."""
        n_paths, k, d, mean = len(paths), self.n_classes, self.width, arrays.of(self._mean)
        theta = arrays.stack([path.trial for path in paths])
        inverse_scale = arrays.of(arrays.stack([path.inverse_scale for path in paths]))[:, None, :]
        basis = None if self._keeps_features else arrays.of(self._basis)
        weights = arrays.of(theta[:, :, :d].reshape(n_paths * k, d))
        if basis is not None:
            weights = weights @ basis.T
        weights = weights.reshape(n_paths, k, d) * inverse_scale
        if self._origin is not None:
            weights = weights + arrays.of(self._origin)
        weights = weights.reshape(n_paths * k, d)
        # X is never centred in memory: the mean goes into the intercept here and comes out of the gradient below.
        bias = arrays.of(theta[:, :, d].reshape(-1)) - weights @ mean
        folds = arrays.codes(np.array([path.fold for path in paths]))[:, None]
        gradient, gradient_bias = arrays.working_zeros(n_paths * k, d), arrays.zeros(n_paths * k)
        has_folds = any(path.fold != ALL_ROWS for path in paths)
        held_out = arrays.working_zeros(3, n_paths, len(self._X) if has_folds else 0)
        loss = arrays.zeros(n_paths)
        for rows in self._blocks():
            block, truth = arrays.of(self._X[rows]), self._y[rows]
            size = len(truth)
            scores = arrays.product_and(weights, block.T, bias).reshape(n_paths, k, size)
            log_p = arrays.log_softmax(scores)
            at_truth = arrays.at_classes(log_p, truth)
            weight = arrays.where(folds == self._fold[rows], 0.0, arrays.of(self._weight[rows]))
            loss -= arrays.exact_sum(at_truth * weight, 1)
            if has_folds:
                # A tie is right in one of as many cases as there are classes in it; NaN equals nothing.
                best = arrays.largest(log_p)
                held_out[0][:, rows] = -at_truth
                held_out[1][:, rows] = -log_p.mean(1)
                held_out[2][:, rows] = arrays.at_classes(best, truth) / arrays.at_least(best.sum(1), 1)
            residual = arrays.less_own_class(arrays.exp(log_p), truth)
            residual *= weight[:, None, :]
            flat = residual.reshape(n_paths * k, size)
            gradient += flat @ block
            gradient_bias += arrays.exact_sum(flat, 1)
        gradient -= arrays.of(gradient_bias)[:, None] * mean
        scaled = (gradient.reshape(n_paths, k, d) * inverse_scale).reshape(n_paths * k, d)
        if basis is not None:
            scaled = scaled @ basis
        full = arrays.join_last([arrays.exact(scaled).reshape(n_paths, k, d), gradient_bias.reshape(n_paths, k, 1)])
        losses = loss.tolist()
        return [
            Evaluation(path.trial, losses[i], full[i], held_out[:, i, self._rows_of(path.fold)])
            for i, path in enumerate(paths)
        ]

    def _rows_of(self, fold: int) -> Array:
        """Return the rows that a fold holds out."""
        if fold not in self._held_out:
            self._held_out[fold] = self._arrays.positions(self._fold == fold)
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
        with self._arrays.threads(self._X.shape[0] * self.width):
            states = self._new_paths(paths, starts)
        rounds = self._exact_arrays is not self._arrays
        rules = PathRules(tol, max_passes, rounds, self._preconditioner_at, self._arrays, self._coefficients)
        total = sum(len(state.values) for state in states)
        active = list(states)
        if not self._keeps_basis or self._sample is None:
            self._start_basis(states[0].inverse_scale)
        elif not self._keeps_features:
            for state in states:
                state.rotate(self._basis, self._arrays)
        while active:
            with self._arrays.threads(self._X.shape[0] * self.width * self.n_classes * len(active)):
                self._choose_basis(active)
                found = self._evaluate(active)
            # Short vectors are quicker on one thread, and on a busy machine many times so.
            with self._arrays.threads(_PASSES_OVER_VECTORS * self.n_classes * self.width):
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
            states.append(FoldPath(fold, list(values), CurvaturePairs(memory, self._arrays), start, 1.0 / scale))
        return states

    def _start(self, fold: int) -> Array:
        """Return the optimum without weights: intercepts at the log of the training rows' class shares."""
        arrays, train = self._arrays, self._fold != fold
        share = arrays.class_weights(self._y[train], self._weight[train], self.n_classes)
        log_share = arrays.log(arrays.at_least(share / share.sum(), 1e-6))
        start = arrays.zeros(self.n_classes, self.width + 1)
        start[:, -1] = log_share - log_share.mean()
        return start

    def _resume(self, point: PathPoint, scale: Array) -> Array:
        """Turn a solution back into the path's own centred and scaled parameters."""
        coef = self._in_span(self._arrays.exact(point.coef))
        intercept = self._arrays.exact(point.intercept) + coef @ self._arrays.exact(self._mean)
        if self._origin is not None:
            coef = coef - self._origin
        return self._arrays.join_last([coef * scale, intercept[:, None]])

    def _scale(self, fold: int) -> Array:
        """Return the standard deviations of the path's training rows, or ones; constant features keep one."""
        if not self.standardise:
            return self._arrays.zeros(self.width) + 1.0
        arrays = self._arrays
        sums, squares, total = arrays.zeros(self.width), arrays.zeros(self.width), 0.0
        for rows in self._blocks(8):
            weight = arrays.where(self._fold[rows] == fold, 0.0, self._weight[rows])
            centred = self._X[rows] - self._mean
            sums += arrays.exact(weight @ centred)
            squares += arrays.exact(weight @ (centred * centred))
            total += float(weight.sum())
        deviation = arrays.at_least(squares / total - (sums / total) ** 2, 0.0) ** 0.5
        floor = 1e-6 * float(deviation.max())
        return arrays.where(deviation > floor, deviation, 1.0)

    def _preconditioner_at(self, theta: Array) -> Preconditioner:
        assert self._sample is not None
        return self._sample.preconditioner(theta)

    def _choose_basis(self, paths: Sequence[FoldPath]) -> None:
        """Rotate everything to the eigenvectors of XᵀX, rows weighted by how uncertain the leading path is on them."""
        leader = max(paths, key=lambda path: path.c)
        band = math.floor(math.log(leader.c) / math.log(_BASIS_BAND))
        # Only ever upwards: when the leader has finished, the others keep the basis they have.
        known = self._basis_band is not None and (self._keeps_basis or band <= self._basis_band)
        if known or self._keeps_features:
            return
        self._basis_band = band
        assert self._sample is not None
        rotation = self._sample.rotation(leader.trial)
        self._basis = self._basis @ rotation
        self._sample.rotate(rotation)
        for path in paths:
            path.rotate(rotation, self._arrays)
        # A pass takes the weights of all paths to the basis and back; once for all, the rows are taken there.
        work = 2 * _EXPECTED_PASSES * self.n_classes * len(paths)
        if self._keeps_basis and not self.standardise and work >= len(self._X):
            self._rotate_data()

    def _rotate_data(self) -> None:
        """Make the basis that of the data, for good."""
        rotation = self._arrays.of(self._basis)
        self._X, self._mean = self._X @ rotation, self._mean @ rotation
        self._span = self._basis if self._span is None else self._span @ self._basis
        if self._origin is not None:
            self._origin = self._origin @ self._basis
        self._keeps_features = True

    def _coefficients(self, theta: Array, inverse_scale: Array) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
        """Return weights (K, D) and intercepts (K,) in the units of the data."""
        weights = (theta[:, :-1] if self._keeps_features else theta[:, :-1] @ self._basis.T) * inverse_scale
        whole = weights if self._origin is None else weights + self._origin
        intercept = theta[:, -1] - whole @ self._arrays.exact(self._mean)
        if self._span is not None:
            weights = weights @ self._span.T
        coef = self._arrays.to_numpy(self._arrays.of(weights))
        # Outside the span of the rows the weights stay at the origin.
        coef = coef if self._whole_origin is None else coef + self._whole_origin
        return coef, self._arrays.to_numpy(intercept)
