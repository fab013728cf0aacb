"""Multinomial logistic regression with scikit-learn's objective, and the sweep over C by cross-validation.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import clone

from pipeline.evaluation.choice import HeldOut, choose
from pipeline.evaluation.splits import fold_count, fold_numbers
from pipeline.heads.base import SoftmaxHead, check_setting, is_count, is_positive
from pipeline.heads.fit import FitOptions, FittedHead, explained, with_params
from pipeline.heads.model import HeadModel, linear_scores, two_columns
from pipeline.heads.solver.path import SoftmaxPath
from pipeline.heads.solver.preconditioner import MOST_CLASS_DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.heads.solver.fold_path import PathPoint

FULL_SWEEP: tuple[float, ...] = tuple(10.0**e for e in np.linspace(-6, 5, 45))
"""45 values of C, four to the decade."""

COARSE_SWEEP: tuple[float, ...] = FULL_SWEEP[::4]
"""One value of C to the decade."""

_APPROACH = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of C that a single fit solves on the way to C. Where C is small this takes as many passes as a cold start;
where C is large, far fewer."""

_APPROACH_OF_MANY_CLASSES = tuple(float(share) for share in 10.0 ** np.linspace(-4, 0, 9))
"""The same with very many classes: each of them has a few rows, and a long step overshoots."""

_LEAST_CLASSES, _CHOICE_WORK = 64, 2.5e8
"""Of more than `MOST_CLASS_DIRECTIONS` classes a sample is drawn to choose C on, of at least the first number, so that
one pass of all folds stays within the second number of multiplications. The best C hardly depends on the number of
classes, and the work grows with its square."""

_FINE_STEPS = 2
_COARSE_TOL = 1e-2
"""Relative gap of the coarse sweep: enough to see where the best C lies."""

_FINE_TOL = 1e-3
"""Relative gap of the folds around it: enough for held-out scores, at half the passes."""

_DIRECTION_TOL = 1e-6
"""Relative gap of a fit that a usual one leaves at zero."""

_TOL_OF_MANY_CLASSES = 5e-2
"""The same of the fits with very many classes, whose passes are long; the estimate is 5 to 60 times the true gap."""

_FEWER_PASSES = 40
"""With very many classes one value of C gets a share of ``max_passes``: each pass is long, and the many small steps of
separable classes hardly change the objective."""

_CLEAR_RISE = 0.005
"""Rise of the held-out log loss, as a share of that of guessing, that is no noise."""


def _check_solver(tol: object, max_passes: object) -> None:
    check_setting(is_positive(tol), "tol", "a positive number", tol)
    check_setting(is_count(max_passes), "max_passes", "a whole number of at least 1", max_passes)


def _solver_c(c: float, n_classes: int) -> float:
    """Turn scikit-learn's C into the solver's.

    For two classes scikit-learn penalises one weight vector, the solver two of half its size: ``½‖w‖²`` is twice
    ``½‖w/2‖² + ½‖−w/2‖²``, so the loss must weigh half as much.
    """
    return c / 2 if n_classes == 2 else c


def _prepared(
    head: LogisticHead | LogisticSweep,
    data: NDArray[np.float32],
    codes: NDArray[np.int64],
    fold: NDArray[np.int64] | None = None,
) -> SoftmaxPath:
    """Return the solver for these rows."""
    return SoftmaxPath(
        data,
        codes,
        len(head.classes_),
        row_weight=head._row_weight(codes, head.class_weight),
        fold=fold,
        standardise=_is_standard(head.scaling),
        device=head.device,
        origin=_origin(head.start_coef, len(head.classes_), data.shape[1]),
    )


def _origin(start: Any, n_classes: int, width: int) -> NDArray[np.float64] | None:
    if start is None:
        return None
    origin = np.asarray(start, dtype=np.float64)
    check_setting(origin.shape == (n_classes, width), "start_coef", f"shape {(n_classes, width)}", origin.shape)
    return origin


def _approach(c: float, n_classes: int) -> list[float]:
    shares = _APPROACH if n_classes <= MOST_CLASS_DIRECTIONS else _APPROACH_OF_MANY_CLASSES
    return [_solver_c(share * c, n_classes) for share in shares]


