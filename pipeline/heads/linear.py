"""Multinomial logistic regression by stochastic gradient, on more rows than fit into memory.

Mean log loss plus ``λ/2 ‖W‖²``: the objective of `LogisticHead` at ``C = 1 / (λ N)``. All learning rates and weight
decays are trained side by side in one matrix product.

- Few rows are held in memory and cut into folds. Each fold's other rows, and all rows, are training sets of their own
  that take the same steps. Scores of the rows held out choose the candidate and the number of steps.
- Many rows are streamed, and a share of them is set apart to choose.

- Steps are Newton's, of a Kronecker-factored model of the Hessian: the features' covariance, from the first buffer,
  times the curvature of the class shares. A learning rate of 1 is a whole step, whatever the scale of the features,
  and strongly correlated features cost no further passes.
- Iterates are averaged with weights that grow over time, so there is no schedule that must know the end beforehand.

Axes: N rows, D features, K classes, A candidates (pairs of learning rate and weight decay), B rows of a minibatch,
R directions in which the rows of a training set vary, V rows held out.

References
----------
Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015.
Shamir and Zhang, "Stochastic gradient descent for non-smooth optimization", ICML 2013, for the average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from pipeline.core.items import not_finite_error
from pipeline.errors import HeadError
from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.choice import UNSEEN_ROWS, choose, held_out
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers, hold_out
from pipeline.heads import streamed_rows
from pipeline.heads.base import SoftmaxHead
from pipeline.heads.fit import FitOptions, FittedHead, explained, with_params
from pipeline.heads.model import HeadModel, linear_scores, two_columns
from pipeline.heads.solver.threads import threads_for
from pipeline.heads.streamed_rows import StreamedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

    Candidate = tuple[float, float]
    """A learning rate and a weight decay."""

_NO_FOLD = -1
_LEAST_UNIT = 1e-30
_LEAST_SHARE = 1e-7
_LEAST_SPREAD = 1e-12
"""Directions with less variance, relative to the largest, are rounding."""

_NOISE = 16
"""A direction's variance counts as known where it is this many times the mean variance times D / N."""

_DIVERGED = "training diverged at every learning rate: give smaller learning_rates such as (0.01, 0.1), or scale X"

_STREAMED_RATES = (0.03, 0.1, 0.3)
_STREAMED_DECAYS = (1e-4, 1e-3, 3e-3, 1e-2)
_FOLD_RATES = (0.3, 1.0)
"""Larger than for streamed rows: the steps on few rows have little noise."""

_FOLD_CS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse strengths C, in units of the features' mean variance, for which folds try ``λ = 1 / (C N)``."""

_FOLDS = 5
_FOLD_WORK = 4e10
"""Multiplications of one pass over few rows (half of a step: the other half is the gradient's) up to which all
candidates and folds are tried; beyond it fewer of them."""

_EIGEN_WORK = 2e10
"""Sum of the cubed sizes of the eigenproblems of all training sets, up to which there are five folds."""

_STATE = 16 << 20
"""Parameters trained side by side; more candidates are trained one group after the other."""

_FIRST_SCORE = 5
_SCORE_SPACING = 1.25
"""Folds are first scored after this many steps, and again whenever the number has grown by the factor below."""

_STEPS_UNSCORED = 100
"""Steps where no row can be held out, because every class has a single one."""

_SHARED_BASIS = 4
"""From this many rows for each feature on, the folds share the eigenbasis of all rows."""

_MOST_VALIDATION_ROWS = 100_000
"""Enough to distinguish accuracies 0.2 points apart; more would only be read again and again."""

_VALIDATION_BUFFER = 64 << 20

_STEPS_BETWEEN_SCORES = (50, 1000)
"""Candidates are scored after every pass, but at least and at most this many steps apart."""

_LEAST_GAIN = 1e-4
"""Relative drop of the log loss that counts as better."""

_LEAST_FOLD_GAIN = 1e-3
"""The same for folds, whose scorings lie further and further apart."""

_WARM_UP = 20
_OPERATIONS_PER_STEP = 12
_MOMENTUM = 0.9
_AVERAGE_POWER = 7
_COVARIANCE_ROWS_PER_FEATURE = 16
_WIDEST_COVARIANCE = 4096
"""Above this width the preconditioner is the features' variances alone."""


