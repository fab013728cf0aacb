"""Least squares with L2: classes or numbers, the strength chosen among many from one eigendecomposition.

Axes: N rows, D features, T targets (classes, labels or numbers), A strengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.evaluation.splits import fold_numbers
from pipeline.heads.classic import LinearClassHead
from pipeline.heads.model import linear_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Target = Callable[[NDArray[np.int64]], Floats]
    """From row numbers (n,) to targets (n, T)."""

DEFAULT_ALPHAS: tuple[float, ...] = tuple(10.0**e for e in range(-3, 8))
GROUP_FOLDS = 5

_STEP_ROWS = 8192


@dataclass
class _Moments:
    """Weighted sums of rows, from which any least-squares fit of these rows follows."""

    weight: float
    x: Floats
    t: Floats
    xx: Floats
    xt: Floats

    def without(self, other: _Moments) -> _Moments:
        return _Moments(
            self.weight - other.weight, self.x - other.x, self.t - other.t, self.xx - other.xx, self.xt - other.xt
        )


class _Path:
    """The fits of all strengths on rows with these moments.

    With V and values of the centred second moment, ``coef(alpha) = V @ (rotated / (values + alpha))``.
    """

    def __init__(self, moments: _Moments, alphas: Floats) -> None:
        self.mean, self.target_mean = moments.x / moments.weight, moments.t / moments.weight
        values, self.vectors = np.linalg.eigh(moments.xx - np.outer(moments.x, self.mean))
        self.rotated = self.vectors.T @ (moments.xt - np.outer(moments.x, self.target_mean))
        self.shrink = 1.0 / (values.clip(min=0.0)[:, None] + alphas)

    def residuals(self, block: Floats, target: Floats) -> tuple[Floats, Iterator[Floats]]:
        """Return rows in the basis V, and the residuals of each strength in turn."""
        turned = (block - self.mean) @ self.vectors
        centred = target - self.target_mean
        return turned, (centred - turned @ (self.rotated * shrink[:, None]) for shrink in self.shrink.T)

    def coef(self, number: int) -> tuple[Floats, Floats]:
        coef = (self.vectors @ (self.rotated * self.shrink[:, number : number + 1])).T
        return coef, self.target_mean - coef @ self.mean


def _fit_ridge(
    data: NDArray[np.float32],
    target: Target,
    alphas: Floats,
    weight: Floats,
    fold: NDArray[np.int64] | None,
) -> tuple[Floats, Floats, Floats]:
    """Return coef (T, D), intercept (T,) of the best strength, and the squared error of every strength (A,).

    The error is that of leaving each row out, in closed form, or each fold, by taking its moments away.
    """
    shift = data.mean(axis=0, dtype=np.float64)

    def blocks(rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats, Floats]]:
        for start in range(0, len(rows), _STEP_ROWS):
            part = rows[start : start + _STEP_ROWS]
            yield part, data[part] - shift, target(part)

    def moments(rows: NDArray[np.int64]) -> _Moments:
        width, n_targets = data.shape[1], target(rows[:1]).shape[1]
        total = _Moments(0.0, *(np.zeros(s) for s in ((width,), (n_targets,), (width, width), (width, n_targets))))
        for part, block, values in blocks(rows):
            w = weight[part]
            heavy = block * w[:, None]
            total.weight += w.sum()
            total.x += heavy.sum(axis=0)
            total.t += w @ values
            total.xx += heavy.T @ block
            total.xt += heavy.T @ values
        return total

    every = np.arange(len(data))
    error = np.zeros(len(alphas))
    if fold is None:
        whole = moments(every)
        path = _Path(whole, alphas)
        for part, block, values in blocks(every):
            w = weight[part]
            turned, residuals = path.residuals(block, values)
            # The intercept's own leverage is w / W.
            leverage = w[:, None] * (turned**2 @ path.shrink + 1.0 / whole.weight)
            for number, residual in enumerate(residuals):
                left_out = residual / np.maximum(1 - leverage[:, number : number + 1], 1e-9)
                error[number] += (w[:, None] * left_out**2).sum()
    else:
        parts = [moments(np.flatnonzero(fold == number)) for number in np.unique(fold)]
        whole = _Moments(*(sum(getattr(p, f) for p in parts) for f in ("weight", "x", "t", "xx", "xt")))
        path = _Path(whole, alphas)
        for number, held_out in zip(np.unique(fold), parts, strict=True):
            others = _Path(whole.without(held_out), alphas)
            for part, block, values in blocks(np.flatnonzero(fold == number)):
                _, residuals = others.residuals(block, values)
                error += [(weight[part][:, None] * residual**2).sum() for residual in residuals]
    error /= whole.weight * len(whole.t)
    coef, intercept = path.coef(int(error.argmin()))
    return coef, intercept - coef @ shift, error


def _group_folds(strata: NDArray[Any], groups: ArrayLike | None, *, stratify: bool) -> NDArray[np.int64] | None:
    """Return folds of whole groups, or None where every row is its own."""
    if groups is None or len(np.unique(np.asarray(groups))) in (1, len(strata)):
        return None
    parts = min(GROUP_FOLDS, len(np.unique(np.asarray(groups))))
    return fold_numbers(strata, parts, seed=0, groups=groups, stratify=stratify)


def _sweep(alphas: Floats, error: Floats) -> list[dict[str, float]]:
    return [{"alpha": float(a), "squared_error": float(e)} for a, e in zip(alphas, error, strict=True)]


class RidgeHead(LinearClassHead):
    """Least squares on ±1 targets, the strength of L2 chosen by the leave-one-out error of all rows.

    One eigendecomposition of the centred XᵀX serves every strength: with V its eigenvectors, the leverages and
    residuals of any strength come from XV, read block by block.

    Parameters
    ----------
    alphas : sequence of float
        Strengths to try.
    class_weight : "balanced", dict or None
        As in scikit-learn.

    Attributes
    ----------
    alpha_ : float
        The strength with the smallest error.
    loo_error_ : ndarray of shape (n_alphas,)
        Mean squared error of every strength on rows left out: one at a time, or 5 folds of whole groups.

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

    def __init__(self, *, alphas: Sequence[float] = DEFAULT_ALPHAS, class_weight: Any = None) -> None:
        self.alphas = alphas
        self.class_weight = class_weight

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
        """
        data, codes = self._validate(X, y)
        k = len(self.classes_)

        def target(rows: NDArray[np.int64]) -> Floats:
            out = np.full((len(rows), k), -1.0)
            out[np.arange(len(rows)), codes[rows]] = 1.0
            return out

        weight = compute_sample_weight(self.class_weight, self.classes_[codes])
        alphas = np.asarray(self.alphas, dtype=np.float64)
        fold = _group_folds(codes, groups, stratify=True)
        self.coef_, self.intercept_, self.loo_error_ = _fit_ridge(data, target, alphas, weight, fold)
        self.alpha_, self.sweep_ = float(alphas[self.loo_error_.argmin()]), _sweep(alphas, self.loo_error_)
        return self


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
        alphas = np.asarray(self.alphas, dtype=np.float64)
        fold = _group_folds(table[:, 0], groups, stratify=False)
        coef, intercept, self.loo_error_ = _fit_ridge(data, lambda rows: table[rows], alphas, np.ones(len(data)), fold)
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