def _with_a_direction(path: SoftmaxPath, point: PathPoint, c: float, max_passes: int) -> PathPoint:
    """Return a solution that tells classes apart, also at a C so small that zero weights are within the tolerance.

    Of classes of the same size every row would tie, though the smallest weights are a direction as good as any.
    """
    if point.coef.any() or np.count_nonzero(point.intercept >= point.intercept.max()) < 2:
        return point
    ((finer,),) = path.solve([(path.ALL_ROWS, [c])], tol=_DIRECTION_TOL, max_passes=max_passes)
    return finer if finer.converged else point


def _few_classes(codes: NDArray[np.int64], factor: int, n_classes: int, seed: int) -> NDArray[np.int64]:
    """Return the classes on which C is chosen: all, or as many of very many as keep a pass quick."""
    if n_classes <= MOST_CLASS_DIRECTIONS or n_classes * len(codes) * factor <= _CHOICE_WORK:
        return np.arange(n_classes)
    count = int((_CHOICE_WORK / (len(codes) / n_classes * factor)) ** 0.5)
    chosen = np.random.default_rng(seed).permutation(n_classes)[: max(count, _LEAST_CLASSES)]
    return np.sort(chosen)


class _Logistic(SoftmaxHead):
    """What `LogisticHead` and `LogisticSweep` share."""

    def _set_point(self, point: PathPoint) -> None:
        """Keep a solution, and where the solver stopped."""
        self._set_solution(point.coef, point.intercept)
        self.objective_ = point.objective * (2 if len(self.classes_) == 2 else 1)
        self.gradient_norm_ = point.gradient_norm
        self.gap_estimate_ = point.gap_estimate
        self.converged_ = point.converged


class LogisticHead(_Logistic):
    """Multinomial logistic regression at one C: scikit-learn's objective, fewer passes over the data.

    Parameters
    ----------
    C : float
        Inverse strength of the L2 penalty.
    scaling : {"none", "standard"}
        Penalise weights as they are, or as those of standardised features. ``coef_`` is in the units of X either way.
    class_weight : dict, "balanced" or None
        As in scikit-learn.
    tol : float
        Relative gap to the optimal objective at which to stop.
    max_passes : int
        Passes over the data at one C after which to stop; ``converged_`` is then False. The fit solves some
        smaller values first.
    device : str
        ``"cpu"`` or ``"cuda"``.
    start_coef : array-like of shape (K, D), optional
        Weights that the penalty pulls to, a row for each class, instead of zero.

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); (1, D) and (1,) for two classes.
    objective_, gradient_norm_, gap_estimate_ : float
        Where the solver stopped.
    n_iter_ : int
        Passes over the data.
    converged_ : bool
        Whether the gap reached ``tol``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = LogisticHead(C=1.0).fit(X, y)
    >>> bool(head.converged_), head.coef_.shape
    (True, (3, 4))
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        scaling: Literal["none", "standard"] = "none",
        class_weight: Any = None,
        tol: float = 1e-4,
        max_passes: int = 500,
        device: str = "cpu",
        start_coef: ArrayLike | None = None,
    ) -> None:
        self.C = C
        self.scaling = scaling
        self.class_weight = class_weight
        self.tol = tol
        self.max_passes = max_passes
        self.device = device
        self.start_coef = start_coef

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.

        Raises
        ------
        ValueError
            scikit-learn's own, for shapes, NaN and the like; also for a single class.
        """
        _check_solver(self.tol, self.max_passes)
        check_setting(is_positive(self.C), "C", "a positive number", self.C)
        data, codes = self._validate(X, y)
        k = len(self.classes_)
        path = _prepared(self, data, codes)
        (points,) = path.solve([(path.ALL_ROWS, _approach(self.C, k))], tol=self.tol, max_passes=self.max_passes)
        point = _with_a_direction(path, points[-1], _solver_c(self.C, k), self.max_passes)
        self._set_point(point)
        self.n_iter_ = sum(each.passes for each in points)
        return self


