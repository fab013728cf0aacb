"""One fold path: the solutions for one training set (one fold, or all rows) over ascending values of C.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.evaluation.choice import HeldOut
from pipeline.heads.solver.lbfgs import CurvaturePairs, rotated

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.heads.solver.arrays import Array, NumpyArrays
    from pipeline.heads.solver.preconditioner import Preconditioner

ALL_ROWS = -1
"""Fold number of the path that trains on every row."""

_ARMIJO = 1e-4
_NOISE = 1e-8
"""Relative error of an objective summed from float32 scores."""
_BACKTRACK = 0.4
_SHORTEST_STEP = 1e-3

_BAND = 10.0
"""The preconditioner's diagonal is used within this factor of C."""

_REBUILD_DIAGONAL = frozenset({4, 8, 16, 32, 64, 128})
"""Passes spent on one C after which it is measured again: far from the start, other rows are the uncertain ones."""

_SAFETY, _SAFETY_PER_PASS, _MOST_SAFETY = 5.0, 3.0, 60.0
"""Multiplies half the squared Newton decrement under the preconditioner, to estimate the gap. The true gap was up to 3
times that at the first pass of a C, 18 times at the fifth, 58 times in the end: what is left lies in ever flatter
directions, which the preconditioner takes for steeper than they are."""

_EXTRAPOLATE = 3
"""How many of the last solutions the next start is extrapolated from."""


