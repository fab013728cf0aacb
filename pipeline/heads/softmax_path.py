"""The regularisation path of multinomial logistic regression: every C and every fold in one stream of passes.

One *lane* is one training set (a fold, or all rows) that walks up its values of C, from strong to weak
regularisation. In each pass over the data every lane that is still walking has one trial point evaluated,
so one matrix product serves all of them, and no lane waits for another. What makes the walk short:

- L-BFGS works around a Kronecker-factored preconditioner: the eigenvectors of the curvature-weighted XᵀX on one side, those of the
  mean softmax Hessian of the classes on the other, and the Hessian's own diagonal in that basis.
- The next C starts from the last solutions, extrapolated in log C.
- L-BFGS keeps its curvature pairs when C changes. The objective is ``C L(θ) + ½‖W‖²``, so a pair measured on L alone
  is exact for every C.

Two measures of how far a point is from the optimum are reported. ``gap_bound`` is a certificate: by Fenchel-Young, the
duality gap at a point whose intercept gradient is zero is ``½‖∇_W‖²``. It is loose where C is large. ``gap_estimate`` is half
the squared Newton decrement ``½ gᵀH⁻¹g`` under the preconditioner, times a safety factor; the stopping rule takes the
smaller one.

Axes: N rows, D features, K classes, L lanes, R rows of one block.

References
----------
Böhning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
Nocedal and Wright, "Numerical Optimization", 2nd ed., algorithm 7.4 (L-BFGS two-loop recursion).
George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
Shalev-Shwartz and Zhang, "Stochastic dual coordinate ascent", JMLR 14 (2013), for the dual.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

ALL_ROWS = -1
"""Fold number of the lane that trains on every row."""

_BLOCK_BYTES = 5 << 20
"""A block of rows is read twice, forward and backward; this many bytes of it stay in the processor's cache."""

_CUDA_BLOCK_BYTES = 1 << 30

_ARMIJO = 1e-4
_BACKTRACK = 0.4
_SHORTEST_STEP = 1e-6

_SAMPLE_ROWS = 4096
_SAMPLE_ROWS_PER_FEATURE = 8
"""The preconditioner is built on this many rows: enough for its eigenvectors, few enough to cost less than a pass or two."""

_WIDEST_EIGENBASIS = 4096
"""Above this width an eigendecomposition costs more than the passes it saves, and the basis is the features' own."""

_BAND = 10.0
"""A preconditioner serves this factor of C."""

_SAFETY = 20.0
"""Half the squared Newton decrement under the preconditioner was 2 to 40 times below the true gap where measured."""

_EXTRAPOLATE = 3
"""How many of the last solutions the next start is drawn through."""

_PAIR_BYTES = 1 << 30
"""Curvature pairs of all lanes together take at most this."""


@dataclass(frozen=True)
class PathPoint:
    """The solution at one value of C of one lane.

    Attributes
    ----------
    C : float
        Inverse strength of the L2 penalty, as in scikit-learn.
    coef : ndarray of shape (K, D), float32
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
        Proven upper bound of the same, up to the intercepts' own gradient.
    converged : bool
        Whether the smaller of the two reached the tolerance.
    passes : int
        Passes over the data that this value of C took.
    held_out_loss, held_out_accuracy : float
        Mean log loss and accuracy on the lane's held-out rows; NaN for the lane without any.
    """

    C: float
    coef: NDArray[np.float32]
    intercept: NDArray[np.float64]
    objective: float
    gradient_norm: float
    gap_estimate: float
    gap_bound: float
    converged: bool
    passes: int
    held_out_loss: float
    held_out_accuracy: float


@dataclass
class _Pair:
    """One curvature pair of the loss alone: exact for every C."""

    step: torch.Tensor
    change: torch.Tensor
    step_change: float
    step_step: float


@dataclass
class _Value:
    """What one pass says about one point of one lane: the loss, its gradient and the held-out scores."""

    theta: torch.Tensor
    loss: float
    gradient: torch.Tensor
    held_out_loss: float
    held_out_correct: float

    def objective(self, c: float) -> float:
        return c * self.loss + 0.5 * float(self.theta[:, :-1].square().sum())

    def objective_gradient(self, c: float) -> torch.Tensor:
        gradient = c * self.gradient
        gradient[:, :-1] += self.theta[:, :-1]
        return gradient


