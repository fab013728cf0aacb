"""The regularisation path of multinomial logistic regression: every C and every fold in one stream of passes.

One *lane* is one training set (a fold, or all rows) that walks up its values of C, from strong to weak
regularisation. In each pass over the data every lane that is still walking has one trial point evaluated,
so one matrix product serves all of them, and no lane waits for another. What makes the walk short:

- L-BFGS works around a Kronecker-factored preconditioner: the eigenvectors of the curvature-weighted XᵀX on one
  side, those of the mean softmax Hessian of the classes on the other, and the Hessian's own diagonal in that basis.
- The next C starts from the last solutions, extrapolated in log C.
- L-BFGS keeps its curvature pairs when C changes. The objective is ``C L(θ) + ½‖W‖²``, so a pair measured on L alone
  is exact for every C.

Two measures of how far a point is from the optimum are reported. ``gap_bound`` is a certificate: by Fenchel-Young, the
duality gap at a point whose intercept gradient is zero is ``½‖∇_W‖²``; what the intercepts can still gain is added. It
is loose where C is large. ``gap_estimate``
is half the squared Newton decrement ``½ gᵀH⁻¹g`` under the preconditioner, times a safety factor that grows with the
passes spent on one C; the stopping rule takes the smaller one.

Axes: N rows, D features, K classes, L lanes, R rows of one block.

References
----------
Böhning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in limited memory methods",
Math. Programming 63 (1994).
George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
Shalev-Shwartz and Zhang, "Stochastic dual coordinate ascent", JMLR 14 (2013), for the dual.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.choice import HeldOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

ALL_ROWS = -1
"""Fold number of the lane that trains on every row."""

_BLOCK_BYTES = 5 << 20
"""A block of rows is read twice, forward and backward; this many bytes of it stay in the processor's cache."""

_CUDA_BLOCK_BYTES = 1 << 30

_ARMIJO = 1e-4
_NOISE = 1e-8
"""Relative error of an objective summed from float32 scores."""
_BACKTRACK = 0.4
_SHORTEST_STEP = 1e-3

_SAMPLE_ROWS = 4096
_SAMPLE_ROWS_PER_FEATURE = 8
"""The preconditioner is built on this many rows: enough for its eigenvectors, at the cost of a pass or two."""

_WIDEST_EIGENBASIS = 4096
"""Above this width an eigendecomposition costs more than the passes it saves, and the basis is the features' own."""

_SHARED_WORK = 200_000_000
"""Multiplications from which a pass is worth sharing between threads."""

_BAND = 10.0
"""The preconditioner's diagonal serves this factor of C."""

_REBUILD_DIAGONAL = frozenset({4, 8, 16, 32, 64, 128})
"""Passes spent on one C after which it is measured anew: far from the start, other rows are the uncertain ones."""

_BASIS_BAND = 100.0
"""Its feature basis, which costs an eigendecomposition, serves this factor of C."""

_SAFETY, _SAFETY_PER_PASS, _MOST_SAFETY = 5.0, 3.0, 60.0
"""Times half the squared Newton decrement under the preconditioner, for the gap. The true gap was up to 3 times that at
the first pass of a C, 18 times at the fifth, 58 times in the end: what is left lies in ever flatter directions, which
the preconditioner takes for steeper than they are."""

_LEAST_SCALE = 0.05
_SCALE_PAIRS = 10
"""Curvature pairs whose median scales the preconditioner."""

_EXTRAPOLATE = 3
"""How many of the last solutions the next start is drawn through."""

_PAIR_BYTES = 1 << 30
"""Curvature pairs of all lanes together take at most this."""

_LEAST_PAIRS, _QUICK_BYTES = 8, 32 << 20
"""Steps of one lane that take more bytes than this cost more, read on each pass, than the passes they save; so many
are kept all the same."""

_DOUBLE_VALUES = 4_000_000
"""Up to this many feature values everything is computed in float64: it costs little there, and large values of C, whose
optimum lies beyond float32's rounding, are then solved too."""