@dataclass(frozen=True)
class PathPoint:
    """The solution at one value of C of one fold path.

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
        Upper bound of the same, proven except for the part of the intercepts, which is an estimate.
    converged : bool
        Whether the smaller of the two reached the tolerance.
    passes : int
        Passes over the data that this value of C took.
    held_out : HeldOut
        What it predicts for the rows of the fold, in the order of the data.
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


@dataclass
class Evaluation:
    """What one pass measures at one point of one fold path: the loss, its gradient and the held-out scores."""

    theta: Array
    loss: float
    gradient: Array
    held_out: Array
    """(3, rows of the fold): the fields of `HeldOut`."""

    def objective(self, c: float) -> float:
        """Return ``c × loss + ½‖W‖²``."""
        return c * self.loss + 0.5 * float((self.theta[:, :-1] ** 2).sum())

    def objective_gradient(self, c: float) -> Array:
        """Return the gradient of the objective by weights and intercepts (K, D + 1)."""
        gradient = c * self.gradient
        gradient[:, :-1] += self.theta[:, :-1]
        return gradient


@dataclass(frozen=True)
class PathRules:
    """What all fold paths of one solve share.

    Attributes
    ----------
    tol : float
        Relative gap at which a value of C counts as solved.
    max_passes : int
        Passes after which a value of C is given up.
    rounds : bool
        Whether passes are in float32, until a path needs float64.
    preconditioner_at : callable
        Measures the preconditioner at parameters (K, D + 1).
    arrays : NumpyArrays
        The operations on these arrays.
    coefficients_of : callable
        Takes parameters and the scale of the features; returns weights and intercepts in the units of the data.
    """

    tol: float
    max_passes: int
    rounds: bool
    preconditioner_at: Callable[[Array], Preconditioner]
    arrays: NumpyArrays
    coefficients_of: Callable[[Array, Array], tuple[NDArray[np.floating], NDArray[np.float64]]]


@dataclass(frozen=True)
class _Gap:
    """How far a point is from the optimum, relative to the objective; see `pipeline.heads.solver.path`."""

    gradient: Array
    objective: float
    estimate: float
    bound: float


@dataclass
class FoldPath:
    """The state of one path.

    Attributes
    ----------
    fold : int
        The fold held out, or ``ALL_ROWS``.
    values : list of float
        Ascending values of C.
    pairs : CurvaturePairs
    trial : Tensor of shape (K, D + 1)
        The point that the next pass evaluates.
    inverse_scale : Tensor of shape (D,)
    current : Evaluation or None
        The last accepted point.
    stalled : bool
        Whether the curvature pairs were dropped once at this C.
    is_exact : bool
        Whether its passes are computed in float64, from the first C at which float32 does not suffice.
    """

    fold: int
    values: list[float]
    pairs: CurvaturePairs
    trial: Array
    inverse_scale: Array
    preconditioner: Preconditioner | None = None
    band: int | None = None
    position: int = 0
    passes: int = 0
    current: Evaluation | None = None
    direction: Array | None = None
    step: float = 1.0
    stalled: bool = False
    is_exact: bool = False
    solutions: list[tuple[float, Array]] = field(default_factory=list)
    points: list[PathPoint] = field(default_factory=list)

    @property
    def c(self) -> float:
        """The value of C being solved."""
        return self.values[self.position]

    @property
    def is_finished(self) -> bool:
        """Whether every value of C has its point."""
        return self.position == len(self.values)

    def rotate(self, rotation: Array, arrays: NumpyArrays) -> None:
        """Express everything in another feature basis."""
        self.trial = rotated(self.trial, rotation, arrays)
        if self.direction is not None:
            self.direction = rotated(self.direction, rotation, arrays)
        if self.current is not None:
            at = self.current
            theta, gradient = (rotated(each, rotation, arrays) for each in (at.theta, at.gradient))
            self.current = replace(at, theta=theta, gradient=gradient)
        self.solutions = [(at, rotated(theta, rotation, arrays)) for at, theta in self.solutions]
        self.pairs.rotate(rotation)
        self.preconditioner = None

    def advance(self, value: Evaluation, rules: PathRules) -> None:
        """Use what a pass measured at the trial point: record every C that it solves, then choose the next trial."""
        self.passes += 1
        current, given_up = self._accept_or_shorten(value, rules)
        if self.current is None:
            return
        gap = self._gap(current, rules)
        while (solved := min(gap.estimate, gap.bound) <= rules.tol) or given_up:
            self._record(current, gap, rules, converged=solved)
            given_up = False
            if self.is_finished or self._jump_to_prediction(current):
                return
            gap = self._gap(current, rules)
        self._next_direction(current, gap)

    def _accept_or_shorten(self, value: Evaluation, rules: PathRules) -> tuple[Evaluation, bool]:
        """Move to the trial point if it is better, else shorten the step; return whether to give this C up.

        Where the steps end in float32's rounding, no point is left: the next pass measures the last one in float64.
        """
        current, given_up = self.current, self.passes >= rules.max_passes
        if current is not None:
            self.pairs.add(value.theta - current.theta, value.gradient - current.gradient)
        if current is None or self._is_better(current, value):
            self.current, self.step = value, 1.0
            return value, given_up
        self.step *= _BACKTRACK
        if self.step < _SHORTEST_STEP and rules.rounds and not self.is_exact and not given_up:
            self.is_exact, self.current, self.trial = True, None, current.theta
        elif self.step < _SHORTEST_STEP:
            # Rounding spoils pairs of short steps, and directions with them: try again without pairs.
            given_up = given_up or self.stalled
            self.stalled, self.step = True, 1.0
            self.pairs.forget()
        return current, given_up

    def _is_better(self, current: Evaluation, value: Evaluation) -> bool:
        assert self.direction is not None
        before, after = current.objective(self.c), value.objective(self.c)
        slope = float((current.objective_gradient(self.c) * self.direction).sum())
        return math.isfinite(after) and after <= before + _ARMIJO * self.step * min(slope, 0.0) + _NOISE * before

    def _gap(self, current: Evaluation, rules: PathRules) -> _Gap:
        gradient = current.objective_gradient(self.c)
        preconditioner = self._update_preconditioner(current, rules)
        objective = current.objective(self.c)
        safety = min(_SAFETY + _SAFETY_PER_PASS * (self.passes - 1), _MOST_SAFETY)
        decrements = gradient * preconditioner.solve(gradient[None], self.c)[0]
        estimate = safety * 0.5 * float(decrements.sum()) / objective
        # The bound holds for intercepts at their own optimum: how far these are from it is estimated.
        of_intercepts = safety * float(decrements[:, -1].sum())
        bound = 0.5 * (float((gradient[:, :-1] ** 2).sum()) + of_intercepts) / objective
        return _Gap(gradient, objective, estimate, bound)

    def _update_preconditioner(self, current: Evaluation, rules: PathRules) -> Preconditioner:
        """Return the preconditioner, measured again where C or the point has moved far."""
        band = math.floor(math.log(self.c) / math.log(_BAND))
        if self.preconditioner is None or self.band != band or self.passes in _REBUILD_DIAGONAL:
            self.preconditioner, self.band = rules.preconditioner_at(current.theta), band
        return self.preconditioner

    def _record(self, current: Evaluation, gap: _Gap, rules: PathRules, *, converged: bool) -> None:
        """Keep the point as the solution at this C, and move to the next C."""
        coef, intercept = rules.coefficients_of(current.theta, self.inverse_scale)
        self.points.append(
            PathPoint(
                C=self.c,
                coef=coef,
                intercept=intercept,
                objective=gap.objective,
                gradient_norm=math.sqrt(float((gap.gradient**2).sum())),
                gap_estimate=gap.estimate,
                gap_bound=gap.bound,
                converged=converged,
                passes=self.passes,
                held_out=HeldOut(*rules.arrays.to_numpy(rules.arrays.exact(current.held_out))),
            )
        )
        self.solutions = [*self.solutions[-2:], (math.log(self.c), current.theta)]
        self.position += 1
        self.passes, self.stalled, self.step = 0, False, 1.0

    def _jump_to_prediction(self, current: Evaluation) -> bool:
        """Try the solution extrapolated in log C to the new C (Lagrange), where two or more are known."""
        known = self.solutions[-_EXTRAPOLATE:]
        if len(known) < 2:
            return False
        x = math.log(self.c)
        prediction = 0.0 * current.theta
        for i, (at, theta) in enumerate(known):
            factor = 1.0
            for j, (other, _) in enumerate(known):
                if i != j:
                    factor *= (x - other) / (at - other)
            prediction += factor * theta
        self.direction, self.trial = prediction - current.theta, prediction
        return True

    def _next_direction(self, current: Evaluation, gap: _Gap) -> None:
        """Choose the next trial point; rejected trial points have improved the curvature, so the direction is new."""
        assert self.preconditioner is not None
        self.direction = -self.pairs.solve(gap.gradient, self.c, self.preconditioner)
        self.trial = current.theta + self.step * self.direction