class LogisticSweep(_Logistic):
    """Multinomial logistic regression, C chosen by cross-validation, all folds solved together along the path of C.

    Parameters
    ----------
    Cs : "auto", "full" or sequence of float
        ``"full"`` tries 45 values over 1e-6 … 1e5. ``"auto"`` tries one value a decade upwards until accuracy and log
        loss have clearly fallen, its folds solved to a relative gap of 1e-2; then tries the values of the full sweep
        around the best one, to 1e-3, which held-out scores do not notice; and fits all rows to ``tol`` (5e-2 at least
        where C was chosen on a sample of the classes).
    cv : int
        Folds, stratified; fewer where there are fewer rows (or groups). A class of one row (or group) trains in all of
        them and is held out in none.
    scoring : {"accuracy", "log_loss"}
        What chooses C: accuracy and then log loss, or log loss alone, as `pipeline.evaluation.choice.choose` does. A
        value that has not converged is taken only where none has.
    scaling, class_weight, tol, max_passes, device, start_coef
        As in `LogisticHead`; a fortieth of ``max_passes`` where C was chosen on a sample of the classes. The scale is
        that of each fold's own training rows.
    random_state : int
        Seed of the folds.
    progress : callable, optional
        Called with (solved, all) pairs of fold and C.

    Attributes
    ----------
    C_ : float
        The value chosen.
    chosen_on_ : int
        Number of classes that C was chosen on: all of them, or some hundred of very many. Then only the rows of one
        fold have out-of-fold scores.
    sweep_ : list of dict
        For every value of C: ``C``, ``accuracy`` and ``log_loss`` (means over held-out rows), ``accuracy_folds``,
        ``log_loss_folds``, ``converged``, ``gap_estimate``, ``gradient_norm``, ``passes`` (the worst over folds).
    fold_ : ndarray of shape (N,)
        The fold that held each row out; −2 for none.
    oof_scores_ : ndarray of shape (N, K)
        Scores of every row from the fold that did not see it, at the chosen C; NaN for rows that no fold held out.
    coef_, intercept_, classes_, objective_, gradient_norm_, gap_estimate_, converged_, n_iter_
        Of the fit on all rows, as in `LogisticHead`.
    """

    takes_groups = True

    def __init__(
        self,
        *,
        Cs: Literal["auto", "full"] | Sequence[float] = "auto",
        cv: int = 5,
        scoring: Literal["accuracy", "log_loss"] = "accuracy",
        scaling: Literal["none", "standard"] = "none",
        class_weight: Any = None,
        tol: float = 1e-4,
        max_passes: int = 500,
        device: str = "cpu",
        random_state: int = 0,
        progress: Callable[[int, int], None] | None = None,
        start_coef: ArrayLike | None = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.scaling = scaling
        self.class_weight = class_weight
        self.tol = tol
        self.max_passes = max_passes
        self.device = device
        self.random_state = random_state
        self.progress = progress
        self.start_coef = start_coef

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose C on folds of the rows given, then fit them all.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes, at least one of them with two rows (or groups).
        groups : array-like of shape (N,), optional
            Rows of one group share a fold.

        Raises
        ------
        ValueError
            scikit-learn's own; for a single class; where every class has a single row or group.
        """
        self._check_settings()
        data, codes = self._validate(X, y)
        k = len(self.classes_)
        self.n_folds_ = fold_count(codes, self.cv, groups)
        if self.n_folds_ < 2:
            raise ValueError("cross-validation needs a class of at least 2 rows (or groups)")
        self.fold_ = fold_numbers(codes, self.n_folds_, seed=self.random_state, groups=groups)
        path = _prepared(self, data, codes, self.fold_)
        few = _few_classes(codes, data.shape[1] * self.n_folds_, k, self.random_state)
        self.chosen_on_ = len(few)
        if len(few) == k:
            point, held_out = self._fit_all_classes(path, k, groups)
        else:
            rows = np.isin(codes, few)
            part = clone(self).set_params(
                start_coef=None if self.start_coef is None else np.asarray(self.start_coef)[few]
            )
            part.fit(data[rows], codes[rows], None if groups is None else np.asarray(groups)[rows])
            self.C_, self.sweep_ = part.C_, part.sweep_
            point, held_out = self._fit_many_classes(path, k)
        self.oof_scores_ = self._out_of_fold(data, held_out)
        self._set_point(point)
        self.n_iter_ = point.passes
        return self

    def _fit_all_classes(
        self, path: SoftmaxPath, k: int, groups: ArrayLike | None
    ) -> tuple[PathPoint, list[PathPoint]]:
        """Choose C on all classes; return the solution of all rows there, and those of the folds."""
        self._group_of_held_out = _in_order_of_folds(self.fold_, self.n_folds_, groups)
        tried = self._solve_sweep(path, k)
        self.C_ = self._best(tried)
        self.sweep_ = [self._summary(c, tried[c]) for c in sorted(tried)]
        ((point,),) = path.solve(
            [(path.ALL_ROWS, [_solver_c(self.C_, k)])],
            starts=[_expected_on_all_rows(tried, self.C_, self.n_folds_)],
            tol=self.tol,
            max_passes=self.max_passes,
        )
        return _with_a_direction(path, point, _solver_c(self.C_, k), self.max_passes), tried[self.C_]

    def _fit_many_classes(self, path: SoftmaxPath, k: int) -> tuple[PathPoint, list[PathPoint]]:
        """Return the solution of all rows at the C chosen, and that of one fold, held out for a temperature.

        Rows that a start has not seen cost as many passes as a start from nothing, so neither starts from the other.
        """

        def solve(fold: int) -> PathPoint:
            tol, passes = max(self.tol, _TOL_OF_MANY_CLASSES), math.ceil(self.max_passes / _FEWER_PASSES)
            (points,) = path.solve([(fold, _approach(self.C_, k))], tol=tol, max_passes=passes)
            return points[-1]

        return solve(path.ALL_ROWS), [solve(0)]

    def _check_settings(self) -> None:
        _check_solver(self.tol, self.max_passes)
        named = isinstance(self.Cs, str)
        possible = self.Cs in ("auto", "full") if named else len(self.Cs) > 0 and all(map(is_positive, self.Cs))
        check_setting(possible, "Cs", '"auto", "full" or positive numbers', self.Cs)
        check_setting(is_count(self.cv, 2), "cv", "a whole number of at least 2", self.cv)
        check_setting(self.scoring in ("accuracy", "log_loss"), "scoring", '"accuracy" or "log_loss"', self.scoring)

    def at_chosen(self, tol: float) -> LogisticHead:
        """Return a head at the chosen C, of the same settings, to be fitted to other rows."""
        return LogisticHead(
            C=self.C_,
            scaling=self.scaling,
            class_weight=self.class_weight,
            tol=tol,
            max_passes=self.max_passes,
            device=self.device,
            start_coef=self.start_coef,
        )

    def _solve_sweep(self, path: SoftmaxPath, k: int) -> dict[float, list[PathPoint]]:
        """Return the folds' solutions by C."""
        if isinstance(self.Cs, str) and self.Cs == "auto":
            coarse = max(self.tol, _COARSE_TOL)
            tried = self._solve(path, k, COARSE_SWEEP, tol=coarse, stop=_has_fallen)
            middle = FULL_SWEEP.index(self._best(tried))
            fine = FULL_SWEEP[max(middle - _FINE_STEPS, 0) : middle + _FINE_STEPS + 1]
            below = max((c for c in tried if c < fine[0]), default=None)
            starts = None if below is None else tried[below]
            return tried | self._solve(path, k, fine, starts=starts, tol=max(self.tol, _FINE_TOL))
        values = FULL_SWEEP if isinstance(self.Cs, str) else tuple(sorted(self.Cs))
        return self._solve(path, k, values)

    def _solve(
        self,
        path: SoftmaxPath,
        k: int,
        values: Sequence[float],
        *,
        starts: list[PathPoint] | None = None,
        stop: Callable[[list[list[PathPoint]]], bool] | None = None,
        tol: float | None = None,
    ) -> dict[float, list[PathPoint]]:
        paths = [(fold, [_solver_c(c, k) for c in values]) for fold in range(self.n_folds_)]
        solved = path.solve(
            paths,
            starts=starts,
            stop=stop,
            tol=self.tol if tol is None else tol,
            max_passes=self.max_passes,
            progress=self.progress,
        )
        complete = min(len(points) for points in solved)
        return {values[i]: [points[i] for points in solved] for i in range(complete)}

    def _best(self, tried: dict[float, list[PathPoint]]) -> float:
        """Return the strongest regularisation that cannot be distinguished from the best."""
        values = sorted(tried)
        chosen = choose(
            [_joined(tried[c]) for c in values],
            usable=[all(p.converged for p in tried[c]) for c in values],
            by=self.scoring,
            groups=self._group_of_held_out,
        )
        return values[chosen]

    def _summary(self, c: float, points: list[PathPoint]) -> dict[str, Any]:
        together = _joined(points)
        measured = [p.held_out for p in points if len(p.held_out.hits)]  # large groups may leave a fold without rows
        return {
            "C": float(c),
            "accuracy": together.accuracy,
            "log_loss": together.log_loss,
            "accuracy_folds": [fold.accuracy for fold in measured],
            "log_loss_folds": [fold.log_loss for fold in measured],
            "converged": all(p.converged for p in points),
            "gap_estimate": max(min(p.gap_estimate, p.gap_bound) for p in points),
            "gradient_norm": max(p.gradient_norm for p in points),
            "passes": max(p.passes for p in points),
        }

    def _out_of_fold(self, X: NDArray[np.float32], points: list[PathPoint]) -> NDArray[np.float64]:
        scores = np.full((len(X), len(self.classes_)), np.nan)
        for fold, point in enumerate(points):
            rows = np.flatnonzero(self.fold_ == fold)
            scores[rows] = linear_scores(X[rows], point.coef, point.intercept)
        return scores


def _expected_on_all_rows(tried: dict[float, list[PathPoint]], c: float, n_folds: int) -> PathPoint:
    """Predict the solution on all rows from those of the folds, as a point to start from.

    A fold's loss sums over a share ``1 − 1/n_folds`` of the rows, so its solution belongs to a C smaller by as much:
    the folds' mean is taken between c and the next value, linear in log C.
    """
    above = min((other for other in tried if other > c), default=c)
    part = min(math.log(n_folds / (n_folds - 1)) / math.log(above / c), 1.0) if above > c else 0.0
    mixed = [(1.0 - part, tried[c]), (part, tried[above])]
    coef = sum(share * np.mean([p.coef for p in points], axis=0) for share, points in mixed)
    intercept = sum(share * np.mean([p.intercept for p in points], axis=0) for share, points in mixed)
    return replace(tried[c][0], coef=np.asarray(coef), intercept=np.asarray(intercept))


def _in_order_of_folds(fold: NDArray[np.int64], n_folds: int, groups: ArrayLike | None) -> NDArray[np.int64] | None:
    """Return the groups as numbers, for the rows held out, fold after fold."""
    if groups is None:
        return None
    number = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    return np.concatenate([number[fold == k] for k in range(n_folds)])


def _joined(points: list[PathPoint]) -> HeldOut:
    """Put what the folds held out one after the other."""
    parts = [p.held_out for p in points]
    return HeldOut(
        np.concatenate([p.losses for p in parts]),
        np.concatenate([p.mean_losses for p in parts]),
        np.concatenate([p.hits for p in parts]),
    )


def _has_fallen(solved: list[list[PathPoint]]) -> bool:
    """Return whether the best C has been passed.

    So it is when at the last two values the log loss has clearly risen above its least, and accuracy is no better than
    before; or at the last one, when it has risen by twice as much and accuracy has fallen by a standard error.
    Where the classes are not yet separated, both only fluctuate, by far less than ``_CLEAR_RISE``.
    """
    complete = min(len(points) for points in solved)
    if complete < 3:
        return False
    tried = [_joined([points[i] for points in solved]) for i in range(complete)]
    accuracy = [each.accuracy for each in tried]
    loss = [float(each.guarded_losses().mean()) for each in tried]
    rise = _CLEAR_RISE * math.log(len(solved[0][0].intercept))
    best = max(accuracy[:-1])
    error = (best * (1 - best) / len(tried[0].hits)) ** 0.5  # binomial
    if loss[-1] > min(loss[:-1]) + 2 * rise and accuracy[-1] < best - error:
        return True
    return min(loss[-2:]) > min(loss[:-2]) + rise and max(accuracy[-2:]) <= max(accuracy[:-2])


def _is_standard(scaling: str) -> bool:
    if scaling not in ("none", "standard"):
        raise ValueError(f"scaling must be 'none' or 'standard', got {scaling!r}")
    return scaling == "standard"


# --- as a head of the registry -------------------------------------------------------------------------------

REFIT_TOL = 1e-3
"""Relative gap of the fits behind learning curves, whose scores do not notice more."""


def logistic_sweep(options: FitOptions) -> Any:
    """Return an unfitted `pipeline.heads.LogisticSweep` of these options."""
    sweep = LogisticSweep(
        Cs=options.Cs,
        cv=options.folds,
        scoring=options.scoring,
        scaling=options.scaling,
        class_weight=options.class_weight,
        device=options.device,
        random_state=options.seed,
        progress=options.progress,
    )
    return with_params(sweep, options.params, "the logistic head")


_SWEEP_FROM = 4
"""Fewer values than this are the user's own short list, and its ends need no warning."""


def _more(passes: int) -> int:
    """Return how many passes to try next."""
    return 4 * passes


def fit_logistic(
    X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit multinomial logistic regression, C chosen on folds of the rows given."""
    estimator = logistic_sweep(options)
    if options.start == "zero-shot" and options.texts is not None:
        estimator.set_params(start_coef=options.texts.coef_for(X))
    with explained(estimator):
        estimator.fit(X, y, groups)
    estimator.set_params(progress=None)
    coef, intercept = two_columns(estimator.coef_, estimator.intercept_)
    warnings = []
    if estimator.chosen_on_ < len(estimator.classes_):
        warnings.append(
            f"C was chosen on {estimator.chosen_on_} of the {len(estimator.classes_)} classes, since all would take "
            "long: name it with --C to fit all classes at one value"
        )
    failed = [entry["C"] for entry in estimator.sweep_ if not entry["converged"]]
    if failed:
        warnings.append(
            f"{len(failed)} of {len(estimator.sweep_)} values of C did not reach the tolerance "
            f"(from {min(failed):g} to {max(failed):g}) and were not chosen: to allow them more passes, "
            f"--set max_passes={_more(estimator.max_passes)}"
        )
    if not estimator.converged_:
        warnings.append(
            f"the fit at C = {estimator.C_:g} did not converge: allow more passes with "
            f"--set max_passes={_more(estimator.max_passes)}, or regularise more with --C {estimator.C_ / 10:g}"
        )
    values = [entry["C"] for entry in estimator.sweep_]
    if len(values) > _SWEEP_FROM and estimator.C_ in (values[0], values[-1]):
        beyond = [estimator.C_ * 10.0 ** (e if values[-1] == estimator.C_ else -e) for e in (0, 1, 2)]
        warnings.append(
            f"the best C = {estimator.C_:g} lies at the end of the values tried: to look further, "
            f"{' '.join(f'--C {c:g}' for c in sorted(beyond))}"
        )

    def refit(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> HeadModel | None:
        if len(np.unique(labels)) < len(estimator.classes_):
            return None
        again = estimator.at_chosen(REFIT_TOL).fit(rows, labels)
        coef, intercept = two_columns(again.coef_, again.intercept_)
        return HeadModel("linear", {"coef": coef, "intercept": intercept}, "softmax", len(intercept))

    return FittedHead(
        estimator,
        HeadModel("linear", {"coef": coef, "intercept": intercept}, "softmax", len(intercept)),
        oof_scores=estimator.oof_scores_,
        chosen={
            "C": float(estimator.C_),
            "converged": bool(estimator.converged_),
            "gap_estimate": float(estimator.gap_estimate_),
            "gradient_norm": float(estimator.gradient_norm_),
            "objective": float(estimator.objective_),
            "folds": estimator.n_folds_,
        },
        sweep=estimator.sweep_,
        warnings=warnings,
        refit=refit,
    )