_MOST_CLASS_DIRECTIONS = 256
_ROWS_OF_MANY_CLASSES = 2048
"""With more classes each class is a direction of its own: their Hessian is then nearly diagonal, and its eigenvectors
would cost more than all passes. The features' share of the curvature is the same for all of them, from so many rows."""


@dataclass(frozen=True)
class PathPoint:
    """The solution at one value of C of one lane.

    Attributes
    ----------
    C : float
        Inverse strength of the L2 penalty, as in scikit-learn.
    coef : ndarray of shape (K, D), float32 or float64
        Weights in the units of the data given.
    intercept : ndarray of shape (K,), float64
        Unpenalised intercepts, for data that are not centred.
    objective : float
        ``C Σ w_i loss_i + ½‖W‖²``, accumulated in float64.
    gradient_norm : float
        Euclidean norm of the gradient of ``objective`` by weights and intercepts.
    gap_estimate : float
        Estimate of ``(objective − optimum) / optimum``, on the safe side.
    gap_bound : float
        Upper bound of the same, proven but for the part of the intercepts, which is an estimate.
    converged : bool
        Whether the smaller of the two reached the tolerance.
    passes : int
        Passes over the data that this value of C took.
    held_out : HeldOut
        What it says of the rows of the fold, in the order of the data.
    """

    C: float
    coef: NDArray[np.floating]
    intercept: NDArray[np.float64]
    objective: float
    gradient_norm: float
    gap_estimate: float
    gap_bound: float
    converged: bool
    passes: int
    held_out: HeldOut