@dataclass(frozen=True)
class _Preconditioner:
    """The Hessian's diagonal in a Kronecker basis: (K, K) class directions by (D, D) feature directions."""

    class_basis: torch.Tensor
    feature_basis: torch.Tensor | None
    curvature: torch.Tensor
    intercept_curvature: torch.Tensor

    def solve(self, gradient: torch.Tensor, c: float) -> torch.Tensor:
        """Divide ``gradient`` (K, D + 1) by ``c × curvature + 1`` in the basis."""
        turned = self.class_basis.T @ gradient
        weights = turned[:, :-1]
        if self.feature_basis is None:
            weights = weights / (c * self.curvature + 1.0)
        else:
            inside = (weights.float() @ self.feature_basis).double() / (c * self.curvature + 1.0)
            weights = (inside.float() @ self.feature_basis.T).double()
        turned[:, :-1] = weights
        turned[:, -1] /= c * self.intercept_curvature
        return self.class_basis @ turned


@dataclass
class _Lane:
    """The state of one walk."""

    fold: int
    values: list[float]
    pairs: deque[_Pair]
    trial: torch.Tensor
    inverse_scale: torch.Tensor
    position: int = 0
    passes: int = 0
    here: _Value | None = None
    direction: torch.Tensor | None = None
    step: float = 1.0
    solutions: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    points: list[PathPoint] = field(default_factory=list)

    @property
    def c(self) -> float:
        return self.values[self.position]