class LinearHead(SoftmaxHead):
    """Multinomial logistic regression by stochastic gradient; learning rate and weight decay are chosen on the way.

    Parameters
    ----------
    learning_rates : "auto", float or sequence of float
        Step lengths to try, in Newton steps. ``"auto"``: 0.3 and 1 with folds, 0.03, 0.1 and 0.3 on streamed rows.
    weight_decays : "auto", float or sequence of float
        Strengths λ of the L2 penalty to try, in units of the features' mean variance. ``"auto"``: with folds twelve
        values of ``1 / (C N)`` for C from 1e-4 to 100; on streamed rows four values from 1e-4 to 1e-2.
    max_epochs : int
        Passes over the training rows at most; where a pass has fewer than 50 steps, as many passes as make 50 steps.
    patience : int
        A candidate (on streamed rows: the best one) stops after this many scorings in a row that have not lowered its
        log loss.
    batch_size : int
        Rows of a step.
    validation_share : float
        Share of streamed rows set apart (100 000 at most), by class or by whole groups; they choose the candidate and
        the moment to stop, and are not trained on.
    class_weight : dict, "balanced" or None
        As in scikit-learn.
    device : str
        ``"cpu"`` or ``"cuda"``.
    random_state : int
        Seed of folds, validation rows and order.
    progress : callable, optional
        Called with (rows seen, rows of all passes).

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); (1, D) and (1,) for two classes. With folds, trained on all rows for as many steps as the
        folds chose; on streamed rows, the average iterate that scored best.
    learning_rate_, weight_decay_ : float
        Of the candidate chosen.
    learning_rates_, weight_decays_ : tuple of float
        The values tried, ascending.
    C_ : float
        The C at which `LogisticHead` has the same objective on the rows trained on.
    n_folds_ : int
        Folds that held rows out; 0 where rows were streamed, or where every class has a single row or group.
    curve_ : list of dict
        For every scoring: ``epoch``, ``learning_rate``, ``weight_decay``, ``accuracy`` and ``log_loss`` on the rows
        held out. With folds of the candidate chosen, on streamed rows of the best candidate at that time.
    candidates_ : list of dict
        For every candidate its best ``log_loss`` with the ``accuracy`` and the ``epoch`` there.
    validation_rows_ : ndarray of shape (V,)
        Positions of the rows that were held out, ascending: with folds those that any fold held out. Empty where no
        row could be.
    validation_scores_ : ndarray of shape (V, K)
        Their scores, from parameters trained without them.
    n_iter_ : int
        Steps taken; with folds, those of the candidate chosen.

    Notes
    -----
    Rows are few where copies of them for all training sets fit 384 MB (11 000 rows of 1280 features). Many classes or
    features reduce the number of candidates and of folds that are held out, but not the rows that train.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = LinearHead().fit(X, y)
    >>> head.coef_.shape, bool(head.score(X, y) > 0.9)
    ((3, 4), True)
    """

    takes_groups = True

    def __init__(
        self,
        *,
        learning_rates: Literal["auto"] | float | Sequence[float] = "auto",
        weight_decays: Literal["auto"] | float | Sequence[float] = "auto",
        max_epochs: int = 20,
        patience: int = 3,
        batch_size: int = 1024,
        validation_share: float = 0.1,
        class_weight: Any = None,
        device: str = "cpu",
        random_state: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.learning_rates = learning_rates
        self.weight_decays = weight_decays
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike | StreamedRows, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (N, D), or StreamedRows
            Features. A C-ordered `numpy.memmap` of floats is streamed, and so are `StreamedRows`.
        y : array-like of shape (N,)
            Classes.
        groups : array-like of shape (N,), optional
            Rows of one group are set apart together or not at all.

        Raises
        ------
        ValueError
            scikit-learn's own, for shapes, NaN and the like; for a single class; for settings that are not possible;
            where no learning rate is small enough.
        HeadError
            A row read from a file holds NaN or infinity.
        """
        rates, decays = self._settings()
        rows, codes = self._streamed(X, y)
        rng = np.random.default_rng(self.random_state)
        weight = self._row_weight(codes, self.class_weight)
        plan = _plan(rows.shape, len(self.classes_), rates, decays)
        if plan is None:
            candidates = [(rate, decay) for rate in rates or _STREAMED_RATES for decay in decays or _STREAMED_DECAYS]
            self._fit_streamed(rows, codes, groups, weight, rng, candidates)
        else:
            self._fit_folds(rows, codes, groups, weight, rng, plan)
        return self

    def _settings(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Check the settings; return the user's own learning rates and weight decays, ascending, or None."""
        for name, least in (("max_epochs", 1), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}: give one")
        share: Any = self.validation_share
        if not (isinstance(share, (float, np.floating)) and 0.0 < share < 1.0):
            raise ValueError(f"validation_share: expected a share between 0 and 1, got {share!r}: give 0.1")
        rates = _numbers("learning_rates", self.learning_rates, "positive", "(0.3, 1.0)", lambda v: v > 0)
        decays = _numbers("weight_decays", self.weight_decays, "non-negative", "(1e-3, 1e-2)", lambda v: v >= 0)
        return rates, decays

    def _fit_folds(
        self,
        rows: StreamedRows,
        codes: NDArray[np.int64],
        groups: ArrayLike | None,
        weight: NDArray[np.float64] | None,
        rng: np.random.Generator,
        plan: _Plan,
    ) -> None:
        """Choose by folds of all rows, which also train in the end."""
        n_folds = fold_count(codes, _FOLDS, groups)
        self.n_folds_ = min(n_folds, plan.folds) if n_folds > 1 else 0
        fold = np.full(len(codes), ALWAYS_TRAINS)
        if self.n_folds_:
            fold = fold_numbers(codes, n_folds, seed=self.random_state, groups=groups)
        data = _Rows(_whole(rows), codes, len(self.classes_), fold, self.n_folds_, weight)
        candidates = plan.candidates if self.n_folds_ else plan.unscored
        training = _FoldTraining(self, data, candidates, rng)
        training.run()
        number = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()[data.held]
        best = training.chosen(number)
        self.learning_rates_, self.weight_decays_ = (tuple(sorted(set(v))) for v in zip(*candidates, strict=True))
        self.learning_rate_, self.weight_decay_ = best.candidate
        self.curve_, self.candidates_, self.n_iter_ = best.curve, training.summary(), best.steps
        self.C_ = self._equivalent_c(best.candidate[1] * training.unit, len(codes))
        self.validation_rows_, self.validation_scores_ = data.held, best.scores
        self._set_solution(*training.solution(best))

    def _fit_streamed(
        self,
        rows: StreamedRows,
        codes: NDArray[np.int64],
        groups: ArrayLike | None,
        weight: NDArray[np.float64] | None,
        rng: np.random.Generator,
        candidates: list[Candidate],
    ) -> None:
        """Choose by a share of the rows, which is set apart."""
        validation = self._set_apart(codes, groups, rng)
        train = np.delete(np.arange(len(codes), dtype=np.int64), validation)
        training = _StreamTraining(self, rows.take(train).held(), codes[train], len(self.classes_), candidates, rng)
        if weight is not None:
            training.weigh(weight[train])
        # Where no group can be set apart, the rows trained on choose: they are many.
        scored = validation if len(validation) else train
        held_out_rows = rows.take(scored).held(_VALIDATION_BUFFER)
        training.run(held_out_rows, codes[scored])
        if "penalty" not in training.best:
            raise ValueError(_DIVERGED)
        self.n_folds_ = 0
        self.curve_, self.candidates_, self.n_iter_ = training.curve, training.candidates(), training.steps
        best = training.best
        self.learning_rates_, self.weight_decays_ = (tuple(sorted(set(v))) for v in zip(*candidates, strict=True))
        self.learning_rate_, self.weight_decay_ = best["learning_rate"], best["weight_decay"]
        self.C_ = self._equivalent_c(best["penalty"], len(train))
        coef, intercept = training.solution()
        self.validation_rows_ = validation
        self.validation_scores_ = np.zeros((0, len(intercept)))
        if len(validation):
            self.validation_scores_ = _scores(held_out_rows, coef, intercept)
        self._set_solution(coef, intercept)

    def _equivalent_c(self, penalty: float, n_rows: int) -> float:
        """Return the C of scikit-learn's objective; for two classes it penalises one vector instead of two halves."""
        if not penalty:
            return math.inf
        return (2.0 if len(self.classes_) == 2 else 1.0) / (penalty * n_rows)

    def _streamed(self, X: Any, y: ArrayLike) -> tuple[StreamedRows, NDArray[np.int64]]:
        """Check X without reading it where it is a map, with scikit-learn's checks otherwise."""
        if isinstance(X, np.memmap) and X.ndim == 2 and X.dtype.kind == "f" and X.flags.c_contiguous:
            X = StreamedRows(X)
        if not isinstance(X, StreamedRows):
            data, codes = self._validate(X, y)
            return StreamedRows(data), codes
        target = column_or_1d(y, warn=True)
        check_consistent_length(X, target)
        check_classification_targets(target)
        self.n_features_in_ = X.shape[1]
        return X, self._codes(target)

    def _set_apart(
        self, codes: NDArray[np.int64], groups: ArrayLike | None, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Choose the validation rows: no group on both sides, every class among the rows left."""
        if fold_count(codes, 2, groups) < 2:
            return np.zeros(0, dtype=np.int64)
        share = min(self.validation_share, _MOST_VALIDATION_ROWS / len(codes))
        try:
            split = hold_out(codes, share=share, seed=self.random_state, groups=groups)
        except HeadError:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(split == "test")


@dataclass(frozen=True)
class _Plan:
    """What is tried on few rows.

    Attributes
    ----------
    candidates : list of (float, float)
        Learning rates and weight decays, from the strongest regularisation to the weakest.
    folds : int
        Folds that hold rows out, at most.
    unscored : list of (float, float)
        The candidate to train where no row can be held out.
    """

    candidates: list[Candidate]
    folds: int
    unscored: list[Candidate]


def _plan(
    shape: tuple[int, int], k: int, rates: tuple[float, ...] | None, decays: tuple[float, ...] | None
) -> _Plan | None:
    """Choose candidates and folds for few rows, as many as are cheap; None for rows that must be streamed."""
    n, width = shape
    size = min(n, width)

    def of(few_rates: tuple[float, ...], cs: tuple[float, ...], folds: int) -> _Plan:
        its_decays = sorted(decays or (1.0 / (c * n) for c in cs), reverse=True)
        its_rates = rates or few_rates
        middle = its_rates[len(its_rates) // 2], decays[len(decays) // 2] if decays else 1.0 / n
        return _Plan([(rate, decay) for decay in its_decays for rate in its_rates], folds, [middle])

    one = _FOLD_RATES[:1]
    plans = [of(_FOLD_RATES, _FOLD_CS, folds) for folds in (_FOLDS, 4, 3)]
    plans += [of(one, _FOLD_CS, 3), of(one, _FOLD_CS, 2), of(one, _FOLD_CS[1::2], 2), of(one, _FOLD_CS[1::2], 1)]
    plans += [of(one, _FOLD_CS[3:10:2], 1)]
    if (_FOLDS + 2) * n * (width + 1) * 4 > streamed_rows.BUFFER_BYTES:
        return None
    for plan in plans:
        sets = plan.folds + 1
        cheap = n * size * k * len(plan.candidates) * sets <= _FOLD_WORK
        if cheap and (n >= _SHARED_BASIS * width or sets * size**3 <= _EIGEN_WORK):
            return plan
    return plans[-1]


class _Iterates:
    """Parameters (R + 1, A K) of all candidates: Newton steps with momentum, and the average of the iterates.

    Features are centred and in the eigenbasis of their covariance. The last row holds the intercepts.
    """

    def __init__(self, candidates: list[Candidate], shares: torch.Tensor, spread: torch.Tensor, unit: float) -> None:
        import torch

        a, k, device = len(candidates), len(shares), spread.device
        rates, decays = (torch.tensor(values, device=device) for values in zip(*candidates, strict=True))
        self.k, self.steps = k, 0
        self.rate = rates.repeat_interleave(k)
        self.penalty = torch.zeros(len(spread) + 1, a * k, device=device)
        self.penalty[:-1] = unit * decays.repeat_interleave(k)
        # Directions without variance have no curvature but the penalty's; a floor keeps their steps from exploding.
        spread = torch.cat([spread.clamp_min(1e-6 * unit), torch.ones(1, device=device)])
        curvature = (shares * (1.0 - shares)).clamp_min(_LEAST_SHARE).repeat(a)
        self.inverse_curvature = 1.0 / (spread[:, None] * curvature + self.penalty)
        self.theta = torch.zeros(len(spread), a * k, device=device)
        self.theta[-1] = shares.log().repeat(a)
        self.average = self.theta.clone()
        self.velocity = torch.zeros_like(self.theta)

    def step(self, gradient: torch.Tensor) -> None:
        """Take a step down the gradient of the mean log loss; the gradient's memory is used up."""
        gradient += self.penalty * self.theta
        self.steps += 1
        self.velocity.lerp_(gradient.mul_(self.inverse_curvature), 1.0 - _MOMENTUM)
        self.theta -= self.rate * min(1.0, self.steps / _WARM_UP) * self.velocity
        share = max(1.0 / self.steps, (1 + _AVERAGE_POWER) / (self.steps + _AVERAGE_POWER))
        self.average.lerp_(self.theta, share)

    def keep(self, positions: torch.Tensor) -> None:
        """Keep only some of the candidates."""
        a = len(self.rate) // self.k
        self.rate = self.rate.view(a, self.k)[positions].reshape(-1)
        for name in ("penalty", "inverse_curvature", "theta", "average", "velocity"):
            kept = getattr(self, name).view(-1, a, self.k)[:, positions]
            setattr(self, name, kept.reshape(len(kept), -1))


def _class_shares(codes: torch.Tensor, weight: torch.Tensor | None, k: int) -> torch.Tensor:
    import torch

    shares = torch.bincount(codes, weight, minlength=k).float()
    return (shares / shares.sum()).clamp_min(_LEAST_SHARE)


def _residual(scores: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the gradient (B, A K) of the mean log loss by scores (B, A, K)."""
    size, a, k = scores.shape
    residual = scores.softmax(2)
    truth = labels[:, None, None].expand(size, a, 1)
    residual.scatter_add_(2, truth, residual.new_full((size, a, 1), -1.0))
    if weight is not None:
        residual *= weight[:, None, None]
    return residual.view(size, a * k) / size


def _hits(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return what `pipeline.evaluation.choice.hits` does, for scores (B, A, K) and classes (B, 1)."""
    best = scores == scores.amax(2, keepdim=True)
    right = best.gather(2, truth[:, :, None].expand(-1, scores.shape[1], 1))[:, :, 0] & scores.isfinite().all(2)
    return right / best.sum(2).clamp_min(1)


# --- few rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """All rows and the folds that hold them out.

    Attributes
    ----------
    data, codes, k : ndarray (N, D), ndarray (N,), int
        Features, classes and the number of classes.
    fold, n_folds : ndarray of shape (N,), int
        Numbers from 0 to ``n_folds − 1`` are held out by that fold; rows with any other number always train.
    weight : ndarray of shape (N,), optional
        Weights.
    """

    data: NDArray[Any]
    codes: NDArray[np.int64]
    k: int
    fold: NDArray[np.int64]
    n_folds: int
    weight: NDArray[np.float64] | None

    @property
    def held(self) -> NDArray[np.int64]:
        """Return the rows that any fold holds out, ascending."""
        return np.flatnonzero((self.fold >= 0) & (self.fold < self.n_folds))


class _Basis:
    """Mean and principal directions of some rows: everything that a training set learns from its features."""

    def __init__(self, data: NDArray[Any]) -> None:
        import torch

        rows = torch.from_numpy(data.astype(np.float64))
        self.mean = rows.mean(0)
        rows -= self.mean
        n, width = rows.shape
        if n < width:
            spread, left = torch.linalg.eigh(rows @ rows.T / n)
        else:
            spread, directions = torch.linalg.eigh(rows.T @ rows / n)
        self.unit = max(float(spread.clamp_min(0.0).sum()) / width, _LEAST_UNIT)

        self.noise = _NOISE * self.unit * width / n
        varies = spread > _LEAST_SPREAD * max(float(spread[-1]), _LEAST_UNIT)
        varies[-1] = True
        self.spread = spread[varies].clamp_min(0.0)
        if n < width:
            directions = rows.T @ (left[:, varies] / (n * self.spread).clamp_min(_LEAST_UNIT).sqrt())
        else:
            directions = directions[:, varies]
        self.directions = directions

    def coordinates(self, data: NDArray[Any]) -> torch.Tensor:
        """Return the rows in this basis (n, R + 1), the last column ones."""
        import torch

        out = torch.ones(len(data), len(self.spread) + 1)
        for start in range(0, len(data), 4096):
            rows = torch.from_numpy(data[start : start + 4096].astype(np.float64))
            out[start : start + 4096, :-1] = (rows - self.mean) @ self.directions
        return out


class _TrainingSet:
    """One fold's training rows, or all rows, and the rows held out."""

    def __init__(
        self, rows: _Rows, fold: int, order: NDArray[np.int64], batches: int, basis: _Basis, device: torch.device
    ) -> None:
        import torch

        train = order[rows.fold[order] != fold]
        held = np.flatnonzero(rows.fold == fold)
        self.basis, self.k, self.device = basis, rows.k, device
        self.data = basis.coordinates(rows.data[train]).to(device)
        self.labels = torch.from_numpy(rows.codes[train]).to(device)
        self.weight: torch.Tensor | None = None
        if rows.weight is not None:
            weight = rows.weight[train]
            self.weight = torch.from_numpy((weight / weight.mean()).astype(np.float32)).to(device)
        self.held_data = basis.coordinates(rows.data[held]).to(device)
        self.held_places = torch.from_numpy(np.searchsorted(rows.held, held)).to(device)
        self.ends = np.linspace(0, len(train), batches + 1).astype(int)

    def start(self, candidates: list[Candidate]) -> None:
        """Begin with some candidates, at the class shares."""
        shares = _class_shares(self.labels, self.weight, self.k)
        # Small variances of few rows are noise: whole Newton steps along these directions would fit it first.
        spread = self.basis.spread + self.basis.noise
        self.iterates = _Iterates(candidates, shares, spread.float().to(self.device), self.basis.unit)

    def step(self, batch: int) -> None:
        """Take one step of every candidate."""
        part = slice(self.ends[batch], self.ends[batch + 1])
        data, theta = self.data[part], self.iterates.theta
        weight = None if self.weight is None else self.weight[part]
        residual = _residual((data @ theta).view(len(data), -1, self.k), self.labels[part], weight)
        self.iterates.step(data.T @ residual)

    def scores(self) -> torch.Tensor:
        """Return the scores (held, A, K) of the averages."""
        return (self.held_data @ self.iterates.average).view(len(self.held_data), -1, self.k)


@dataclass
class _Course:
    """How one candidate did: its scorings, and scores and parameters at the best of them."""

    candidate: Candidate
    curve: list[dict[str, Any]]
    loss: float = math.inf
    steps: int = 0
    stale: int = 0
    held_scores: torch.Tensor | None = None
    theta: torch.Tensor | None = None
    best: dict[str, Any] | None = None

    @property
    def scores(self) -> NDArray[np.float64]:
        """Return the scores of the rows held out."""
        assert self.held_scores is not None
        return np.asarray(self.held_scores.double().cpu().numpy())


class _FoldTraining:
    """All candidates on all training sets, side by side; a candidate leaves when it has become no better for long."""

    def __init__(self, head: LinearHead, rows: _Rows, candidates: list[Candidate], rng: np.random.Generator) -> None:
        import torch

        self.head, self.rows, self.rng = head, rows, rng
        self.device = torch.device(head.device)
        n, width = rows.data.shape
        self.batches = -(-n // head.batch_size)
        order = rng.permutation(n)
        whole = _Basis(rows.data)
        self.unit = whole.unit
        self.sets = []
        for fold in range(rows.n_folds):
            basis = whole if n >= _SHARED_BASIS * width else _Basis(rows.data[rows.fold != fold])
            self.sets.append(_TrainingSet(rows, fold, order, self.batches, basis, self.device))
        self.all_rows = _TrainingSet(rows, _NO_FOLD, order, self.batches, whole, self.device)
        self.truth = torch.from_numpy(rows.codes[rows.held]).to(self.device)[:, None]
        self.courses = [_Course(candidate, []) for candidate in candidates]

    def run(self) -> None:
        """Train every candidate, in groups that fit into memory."""
        rows, columns = self.all_rows.data.shape[0], self.rows.k
        width = self.all_rows.data.shape[1]
        of_one = columns * max(width * (len(self.sets) + 1), len(self.truth), min(rows, self.head.batch_size))
        size = max(1, _STATE // of_one)
        groups = [self.courses[i : i + size] for i in range(0, len(self.courses), size)]
        work = width * columns * len(groups[0]) * min(rows, self.head.batch_size)
        # A step is a dozen operations: threads pay only where each of them is large.
        with threads_for(work // _OPERATIONS_PER_STEP):
            for number, group in enumerate(groups):
                self._train(group, number, len(groups))

    def _train(self, courses: list[_Course], number: int, n_groups: int) -> None:
        import torch

        sets = [*self.sets, self.all_rows]
        for each in sets:
            each.start([course.candidate for course in courses])
        most = self.head.max_epochs * max(self.batches, _STEPS_BETWEEN_SCORES[0])
        if not self.sets:
            most = min(most, _STEPS_UNSCORED)
        due = _FIRST_SCORE
        for step in range(1, most + 1):
            if (step - 1) % self.batches == 0:
                order = self.rng.permutation(self.batches)
            for each in sets:
                each.step(int(order[(step - 1) % self.batches]))
            if step < min(due, most):
                continue
            due = max(due + 1, int(due * _SCORE_SPACING))
            self._report(number + step / most, n_groups, most)
            going = self._score(courses, step)
            if not going:
                return
            if len(going) < len(courses):
                courses = [courses[i] for i in going]
                for each in sets:
                    each.iterates.keep(torch.tensor(going, device=self.device))

    def _report(self, groups_done: float, n_groups: int, most: int) -> None:
        if self.head.progress is not None:
            total = len(self.rows.codes) * -(-most // self.batches) * n_groups
            self.head.progress(int(total * groups_done / n_groups), total)

    def _score(self, courses: list[_Course], step: int) -> list[int]:
        """Score the averages on the rows held out; return the positions of the candidates that are kept."""
        import torch

        theta = self.all_rows.iterates.average.view(-1, len(courses), self.rows.k)
        scores = theta.new_empty(len(self.truth), len(courses), self.rows.k)
        for each in self.sets:
            scores[each.held_places] = each.scores()
        total = scores.logsumexp(2)
        losses = total - scores.gather(2, self.truth[:, :, None].expand(-1, len(courses), 1))[:, :, 0]
        guarded = losses + UNSEEN_ROWS / max(len(losses), 1) * (total - scores.mean(2))
        # Where nothing is held out, every scoring counts as better than the one before.
        mean_loss = guarded.double().mean(0) if self.sets else torch.full((len(courses),), -float(step))
        finite = theta.isfinite().all(2).all(0).cpu()
        plain, right = losses.double().mean(0).tolist(), _hits(scores, self.truth).double().mean(0).tolist()
        going = []
        for i, (course, loss) in enumerate(zip(courses, mean_loss.tolist(), strict=True)):
            if not (math.isfinite(loss) and bool(finite[i])):
                continue
            rate, decay = course.candidate
            entry = {"epoch": step / self.batches, "learning_rate": rate, "weight_decay": decay}
            if self.sets:
                course.curve.append(entry | {"log_loss": plain[i], "accuracy": right[i]})
            is_better = not course.steps or loss < course.loss - _LEAST_FOLD_GAIN * abs(course.loss)
            # The first steps of momentum overshoot, and the first pass has not seen every row.
            course.stale = 0 if is_better or step <= max(_WARM_UP, self.batches) else course.stale + 1
            if loss < course.loss:
                course.loss, course.steps, course.best = loss, step, course.curve[-1] if self.sets else None
                course.held_scores, course.theta = scores[:, i].clone(), theta[:, i].clone()
            if course.stale < self.head.patience:
                going.append(i)
        return going

    def chosen(self, groups: NDArray[np.int64] | None) -> _Course:
        """Return the candidate with the strongest regularisation that cannot be distinguished from the best."""
        finished = [course for course in self.courses if course.theta is not None]
        if not finished:
            raise ValueError(_DIVERGED)
        if not self.sets:
            return finished[0]
        truth = self.truth[:, 0].cpu().numpy()
        return finished[choose([held_out(course.scores, truth) for course in finished], groups=groups)]

    def summary(self) -> list[dict[str, Any]]:
        """Return the best scoring of every candidate that ever had one."""
        return [course.best for course in self.courses if course.best is not None]

    def solution(self, course: _Course) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights (K, D) and intercepts (K,) on the features as they come."""
        assert course.theta is not None
        basis, theta = self.all_rows.basis, course.theta.double().cpu()
        weights = basis.directions @ theta[:-1]
        return weights.T.numpy(), (theta[-1] - basis.mean @ weights).numpy()


# --- many rows -----------------------------------------------------------------------------------------------


class _StreamTraining:
    """All candidates, trained side by side on rows that are streamed, in the eigenbasis of the features' covariance."""

    def __init__(
        self,
        head: LinearHead,
        rows: StreamedRows,
        codes: NDArray[np.int64],
        k: int,
        candidates: list[Candidate],
        rng: np.random.Generator,
    ) -> None:
        import torch

        self.head, self.rows, self.k, self.rng = head, rows, k, rng
        self.device = torch.device(head.device)
        self.codes = torch.from_numpy(codes)
        self.weight: torch.Tensor | None = None
        self.pairs = candidates
        self.steps = 0
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"log_loss": math.inf}
        self._candidates: list[dict[str, Any]] = [{"log_loss": math.inf} for _ in self.pairs]

    def weigh(self, weight: NDArray[np.float64]) -> None:
        """Give the rows weights, of mean one."""
        import torch

        self.weight = torch.from_numpy((weight / weight.mean()).astype(np.float32))

    def run(self, held_out: StreamedRows, truth: NDArray[np.int64]) -> None:
        """Train until the passes are used up, or nothing has become better for some time."""
        width, columns = self.rows.shape[1], len(self.pairs) * self.k
        # A step is a dozen operations: threads pay only where each of them is large, and cost much on a busy machine.
        with threads_for(width * columns * (self.head.batch_size + width) // _OPERATIONS_PER_STEP):
            self._run(held_out, truth)

    def _run(self, held_out: StreamedRows, truth: NDArray[np.int64]) -> None:
        import torch

        n_rows, head = len(self.rows), self.head
        least, most = _STEPS_BETWEEN_SCORES
        between = min(max(-(-n_rows // head.batch_size), least), most)
        codes = torch.from_numpy(truth)
        passes = head.max_epochs * max(1, -(-least * head.batch_size // n_rows))
        total = n_rows * passes
        seen = stale = 0
        for _ in range(passes):
            for batch, labels, weight in self._batches():
                self._step(batch, labels, weight)
                seen += len(labels)
                if self.steps % between:
                    continue
                if head.progress is not None:
                    head.progress(min(seen, total), total)
                stale = 0 if self._score(held_out, codes, seen / n_rows) else stale + 1
                if stale >= head.patience:
                    return
        if self.steps % between:
            self._score(held_out, codes, seen / n_rows)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Give minibatches of one pass; the first chunk also determines the covariance."""
        import torch

        size = self.head.batch_size
        for chunk in self.rows.chunks(self.rng):
            if not self.steps:
                self._learn_features(chunk.data, chunk.at)
            data = torch.from_numpy(chunk.data)
            order = self.rng.permutation(len(chunk.at))
            for start in range(0, len(order), size):
                part = order[start : start + size]
                batch = data[torch.from_numpy(chunk.at[part])].to(self.device).float()
                positions = torch.from_numpy(chunk.positions[part])
                weight = None if self.weight is None else self.weight[positions].to(self.device)
                yield batch, self.codes[positions].to(self.device), weight

    def _learn_features(self, data: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Measure mean and covariance on the first chunk, and start every candidate at the class shares."""
        import torch

        width = data.shape[1]
        count = max(_COVARIANCE_ROWS_PER_FEATURE * width, 4096)
        sample = torch.from_numpy(data[self.rng.permutation(at)[:count]]).to(self.device).float()
        self.mean = sample.mean(0)
        sample -= self.mean
        if width > _WIDEST_COVARIANCE:
            self.basis, spread = None, sample.square().mean(0)
        else:
            spread, basis = torch.linalg.eigh((sample.T @ sample).double() / len(sample))
            self.basis, spread = basis.float(), spread.clamp_min(0.0).float()
        self.unit = max(float(spread.mean()), _LEAST_UNIT)
        shares = _class_shares(self.codes, self.weight, self.k).to(self.device)
        self.iterates = _Iterates(self.pairs, shares, spread, self.unit)

    def _plain(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights (D, ·) and intercepts for the features as they come."""
        weights = theta[:-1] if self.basis is None else self.basis @ theta[:-1]
        return weights, theta[-1] - self.mean @ weights

    def _step(self, batch: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> None:
        import torch

        a, k, size = len(self.pairs), self.k, len(labels)
        theta = self.iterates.theta
        weights, intercepts = self._plain(theta)
        flat = _residual(torch.addmm(intercepts, batch, weights).view(size, a, k), labels, weight)
        gradient = torch.empty_like(theta)
        gradient[-1] = flat.sum(0)
        features = batch.T @ flat - self.mean[:, None] * gradient[-1]
        gradient[:-1] = features if self.basis is None else self.basis.T @ features
        self.iterates.step(gradient)
        self.steps += 1

    def _score(self, held_out: StreamedRows, codes: torch.Tensor, epoch: float) -> bool:
        """Score the candidates' averages on rows not trained on; say whether one is clearly better than all before."""
        import torch

        a, k = len(self.pairs), self.k
        weights, intercepts = self._plain(self.iterates.average)
        loss = torch.zeros(a, dtype=torch.float64, device=self.device)
        correct = torch.zeros(a, dtype=torch.float64, device=self.device)
        for chunk in held_out.chunks(buffer_bytes=_VALIDATION_BUFFER):
            data = torch.from_numpy(chunk.data)
            for start in range(0, len(chunk.at), self.head.batch_size):
                part = slice(start, start + self.head.batch_size)
                batch = data[torch.from_numpy(chunk.at[part])].to(self.device).float()
                truth = codes[torch.from_numpy(chunk.positions[part])].to(self.device)[:, None]
                log_p = torch.addmm(intercepts, batch, weights).view(len(batch), a, k).log_softmax(2)
                at_truth = log_p.gather(2, truth[:, :, None].expand(-1, a, 1))[:, :, 0]
                loss -= at_truth.sum(0, dtype=torch.float64)
                correct += _hits(log_p, truth).sum(0, dtype=torch.float64)
        losses, accuracies = ((sums / len(codes)).tolist() for sums in (loss, correct))
        for i, (rate, decay) in enumerate(self.pairs):
            if losses[i] < self._candidates[i]["log_loss"]:
                self._candidates[i] = {
                    "learning_rate": rate,
                    "weight_decay": decay,
                    "penalty": decay * self.unit,
                    "log_loss": losses[i],
                    "accuracy": accuracies[i],
                    "epoch": epoch,
                }
        leader = int(np.nanargmin(losses)) if np.isfinite(losses).any() else 0
        rate, decay = self.pairs[leader]
        scored = {"learning_rate": rate, "weight_decay": decay}
        self.curve.append({"epoch": epoch, **scored, "log_loss": losses[leader], "accuracy": accuracies[leader]})
        before = self.best["log_loss"]
        if losses[leader] < before:
            self.best = self._candidates[leader]
            columns = slice(leader * k, (leader + 1) * k)
            self._kept = weights[:, columns].clone(), intercepts[columns].clone()
        return bool(losses[leader] < before * (1.0 - _LEAST_GAIN))

    def candidates(self) -> list[dict[str, Any]]:
        """Return the best score of every candidate that ever had one."""
        return [entry for entry in self._candidates if "epoch" in entry]

    def solution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights (K, D) and intercepts (K,) of the best score."""
        weights, intercepts = self._kept
        return weights.T.double().cpu().numpy(), intercepts.double().cpu().numpy()


def _scores(rows: StreamedRows, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.empty((len(rows), len(intercept)))
    for chunk in rows.chunks(buffer_bytes=_VALIDATION_BUFFER):
        for start in range(0, len(chunk.at), 4096):
            part = slice(start, start + 4096)
            out[chunk.positions[part]] = linear_scores(chunk.data[chunk.at[part]], coef, intercept)
    return out


def _whole(rows: StreamedRows) -> NDArray[Any]:
    """Read all rows; refuse values that are not finite, which a file may hold."""
    held = rows.held()
    data = np.asarray(held.array[held.index])
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        raise not_finite_error(HeadError, int(rows.index[bad[0]]))
    return data


def _numbers(
    name: str, given: Any, kind: str, example: str, is_possible: Callable[[float], bool]
) -> tuple[float, ...] | None:
    """Check a setting that is "auto", a number or a sequence of numbers; None for "auto"."""
    if isinstance(given, str) and given == "auto":
        return None
    try:
        values = tuple(sorted(float(value) for value in np.atleast_1d(given)))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(math.isfinite(value) and is_possible(value) for value in values):
        raise ValueError(f"{name}: expected one or more {kind} numbers, got {given!r}: give some such as {example}")
    return values


def fit_linear(
    rows: StreamedRows, y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit `LinearHead` on rows that may be streamed; the temperature comes from the rows that it holds out."""
    if options.scaling != "none":
        raise HeadError("the linear head steps in the features' own covariance, so it takes no --scaling: leave it out")
    estimator = with_params(
        LinearHead(
            class_weight=options.class_weight,
            device=options.device,
            random_state=options.seed,
            progress=options.progress,
        ),
        options.params,
        "the linear head",
    )
    with explained(estimator):
        estimator.fit(rows, y, groups)
    estimator.set_params(progress=None)
    temperature = fit_temperature(estimator.validation_scores_, y[estimator.validation_rows_])
    warnings = []
    for name, chosen, tried in (
        ("learning_rates", estimator.learning_rate_, estimator.learning_rates_),
        ("weight_decays", estimator.weight_decay_, estimator.weight_decays_),
    ):
        if len(tried) > 2 and chosen in (tried[0], tried[-1]):
            around = ",".join(f"{factor * chosen:.3g}" for factor in (0.3, 1, 3))
            warnings.append(
                f"the best value {chosen:.3g} of {name} lies at the end of those tried: try --set '{name}=({around})'"
            )
    coef, intercept = two_columns(estimator.coef_, estimator.intercept_)
    return FittedHead(
        estimator,
        HeadModel("linear", {"coef": coef, "intercept": intercept}, "softmax", len(intercept), temperature),
        chosen={
            "learning_rate": estimator.learning_rate_,
            "weight_decay": estimator.weight_decay_,
            "equivalent_C": estimator.C_,
            "folds": estimator.n_folds_,
            "validation_rows": len(estimator.validation_rows_),
            "steps": estimator.n_iter_,
        },
        sweep=estimator.curve_,
        warnings=warnings,
    )
