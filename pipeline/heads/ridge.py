"""Least squares with L2: classes or numbers, the strength chosen among many from one eigendecomposition.

Axes: N rows, D features, T targets (classes, labels or numbers), A strengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.evaluation.choice import choose
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers
from pipeline.heads.base import LinearClassHead
from pipeline.heads.choosing import NOTHING_HELD_OUT, group_numbers, measure, scored_rows, two_score_columns
from pipeline.heads.fit import FitOptions, refuse_class_weights, scaled, with_params
from pipeline.heads.model import linear_scores
from pipeline.heads.moments import TrainingRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.heads.moments import Moments, Target

    Floats = NDArray[np.float64]

DEFAULT_ALPHAS: tuple[float, ...] = tuple(10.0**e for e in range(-3, 8))
GROUP_FOLDS = 5


class _Path:
    """The fits of all strengths on rows with these moments.

    With V and values of the centred second moment, ``coef(alpha) = V @ (rotated / (values + alpha))``.
    """

    def __init__(self, moments: Moments, alphas: Floats) -> None:
        self.mean, self.target_mean = moments.x / moments.weight, moments.t / moments.weight
        values, self.vectors = np.linalg.eigh(moments.xx - np.outer(moments.x, self.mean))
        self.rotated = self.vectors.T @ (moments.xt - np.outer(moments.x, self.target_mean))
        self.shrink = 1.0 / (values.clip(min=0.0)[:, None] + alphas)
        self.weight = moments.weight

    def rotate(self, block: Floats) -> Floats:
        """Return rows in the basis V."""
        return np.asarray((block - self.mean) @ self.vectors)

    def predicted(self, rotated_rows: Floats, number: int) -> Floats:
        """Return the predictions of one strength."""
        return np.asarray(rotated_rows @ (self.rotated * self.shrink[:, number : number + 1]) + self.target_mean)

    def left_out(self, rotated_rows: Floats, target: Floats, weight: Floats, number: int) -> Floats:
        """Return what one strength predicts of rows of the fit itself, each as if it had been left out."""
        # The intercept's own leverage is w / W.
        leverage = weight * (rotated_rows**2 @ self.shrink[:, number] + 1.0 / self.weight)
        residual = target - self.predicted(rotated_rows, number)
        return np.asarray(target - residual / np.maximum(1 - leverage, 1e-9)[:, None])

    def coef(self, number: int) -> tuple[Floats, Floats]:
        coef = (self.vectors @ (self.rotated * self.shrink[:, number : number + 1])).T
        return coef, self.target_mean - coef @ self.mean


class _LeftOut:
    """All strengths on all rows, and their predictions of rows left out: one at a time, or a fold at a time.

    The predictions are those of the refits: in closed form for one row, by taking its moments away for a fold.
    """

    def __init__(self, rows: TrainingRows, alphas: Floats, fold: NDArray[np.int64] | None) -> None:
        self._rows, self._fold = rows, fold
        if fold is None:
            self.whole = _Path(rows.moments(np.arange(len(rows.weight))), alphas)
        else:
            total, outside = rows.fold_moments(fold)
            self.whole = _Path(total, alphas)
            self._outside = {number: _Path(moments, alphas) for number, moments in outside.items()}

    def predictions(self, wanted: NDArray[np.int64], numbers: Sequence[int]) -> Iterator[tuple[Any, int, Floats]]:
        """Return (row numbers, number of the strength, predictions) block by block."""
        if self._fold is None:
            for part, block in self._rows.blocks(wanted):
                rotated_rows, target = self.whole.rotate(block), self._rows.target(part)
                for number in numbers:
                    yield part, number, self.whole.left_out(rotated_rows, target, self._rows.weight[part], number)
            return
        for fold, path in self._outside.items():
            for part, block in self._rows.blocks(wanted[self._fold[wanted] == fold]):
                rotated_rows = path.rotate(block)
                for number in numbers:
                    yield part, number, path.predicted(rotated_rows, number)

    def all_predictions(self, wanted: NDArray[np.int64], n_alphas: int) -> NDArray[np.float32]:
        """Return the predictions (A, n, T) of every strength."""
        out = np.zeros((n_alphas, len(wanted), self._rows.n_targets), dtype=np.float32)
        for part, number, predicted in self.predictions(wanted, range(n_alphas)):
            out[number, np.searchsorted(wanted, part)] = predicted
        return out

    def squared_errors(self, wanted: NDArray[np.int64], n_alphas: int) -> Floats:
        """Return the mean squared error (A,) of every strength."""
        error = np.zeros(n_alphas)
        for part, number, predicted in self.predictions(wanted, range(n_alphas)):
            squared = (self._rows.target(part) - predicted) ** 2
            error[number] += (self._rows.weight[part][:, None] * squared).sum()
        return np.asarray(error / (self._rows.weight[wanted].sum() * self._rows.n_targets))


def _strengths(alphas: Sequence[float]) -> Floats:
    """Check the strengths."""
    out = np.asarray(alphas, dtype=np.float64)
    if out.ndim != 1 or not len(out) or not (np.isfinite(out) & (out > 0)).all():
        raise ValueError(f"alphas must be a list of positive numbers, got {alphas!r}")
    return out


def _group_folds(numbers: Floats, groups: ArrayLike | None) -> NDArray[np.int64] | None:
    """Return folds of whole groups, or None where every row is its own."""
    if groups is None or len(np.unique(np.asarray(groups))) in (1, len(numbers)):
        return None
    parts = min(GROUP_FOLDS, len(np.unique(np.asarray(groups))))
    return fold_numbers(numbers, parts, seed=0, groups=groups, stratify=False)


def _sweep(alphas: Floats, error: Floats) -> list[dict[str, float]]:
    return [{"alpha": float(a), "squared_error": float(e)} for a, e in zip(alphas, error, strict=True)]


class RidgeHead(LinearClassHead):
    """Least squares on ±1 targets, the strength of L2 chosen by the accuracy and log loss of rows left out.

    One eigendecomposition of the centred XᵀX serves every strength: with V its eigenvectors, the leverages and
    residuals of any strength come from XV, read block by block.

    Parameters
    ----------
    alphas : sequence of float
        Strengths to try.
    class_weight : "balanced", dict or None
        As in scikit-learn.
    cv : int or None
        Folds where there are groups; without groups each row is left out by itself. None leaves nothing out and takes a
        single strength.

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); (1, D) and (1,) for two classes.
    alpha_ : float
        The strength chosen, as `pipeline.evaluation.choice.choose` does.
    loo_error_ : ndarray of shape (n_alphas,)
        Mean squared error of every strength on rows left out: one at a time, or folds of whole groups.
    oof_scores_ : ndarray of shape (N, K)
        Scores of every row as if it (or its fold) had been left out, at the chosen strength; NaN for a row whose class
        has no other.
    chosen_, sweep_ : dict and list of dict
        The strength, and for every strength ``alpha``, ``accuracy``, ``log_loss`` and ``squared_error``.

    Notes
    -----
    With thousands of classes the choice, and ``loo_error_``, rest on a sample of the rows, so that their scores at all
    strengths stay within 128 MB.

    References
    ----------
    Rifkin and Lippert, "Notes on regularized least squares", MIT-CSAIL-TR-2007-025, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> float(RidgeHead().fit(X, y).score(X, y)) > 0.8
    True
    """

    takes_groups = True

    def __init__(
        self, *, alphas: Sequence[float] = DEFAULT_ALPHAS, class_weight: Any = None, cv: int | None = GROUP_FOLDS
    ) -> None:
        self.alphas = alphas
        self.class_weight = class_weight
        self.cv = cv

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit all strengths, keep the best.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        groups : array-like of shape (N,), optional
            Rows of one group are left out together.

        Raises
        ------
        ValueError
            scikit-learn's own; for a strength that is not positive; where there is something to choose and every
            class has a single row or group.
        """
        data, codes = self._validate(X, y)
        alphas = _strengths(self.alphas)
        if self.cv is None and len(alphas) > 1:
            raise ValueError(f"without cv there is nothing to choose among {len(alphas)} alphas: give one")
        weight = compute_sample_weight(self.class_weight, self.classes_[codes])
        rows = TrainingRows(data, _signs(codes, len(self.classes_)), weight)
        fold, scored = self._left_out(codes, groups)
        fits = _LeftOut(rows, alphas, fold)
        self.oof_scores_ = np.full((len(codes), len(self.classes_)), np.nan)
        self.alpha_ = float(alphas[0])
        self.sweep_: list[dict[str, float]] = []
        if self.cv is not None and len(scored):
            self._choose(rows, fits, codes, groups, scored)
        elif len(alphas) > 1:
            raise ValueError(NOTHING_HELD_OUT)
        chosen = int(np.flatnonzero(alphas == self.alpha_)[0])
        self.chosen_ = {"alpha": self.alpha_}
        self.coef_, self.intercept_ = rows.as_given(*fits.whole.coef(chosen))
        return self

    def at_chosen(self) -> RidgeHead:
        """Return a head at the chosen strength, to be fitted to other rows; it leaves none out."""
        return RidgeHead(alphas=(self.alpha_,), class_weight=self.class_weight, cv=None)

    def _left_out(
        self, codes: NDArray[np.int64], groups: ArrayLike | None
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Return folds of whole groups (or None: each row by itself), and the rows left out."""
        if groups is None or self.cv is None or len(np.unique(np.asarray(groups))) == len(codes):
            return None, np.flatnonzero(np.bincount(codes)[codes] > 1)
        n_folds = fold_count(codes, self.cv, groups)
        if n_folds < 2:
            return None, np.zeros(0, dtype=np.int64)
        fold = fold_numbers(codes, n_folds, seed=0, groups=groups)
        return fold, np.flatnonzero(fold != ALWAYS_TRAINS)

    def _choose(
        self,
        rows: TrainingRows,
        fits: _LeftOut,
        codes: NDArray[np.int64],
        groups: ArrayLike | None,
        scored: NDArray[np.int64],
    ) -> None:
        """Choose the strength, and score the rows left out at it."""
        k, alphas = len(self.classes_), _strengths(self.alphas)
        some = scored_rows(scored, k, len(alphas))
        kept = fits.all_predictions(some, len(alphas))
        weight = rows.weight[some] / rows.weight[some].sum()
        self.loo_error_ = np.asarray([weight @ ((rows.target(some) - one) ** 2).mean(axis=1) for one in kept])
        measured = [measure(two_score_columns(one), codes[some], log_probabilities=False) for one in kept]
        order = np.argsort(-alphas, kind="stable")
        # One row out of few moves the accuracy far: the log loss chose better settings on small data.
        best = choose([measured[i] for i in order], by="log_loss", groups=group_numbers(groups, some))
        chosen = int(order[best])
        self.alpha_ = float(alphas[chosen])
        self.sweep_ = [
            {"alpha": float(a), "accuracy": m.accuracy, "log_loss": m.log_loss, "squared_error": float(e)}
            for a, m, e in zip(alphas, measured, self.loo_error_, strict=True)
        ]
        self.oof_scores_[some] = two_score_columns(kept[chosen])
        if len(some) < len(scored):
            for part, _, predicted in fits.predictions(np.setdiff1d(scored, some), [chosen]):
                self.oof_scores_[part] = two_score_columns(predicted)


def _signs(codes: NDArray[np.int64], n_classes: int) -> Target:
    """Return the targets of least squares: 1 for the row's class and −1 for the others; for two classes one column."""

    def target(rows: NDArray[np.int64]) -> Floats:
        if n_classes == 2:
            return np.where(codes[rows, None] == 1, 1.0, -1.0)
        out = np.full((len(rows), n_classes), -1.0)
        out[np.arange(len(rows)), codes[rows]] = 1.0
        return out

    return target


class RidgeRegressionHead(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Least squares on numbers, the strength of L2 chosen by the leave-one-out error of all rows.

    Parameters
    ----------
    alphas : sequence of float
        Strengths to try; one is taken for all targets.

    Attributes
    ----------
    coef_ : ndarray of shape (D,) or (T, D)
        Weights.
    intercept_ : float or ndarray of shape (T,)
        Intercepts.
    alpha_ : float
        The strength with the smallest error.
    loo_error_ : ndarray of shape (n_alphas,)
        Mean squared error of every strength on rows left out: one at a time, or 5 folds of whole groups.

    References
    ----------
    Rifkin and Lippert, "Notes on regularized least squares", MIT-CSAIL-TR-2007-025, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> float(RidgeRegressionHead().fit(X, y).score(X, y)) > 0.5
    True
    """

    takes_groups = True

    def __init__(self, *, alphas: Sequence[float] = DEFAULT_ALPHAS) -> None:
        self.alphas = alphas

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit all strengths, keep the best.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,) or (N, T)
            Numbers.
        groups : array-like of shape (N,), optional
            Rows of one group are left out together.
        """
        data, numbers = validate_data(
            self, X, y, dtype=np.float32, order="C", multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        table = np.asarray(numbers, dtype=np.float64).reshape(len(data), -1)
        alphas = _strengths(self.alphas)
        rows = TrainingRows(data, lambda some: table[some], np.ones(len(data)))
        fits = _LeftOut(rows, alphas, _group_folds(table[:, 0], groups))
        self.loo_error_ = fits.squared_errors(np.arange(len(data)), len(alphas))
        coef, intercept = rows.as_given(*fits.whole.coef(int(self.loo_error_.argmin())))
        self.alpha_, self.sweep_ = float(alphas[self.loo_error_.argmin()]), _sweep(alphas, self.loo_error_)
        single = np.ndim(numbers) == 1
        self.coef_: Floats = coef[0] if single else coef
        self.intercept_: Any = float(intercept[0]) if single else intercept
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return numbers (N,) or (N, T)."""
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        out = linear_scores(data, np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        return out[:, 0] if self.coef_.ndim == 1 else out


def make_ridge(options: FitOptions) -> Any:
    """Return the unfitted head of classes of these options."""
    estimator = RidgeHead(class_weight=options.class_weight, cv=options.folds)
    return scaled(with_params(estimator, options.params, "the ridge head"), options)


def make_ridge_regression(options: FitOptions) -> Any:
    """Return the unfitted head of numbers of these options."""
    refuse_class_weights(options, "ridge regression")
    return scaled(with_params(RidgeRegressionHead(), options.params, "the ridge head"), options)