class SoftmaxPath:
    """Data prepared once for any number of walks.

    Parameters
    ----------
    X : ndarray of shape (N, D), float32
        Finite features. Read, never copied or changed, on the CPU.
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
        memory: int = 30,
    ) -> None:
        import torch

        self.n_classes = n_classes
        self.device = torch.device(device)
        self.memory = memory
        self.standardise = standardise
        self._X = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32)).to(self.device)
        n_rows, width = self._X.shape
        self.width = width
        self._y = torch.from_numpy(np.asarray(y, dtype=np.int64)).to(self.device)
        weight = np.ones(n_rows) if row_weight is None else np.asarray(row_weight)
        self._weight = torch.from_numpy(weight.astype(np.float32)).to(self.device)
        folds = np.full(n_rows, ALL_ROWS - 1) if fold is None else np.asarray(fold)
        self._fold = torch.from_numpy(folds.astype(np.int64)).to(self.device)
        budget = _BLOCK_BYTES if self.device.type == "cpu" else _CUDA_BLOCK_BYTES
        self._block = max(64, min(n_rows, budget // (4 * width)))
        self._prepare()

    def _prepare(self) -> None:
        """Find the weighted mean, and the rows on which the preconditioners are built."""
        import torch

        n_rows, width = self._X.shape
        self._total_weight = float(self._weight.sum(dtype=torch.float64))
        mean = torch.zeros(width, dtype=torch.float64, device=self.device)
        for rows in self._blocks(8):
            mean += (self._weight[rows] @ self._X[rows]).double()
        self._mean = (mean / self._total_weight).float()
        size = min(n_rows, max(_SAMPLE_ROWS_PER_FEATURE * width, _SAMPLE_ROWS))
        chosen = np.random.default_rng(0).permutation(n_rows)[:size]
        chosen.sort()
        self._sample = torch.from_numpy(chosen).to(self.device)
        self._preconditioners: dict[int, _Preconditioner] = {}

    def _blocks(self, times: int = 1) -> list[slice]:
        n_rows, size = self._X.shape[0], self._block * times
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]

    # --- one pass over the data ----------------------------------------------------------------------------

    def _evaluate(self, lanes: Sequence[_Lane]) -> list[_Value]:
        """Loss, gradient and held-out scores of every lane's trial point, in one read of X."""
        import torch

        n_lanes, k, d = len(lanes), self.n_classes, self.width
        theta = torch.stack([lane.trial for lane in lanes])
        inverse_scale = torch.stack([lane.inverse_scale for lane in lanes])[:, None, :]
        weights = (theta[:, :, :d] * inverse_scale).float().view(n_lanes * k, d)
        # X is never centred in memory: the mean goes into the intercept here and comes out of the gradient below.
        bias = theta[:, :, d].reshape(-1).float() - weights @ self._mean
        folds = torch.tensor([lane.fold for lane in lanes], device=self.device)[:, None]
        gradient = torch.zeros(n_lanes * k, d, device=self.device)
        gradient_bias = torch.zeros(n_lanes * k, dtype=torch.float64, device=self.device)
        has_folds = any(lane.fold != ALL_ROWS for lane in lanes)
        sums = torch.zeros(3, n_lanes, dtype=torch.float64, device=self.device)
        for rows in self._blocks():
            block, truth = self._X[rows], self._y[rows]
            size = len(truth)
            scores = torch.addmm(bias[:, None], weights, block.T).view(n_lanes, k, size)
            log_p = torch.log_softmax(scores, dim=1)
            index = truth.expand(n_lanes, 1, size)
            at_truth = log_p.gather(1, index)
            out = folds == self._fold[rows]
            weight = torch.where(out, 0.0, self._weight[rows])
            sums[0] -= (at_truth[:, 0] * weight).sum(1, dtype=torch.float64)
            if has_folds:
                best = log_p.amax(dim=1) <= at_truth[:, 0]
                sums[1] -= (at_truth[:, 0] * out).sum(1, dtype=torch.float64)
                sums[2] += (best & out).sum(1)
            residual = log_p.exp_()
            residual.scatter_add_(1, index, torch.full_like(at_truth, -1.0))
            residual *= weight[:, None, :]
            flat = residual.view(n_lanes * k, size)
            gradient.addmm_(flat, block)
            gradient_bias += flat.sum(1, dtype=torch.float64)
        gradient -= gradient_bias.float()[:, None] * self._mean
        scaled = gradient.double().view(n_lanes, k, d) * inverse_scale
        full = torch.cat([scaled, gradient_bias.view(n_lanes, k, 1)], dim=2)
        loss, held_out, correct = sums.cpu().tolist()
        return [_Value(lane.trial, loss[i], full[i], held_out[i], correct[i]) for i, lane in enumerate(lanes)]

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
        size = 16 * self.n_classes * (self.width + 1) * len(lanes)
        memory = max(3, min(self.memory, _PAIR_BYTES // size))
        states = []
        for number, (fold, values) in enumerate(lanes):
            if list(values) != sorted(values) or not values or min(values) <= 0:
                raise ValueError(f"values of C must be positive and ascending, got {list(values)}")
            scale = self._scale(fold)
            start = self._start(fold) if starts is None else self._resume(starts[number], scale)
            states.append(_Lane(fold, list(values), deque(maxlen=memory), start, 1.0 / scale))
        total = sum(len(state.values) for state in states)
        walking = list(states)
        while walking:
            for lane, value in zip(walking, self._evaluate(walking), strict=True):
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
            self._remember(lane, here, value)
        given_up = lane.passes >= max_passes
        if here is None or self._accept(lane, here, value):
            lane.here = here = value
            lane.step = 1.0
        else:
            lane.step *= _BACKTRACK
            given_up = given_up or lane.step < _SHORTEST_STEP
        while True:
            gradient = here.objective_gradient(lane.c)
            towards = self._inverse_hessian(lane, here, gradient)
            objective = here.objective(lane.c)
            estimate = _SAFETY * 0.5 * float((gradient * towards).sum()) / objective
            bound = 0.5 * float(gradient[:, :-1].square().sum()) / objective
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
        lane.direction = -towards
        lane.trial = here.theta + lane.step * lane.direction

    def _accept(self, lane: _Lane, here: _Value, value: _Value) -> bool:
        assert lane.direction is not None
        before, after = here.objective(lane.c), value.objective(lane.c)
        slope = float((here.objective_gradient(lane.c) * lane.direction).sum())
        return (
            math.isfinite(after) and after <= before + _ARMIJO * lane.step * min(slope, 0.0) + 1e-9 * before
        )

    def _remember(self, lane: _Lane, here: _Value, value: _Value) -> None:
        step = value.theta - here.theta
        change = value.gradient - here.gradient
        step_change = float((step * change).sum())
        step_step = float(step[:, :-1].square().sum())
        size = float(change.square().sum().sqrt() * step.square().sum().sqrt())
        if math.isfinite(step_change) and step_change > 1e-8 * size:
            lane.pairs.append(_Pair(step, change, step_change, step_step))

    def _inverse_hessian(self, lane: _Lane, here: _Value, gradient: torch.Tensor) -> torch.Tensor:
        """L-BFGS two-loop recursion around the preconditioner, at the lane's own C."""
        c = lane.c
        preconditioner = self._preconditioner(lane, here)
        q = gradient.clone()
        stack = []
        for pair in reversed(lane.pairs):
            rho = 1.0 / (c * pair.step_change + pair.step_step)
            alpha = rho * float((pair.step * q).sum())
            q.add_(pair.change, alpha=-alpha * c)
            q[:, :-1].add_(pair.step[:, :-1], alpha=-alpha)
            stack.append((pair, rho, alpha))
        q = preconditioner.solve(q, c)
        for pair, rho, alpha in reversed(stack):
            beta = rho * (c * float((pair.change * q).sum()) + float((pair.step[:, :-1] * q[:, :-1]).sum()))
            q.add_(pair.step, alpha=alpha - beta)
        return q

    def _preconditioner(self, lane: _Lane, here: _Value) -> _Preconditioner:
        """Return the preconditioner of the lane's decade of C, built at the first point that needs it."""
        band = math.floor(math.log(lane.c) / math.log(_BAND))
        if band not in self._preconditioners:
            self._preconditioners[band] = self._build_preconditioner(here.theta, lane.inverse_scale)
        return self._preconditioners[band]

    def _build_preconditioner(self, theta: torch.Tensor, inverse_scale: torch.Tensor) -> _Preconditioner:
        import torch

        rows = (self._X[self._sample] - self._mean) * inverse_scale.float()
        weight = self._weight[self._sample]
        weight = weight * (self._total_weight / float(weight.sum()))
        p = torch.softmax(rows @ theta[:, :-1].T.float() + theta[:, -1].float(), dim=1)
        weighted = p * weight[:, None]
        classes = torch.diag(weighted.sum(0)) - weighted.T @ p
        _, class_basis = torch.linalg.eigh(classes.double())
        u = class_basis.float()
        # u_kᵀ (diag(p) − ppᵀ) u_k of every row: how uncertain the row is along class direction k.
        uncertainty = (weighted @ u.square() - weight[:, None] * (p @ u).square()).clamp_min_(0.0)
        row_curvature = uncertainty.sum(1)
        if self.width <= _WIDEST_EIGENBASIS:
            moments = rows.T @ (rows * row_curvature[:, None])
            _, feature_basis = torch.linalg.eigh(moments)
            rotated = rows @ feature_basis
        else:
            feature_basis, rotated = None, rows
        curvature = uncertainty.T @ rotated.square_()
        return _Preconditioner(
            class_basis,
            feature_basis,
            curvature.double(),
            uncertainty.sum(0).double().clamp_min(1e-3 * self._total_weight / self.n_classes),
        )

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
        weights = here.theta[:, :-1] * lane.inverse_scale
        intercept = here.theta[:, -1] - weights @ self._mean.double()
        held_out = int((self._fold == lane.fold).sum())
        lane.points.append(
            PathPoint(
                C=lane.c,
                coef=weights.float().cpu().numpy(),
                intercept=intercept.cpu().numpy(),
                objective=here.objective(lane.c),
                gradient_norm=float(gradient.square().sum().sqrt()),
                gap_estimate=estimate,
                gap_bound=bound,
                converged=converged,
                passes=lane.passes,
                held_out_loss=here.held_out_loss / held_out if held_out else math.nan,
                held_out_accuracy=here.held_out_correct / held_out if held_out else math.nan,
            )
        )
        lane.solutions = [*lane.solutions[-2:], (math.log(lane.c), here.theta)]
        lane.position += 1
        lane.passes = 0