class _Pairs:
    """Curvature pairs of the loss alone, oldest first: exact for every C, where ``y = C y_loss + s`` (weights only).

    They are rows of arrays with room for twice as many, so that the oldest drop out by moving a view. Their inner
    products are kept beside them: a step then costs two products with the new pair alone, however many are known.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin = self._end = self._known = 0
        self._served: tuple[_Preconditioner, float] | None = None

    def add(self, step: torch.Tensor, change: torch.Tensor) -> None:
        """Keep a pair whose curvature stands clear of rounding."""
        product = float((step * change).sum())
        size = float(step.norm() * change.norm())
        if not (math.isfinite(product) and product > 1e-8 * size):
            return
        if not self._end:
            self._make_room(step)
        elif self._end == 2 * self._most:
            self._move_to_front()
        new = self._end
        self._end += 1
        self._begin = max(self._begin, self._end - self._most)
        kept = slice(self._begin, self._end)
        self._s[new], self._y[new] = step, change
        s, y = self._s[kept].flatten(1), self._y[kept].flatten(1)
        weights = step.clone()
        weights[:, -1] = 0.0
        self._s_y[kept, new] = s @ change.flatten()
        self._s_y[new, kept] = y @ step.flatten()
        self._s_s[kept, new] = self._s_s[new, kept] = s @ weights.flatten()

    def forget(self) -> None:
        """Drop all pairs."""
        self._begin = self._end = self._known = 0

    def turn(self, rotation: torch.Tensor) -> None:
        """Express all pairs in another feature basis, which leaves their inner products as they are."""
        kept = slice(self._begin, self._end)
        for vectors in (self._s, self._y) if self._end else ():
            vectors[kept, :, :-1] = vectors[kept, :, :-1] @ rotation
        self._served = None

    def solve(self, gradient: torch.Tensor, c: float, preconditioner: _Preconditioner) -> torch.Tensor:
        """Return the L-BFGS inverse Hessian times ``gradient`` (Byrd, Nocedal and Schnabel 1994, equation 3.1).

        Along the steps taken the preconditioner underestimates the curvature, by 2 to 20 times, and full steps would
        be refused again and again: it is scaled by what the last pairs say of it.
        """
        import torch

        first = preconditioner.solve(gradient[None], c)[0]
        if self._begin == self._end:
            return first
        self._serve(preconditioner, c)
        kept = slice(self._begin, self._end)
        s, h0_y = self._s[kept].flatten(1), self._h0_y[kept].flatten(1)
        s_y = c * self._s_y[kept, kept] + self._s_s[kept, kept]
        y_h0_y = self._y_h0_y[kept, kept]
        ratios = (s_y.diagonal() / y_h0_y.diagonal())[-_SCALE_PAIRS:]
        scale = ratios.median().clamp(_LEAST_SCALE, 1.0)
        upper = torch.triu(s_y)
        middle = torch.diag(s_y.diagonal()) + scale * y_h0_y
        g = gradient.flatten()
        solved = torch.linalg.solve_triangular(upper, (s @ g)[:, None], upper=True)
        right = middle @ solved - scale * (h0_y @ g)[:, None]
        left = torch.linalg.solve_triangular(upper.T, right, upper=False)
        correction: torch.Tensor = s.T @ left - scale * (h0_y.T @ solved)
        return scale * first + correction[:, 0].view_as(gradient)

    def _serve(self, preconditioner: _Preconditioner, c: float) -> None:
        """Bring the products with the preconditioner up to date: of new pairs, or of all where it or C has changed."""
        if self._served is None or self._served[0] is not preconditioner or self._served[1] != c:
            self._served, self._known = (preconditioner, c), self._begin
        new, kept = slice(max(self._known, self._begin), self._end), slice(self._begin, self._end)
        if new.start == new.stop:
            return
        y = c * self._y[new]
        y[:, :, :-1] += self._s[new][:, :, :-1]
        self._h0_y[new] = preconditioner.solve(y, c)
        products = self._h0_y[kept].flatten(1) @ y.flatten(1).T
        self._y_h0_y[kept, new], self._y_h0_y[new, kept] = products, products.T
        self._known = self._end

    def _make_room(self, like: torch.Tensor) -> None:
        room = 2 * self._most
        self._s, self._y, self._h0_y = (like.new_empty(room, *like.shape) for _ in range(3))
        self._s_y, self._s_s, self._y_h0_y = (like.new_zeros(room, room) for _ in range(3))

    def _move_to_front(self) -> None:
        count, kept = self._end - self._begin, slice(self._begin, self._end)
        for vectors in (self._s, self._y, self._h0_y):
            vectors[:count] = vectors[kept].clone()
        for products in (self._s_y, self._s_s, self._y_h0_y):
            products[:count, :count] = products[kept, kept].clone()
        self._known = max(self._known - self._begin, 0)
        self._begin, self._end = 0, count


@dataclass
class _Value:
    """What one pass says about one point of one lane: the loss, its gradient and the held-out scores."""

    theta: torch.Tensor
    loss: float
    gradient: torch.Tensor
    held_out: torch.Tensor
    """(3, rows of the fold): the fields of `HeldOut`."""

    def objective(self, c: float) -> float:
        return c * self.loss + 0.5 * float(self.theta[:, :-1].square().sum())

    def objective_gradient(self, c: float) -> torch.Tensor:
        gradient = c * self.gradient
        gradient[:, :-1] += self.theta[:, :-1]
        return gradient


@dataclass(frozen=True)
class _Preconditioner:
    """The diagonal of the loss's Hessian in the basis of (K, K) class directions by feature directions.

    ``class_basis`` None stands for the classes themselves.
    """

    class_basis: torch.Tensor | None
    curvature: torch.Tensor

    def solve(self, vectors: torch.Tensor, c: float) -> torch.Tensor:
        """Divide ``vectors`` (n, K, D + 1) by ``c × curvature + 1``; the last column, the intercepts, has no + 1."""
        diagonal = c * self.curvature
        diagonal[:, :-1] += 1.0
        if self.class_basis is None:
            return vectors / diagonal
        return self.class_basis @ ((self.class_basis.T @ vectors) / diagonal)


@contextlib.contextmanager
def threads_for(work: int) -> Iterator[None]:
    """Use one thread where the work (multiplications) is too small to share."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if work >= _SHARED_WORK else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """Wrap an array that is only read, also one that must not be written."""
    import torch

    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _turned(vector: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    out = vector.clone()
    out[:, :-1] = vector[:, :-1] @ rotation
    return out


@dataclass
class _Lane:
    """The state of one walk."""

    fold: int
    values: list[float]
    pairs: _Pairs
    trial: torch.Tensor
    inverse_scale: torch.Tensor
    preconditioner: _Preconditioner | None = None
    band: int | None = None
    position: int = 0
    passes: int = 0
    here: _Value | None = None
    direction: torch.Tensor | None = None
    step: float = 1.0
    stalled: bool = False
    solutions: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    points: list[PathPoint] = field(default_factory=list)

    @property
    def c(self) -> float:
        return self.values[self.position]

    def turn(self, rotation: torch.Tensor) -> None:
        """Express everything in another feature basis."""
        self.trial = _turned(self.trial, rotation)
        if self.direction is not None:
            self.direction = _turned(self.direction, rotation)
        if self.here is not None:
            here = self.here
            self.here = replace(here, theta=_turned(here.theta, rotation), gradient=_turned(here.gradient, rotation))
        self.solutions = [(at, _turned(theta, rotation)) for at, theta in self.solutions]
        self.pairs.turn(rotation)
        self.preconditioner = None


class SoftmaxPath:
    """Data prepared once for any number of walks.

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
        The fold whose lane holds the row out.
    standardise : bool
        Penalise the weights of features in units of their standard deviation over the lane's own training rows. The
        solution is returned in the units of X all the same.
    device : str
        ``"cpu"`` or ``"cuda"``.
    memory : int
        Curvature pairs a lane keeps at most.
    """

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
        import torch

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
        import torch

        n_rows, width = self._X.shape
        self._total_weight = float(self._weight.sum(dtype=torch.float64))
        mean = torch.zeros(width, dtype=torch.float64, device=self.device)
        for rows in self._blocks(8):
            mean += (self._weight[rows] @ self._X[rows]).double()
        self._mean = (mean / self._total_weight).to(self._dtype)
        size = min(n_rows, max(_SAMPLE_ROWS_PER_FEATURE * width, _SAMPLE_ROWS))
        chosen = np.random.default_rng(0).permutation(n_rows)[:size]
        chosen.sort()
        self._sample = torch.from_numpy(chosen).to(self.device)

    def _start_basis(self, inverse_scale: torch.Tensor) -> None:
        """Take the features themselves as basis, and fetch the sample of rows."""
        import torch

        weight = self._weight[self._sample]
        self._basis = torch.eye(self.width, dtype=torch.float64, device=self.device)
        self._basis_band: int | None = None
        self._sample_rows = (self._X[self._sample] - self._mean) * inverse_scale.to(self._dtype)
        self._sample_squares = self._sample_rows.square()
        self._sample_weight = weight * (self._total_weight / float(weight.sum()))

    def _blocks(self, times: int = 1) -> list[slice]:
        n_rows, size = self._X.shape[0], self._block * times
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]

    # --- one pass over the data ----------------------------------------------------------------------------

    def _evaluate(self, lanes: Sequence[_Lane]) -> list[_Value]:
        """Loss, gradient and held-out scores of every lane's trial point, in one read of X."""
        import torch

        n_lanes, k, d = len(lanes), self.n_classes, self.width
        dtype, device = self._dtype, self.device
        theta = torch.stack([lane.trial for lane in lanes])
        inverse_scale = torch.stack([lane.inverse_scale for lane in lanes])[:, None, :].to(dtype)
        basis = self._basis.to(dtype)
        weights = (theta[:, :, :d].reshape(n_lanes * k, d).to(dtype) @ basis.T).view(n_lanes, k, d)
        weights = (weights * inverse_scale).view(n_lanes * k, d)
        # X is never centred in memory: the mean goes into the intercept here and comes out of the gradient below.
        bias = theta[:, :, d].reshape(-1).to(dtype) - weights @ self._mean
        folds = torch.tensor([lane.fold for lane in lanes], device=device)[:, None]
        gradient = torch.zeros(n_lanes * k, d, dtype=dtype, device=device)
        gradient_bias = torch.zeros(n_lanes * k, dtype=torch.float64, device=device)
        has_folds = any(lane.fold != ALL_ROWS for lane in lanes)
        held_out = torch.zeros(3, n_lanes, len(self._X) if has_folds else 0, dtype=dtype, device=device)
        loss = torch.zeros(n_lanes, dtype=torch.float64, device=device)
        for rows in self._blocks():
            block, truth = self._X[rows], self._y[rows]
            size = len(truth)
            scores = torch.addmm(bias[:, None], weights, block.T).view(n_lanes, k, size)
            log_p = torch.log_softmax(scores, dim=1)
            index = truth.expand(n_lanes, 1, size)
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
            flat = residual.view(n_lanes * k, size)
            gradient.addmm_(flat, block)
            gradient_bias += flat.sum(1, dtype=torch.float64)
        gradient -= gradient_bias.to(dtype)[:, None] * self._mean
        scaled = (gradient.view(n_lanes, k, d) * inverse_scale).view(n_lanes * k, d) @ basis
        full = torch.cat([scaled.double().view(n_lanes, k, d), gradient_bias.view(n_lanes, k, 1)], dim=2)
        losses = loss.cpu().tolist()
        return [
            _Value(lane.trial, losses[i], full[i], held_out[:, i, self._rows_of(lane.fold)])
            for i, lane in enumerate(lanes)
        ]

    def _rows_of(self, fold: int) -> torch.Tensor:
        """Return the rows that a fold holds out."""
        import torch

        if fold not in self._held_out:
            self._held_out[fold] = torch.nonzero(self._fold == fold)[:, 0]
        return self._held_out[fold]

    # --- the walk ------------------------------------------------------------------------------------------

    def solve(
        self,
        lanes: Sequence[tuple[int, Sequence[float]]],
        *,
        starts: Sequence[PathPoint] | None = None,
        stop: Callable[[list[list[PathPoint]]], bool] | None = None,
        tol: float = 1e-4,
        max_passes: int = 500,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[PathPoint]]:
        """Walk every lane up its values of C.

        Parameters
        ----------
        lanes : sequence of (fold, values of C)
            The fold to hold out (``ALL_ROWS`` for none) and ascending values of C.
        starts : sequence of PathPoint, optional
            Where each lane starts; else at the class shares and no weights.
        stop : callable, optional
            Given the points of all lanes after every pass; true ends all walks.
        tol : float
            Relative gap to the optimum at which a value of C counts as solved.
        max_passes : int
            Passes after which one value of C is given up, reported as not converged.
        progress : callable, optional
            Called with (solved, all) pairs of lane and C.

        Returns
        -------
        list of list of PathPoint
            For each lane, one point for each of its values of C (fewer where ``stop`` ended the walk).
        """
        size = 8 * self.n_classes * (self.width + 1)
        few, most = max(_LEAST_PAIRS, _QUICK_BYTES // size), max(3, _PAIR_BYTES // (6 * size * len(lanes)))
        memory = min(self.memory, few, most)
        states = []
        for number, (fold, values) in enumerate(lanes):
            if list(values) != sorted(values) or not values or min(values) <= 0:
                raise ValueError(f"values of C must be positive and ascending, got {list(values)}")
            scale = self._scale(fold)
            start = self._start(fold) if starts is None else self._resume(starts[number], scale)
            states.append(_Lane(fold, list(values), _Pairs(memory), start, 1.0 / scale))
        total = sum(len(state.values) for state in states)
        walking = list(states)
        self._start_basis(states[0].inverse_scale)
        while walking:
            with threads_for(self._X.shape[0] * self.width * self.n_classes * len(walking)):
                self._choose_basis(walking)
                found = self._evaluate(walking)
            # Vectors this short are quicker on one thread, and on a busy machine many times so.
            with threads_for(1):
                for lane, value in zip(walking, found, strict=True):
                    self._advance(lane, value, tol, max_passes)
            walking = [lane for lane in walking if lane.position < len(lane.values)]
            if stop is not None and stop([lane.points for lane in states]):
                walking = []
            if progress is not None:
                progress(sum(lane.position for lane in states), total)
        return [state.points for state in states]

    def _start(self, fold: int) -> torch.Tensor:
        """Return the optimum without weights: intercepts at the log of the training rows' class shares."""
        import torch

        start = torch.zeros(self.n_classes, self.width + 1, dtype=torch.float64, device=self.device)
        train = self._fold != fold
        share = torch.zeros(self.n_classes, dtype=torch.float64, device=self.device)
        share.index_add_(0, self._y[train], self._weight[train].double())
        log_share = (share / share.sum()).clamp_min(1e-6).log()
        start[:, -1] = log_share - log_share.mean()
        return start

    def _resume(self, point: PathPoint, scale: torch.Tensor) -> torch.Tensor:
        """Turn a solution back into the lane's own centred and scaled parameters."""
        import torch

        coef = torch.from_numpy(point.coef).double().to(self.device)
        if self._span is not None:
            coef = coef @ self._span
        intercept = torch.from_numpy(point.intercept).to(self.device) + coef @ self._mean.double()
        return torch.cat([coef * scale, intercept[:, None]], dim=1)

    def _scale(self, fold: int) -> torch.Tensor:
        """Return the standard deviations of the lane's training rows, or ones; constant features keep one."""
        import torch

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

    def _advance(self, lane: _Lane, value: _Value, tol: float, max_passes: int) -> None:
        """Judge the trial point, then put the next one into the lane."""
        lane.passes += 1
        here = lane.here
        if here is not None:
            lane.pairs.add(value.theta - here.theta, value.gradient - here.gradient)
        given_up = lane.passes >= max_passes
        if here is None or self._accept(lane, here, value):
            lane.here = here = value
            lane.step = 1.0
        else:
            lane.step *= _BACKTRACK
            if lane.step < _SHORTEST_STEP:
                # Where C is large, rounding spoils pairs of short steps, and directions with them: once more without.
                given_up = given_up or lane.stalled
                lane.stalled, lane.step = True, 1.0
                lane.pairs.forget()
        while True:
            gradient = here.objective_gradient(lane.c)
            preconditioner = self._preconditioner(lane, here)
            objective = here.objective(lane.c)
            safety = min(_SAFETY + _SAFETY_PER_PASS * (lane.passes - 1), _MOST_SAFETY)
            decrements = gradient * preconditioner.solve(gradient[None], lane.c)[0]
            estimate = safety * 0.5 * float(decrements.sum()) / objective
            # The bound holds for intercepts at their own optimum: how far these are from it is estimated.
            of_intercepts = safety * float(decrements[:, -1].sum())
            bound = 0.5 * (float(gradient[:, :-1].square().sum()) + of_intercepts) / objective
            solved = min(estimate, bound) <= tol
            if not (solved or given_up):
                break
            self._record(lane, here, gradient, estimate, bound, converged=solved)
            if lane.position == len(lane.values):
                return
            given_up = False
            lane.step = 1.0
            prediction = self._predict(lane)
            if prediction is not None:
                lane.direction = prediction - here.theta
                lane.trial = prediction
                return
        # Refused trial points have taught the curvature too: the direction is always found anew.
        lane.direction = -lane.pairs.solve(gradient, lane.c, preconditioner)
        lane.trial = here.theta + lane.step * lane.direction

    def _accept(self, lane: _Lane, here: _Value, value: _Value) -> bool:
        assert lane.direction is not None
        before, after = here.objective(lane.c), value.objective(lane.c)
        slope = float((here.objective_gradient(lane.c) * lane.direction).sum())
        return math.isfinite(after) and after <= before + _ARMIJO * lane.step * min(slope, 0.0) + _NOISE * before

    def _preconditioner(self, lane: _Lane, here: _Value) -> _Preconditioner:
        """Return the lane's, made anew where C or the point has moved far."""
        band = math.floor(math.log(lane.c) / math.log(_BAND))
        if lane.preconditioner is None or lane.band != band or lane.passes in _REBUILD_DIAGONAL:
            lane.preconditioner, lane.band = self._build_preconditioner(here.theta), band
        return lane.preconditioner

    def _build_preconditioner(self, theta: torch.Tensor) -> _Preconditioner:
        """Measure the Hessian's diagonal at ``theta`` on the sample of rows."""
        import torch

        rows, weight = self._sample_rows, self._sample_weight
        many = self.n_classes > _MOST_CLASS_DIRECTIONS
        if many:
            every = -(-len(rows) // _ROWS_OF_MANY_CLASSES)
            rows, weight = rows[::every], weight[::every] * every
        p = torch.softmax(rows @ theta[:, :-1].T.to(self._dtype) + theta[:, -1].to(self._dtype), dim=1)
        class_basis = None
        curvature = torch.empty(self.n_classes, self.width + 1, dtype=torch.float64, device=self.device)
        if not many:
            weighted = p * weight[:, None]
            classes = torch.diag(weighted.sum(0)) - weighted.T @ p
            _, class_basis = torch.linalg.eigh(classes.double())
            u = class_basis.to(self._dtype)
            # u_kᵀ (diag(p) − ppᵀ) u_k of every row: how uncertain the row is along class direction k.
            uncertainty = (weighted @ u.square() - weight[:, None] * (p @ u).square()).clamp_min_(0.0)
            curvature[:, :-1] = uncertainty.T @ self._sample_squares
        else:
            uncertainty = (p - p.square()).mul_(weight[:, None])
            of_rows = uncertainty.sum(1)
            spread = of_rows @ rows.square() / of_rows.sum().clamp_min(1e-30)
            curvature[:, :-1] = uncertainty.sum(0)[:, None] * spread
        # The shared direction of the intercepts has no curvature at all, and no gradient either.
        least = 1e-3 * self._total_weight / self.n_classes
        curvature[:, -1] = uncertainty.sum(0).clamp_min(least)
        return _Preconditioner(class_basis, curvature)

    def _choose_basis(self, lanes: Sequence[_Lane]) -> None:
        """Turn everything to the eigenvectors of XᵀX, rows weighted by how uncertain the first lane is about them."""
        import torch

        leader = max(lanes, key=lambda lane: lane.c)
        band = math.floor(math.log(leader.c) / math.log(_BASIS_BAND))
        # Only ever upwards: when the leader has finished, those behind it keep the basis they have.
        known = self._basis_band is not None and band <= self._basis_band
        if known or self.width > _WIDEST_EIGENBASIS:
            return
        self._basis_band = band
        theta = leader.trial
        rows = self._sample_rows
        p = torch.softmax(rows @ theta[:, :-1].T.to(self._dtype) + theta[:, -1].to(self._dtype), dim=1)
        uncertainty = self._sample_weight * (1.0 - p.square().sum(1))
        moments = rows.T @ (rows * uncertainty[:, None])
        _, rotation = torch.linalg.eigh(moments.double())
        self._basis = self._basis @ rotation
        self._sample_rows = rows @ rotation.to(self._dtype)
        self._sample_squares = self._sample_rows.square()
        for lane in lanes:
            lane.turn(rotation)

    def _predict(self, lane: _Lane) -> torch.Tensor | None:
        """Extrapolate the last solutions in log C to the lane's new C (Lagrange)."""
        known = lane.solutions[-_EXTRAPOLATE:]
        if len(known) < 2:
            return None
        x = math.log(lane.c)
        out = None
        for i, (at, theta) in enumerate(known):
            factor = 1.0
            for j, (other, _) in enumerate(known):
                if i != j:
                    factor *= (x - other) / (at - other)
            out = theta * factor if out is None else out.add_(theta, alpha=factor)
        return out

    def _record(
        self,
        lane: _Lane,
        here: _Value,
        gradient: torch.Tensor,
        estimate: float,
        bound: float,
        *,
        converged: bool,
    ) -> None:
        weights = (here.theta[:, :-1] @ self._basis.T) * lane.inverse_scale
        intercept = here.theta[:, -1] - weights @ self._mean.double()
        if self._span is not None:
            weights = weights @ self._span.T
        lane.points.append(
            PathPoint(
                C=lane.c,
                coef=weights.to(self._dtype).cpu().numpy(),
                intercept=intercept.cpu().numpy(),
                objective=here.objective(lane.c),
                gradient_norm=float(gradient.square().sum().sqrt()),
                gap_estimate=estimate,
                gap_bound=bound,
                converged=converged,
                passes=lane.passes,
                held_out=HeldOut(*here.held_out.double().cpu().numpy()),
            )
        )
        lane.solutions = [*lane.solutions[-2:], (math.log(lane.c), here.theta)]
        lane.position += 1
        lane.passes, lane.stalled = 0, False
