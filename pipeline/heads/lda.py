"""Linear discriminant analysis, its shrinkage chosen among several from one eigendecomposition a fold.

Axes: N rows, D features, S columns of the rows as kept, K classes, A shrinkages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from pipeline.evaluation.choice import choose
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers
from pipeline.heads.base import SoftmaxHead
from pipeline.heads.choosing import NOTHING_HELD_OUT, group_numbers, measure, scored_rows, two_score_columns
from pipeline.heads.fit import FitOptions, scaled, with_params
from pipeline.heads.moments import TrainingRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.heads.moments import Moments, Target

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

SHRINKAGES: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001)


class _Discriminants:
    """The fits of all shrinkages on rows with these moments.

    ``(1 − s) S + s tr(S) / D · I`` has the eigenvectors of the pooled within-class covariance S for every s.
    """

    def __init__(self, moments: Moments, width: int, class_weight: Floats) -> None:
        count = moments.t
        means = moments.xt.T / count[:, None]
        within = (moments.xx - moments.xt @ means) / moments.weight
        values, self.vectors = np.linalg.eigh(within)
        self._values = values.clip(min=0.0)
        self._rotated_means = means @ self.vectors
        # Classes without any spread: the nearest mean.
        self._variance = float(self._values.sum()) / width or 1.0
        prior = count * class_weight
        self._log_prior = np.log(prior / prior.sum())

    def coef(self, shrinkage: float) -> tuple[Floats, Floats]:
        """Return coef (K, S) and intercept (K,); one row for two classes."""
        weighted, intercept = self.rotated_coef(shrinkage)
        return weighted @ self.vectors.T, intercept

    def rotated_coef(self, shrinkage: float) -> tuple[Floats, Floats]:
        """Return coef (K, S) in the basis of the eigenvectors, and intercept (K,)."""
        spread = (1 - shrinkage) * self._values + shrinkage * self._variance
        # Without shrinkage directions that no class varies in have no inverse; they are left out.
        kept = spread > spread.max() * len(spread) * np.finfo(np.float64).eps
        weighted = self._rotated_means * np.divide(1.0, spread, out=np.zeros_like(spread), where=kept)
        intercept = self._log_prior - 0.5 * (weighted * self._rotated_means).sum(axis=1)
        two = len(weighted) == 2
        return (weighted[1:] - weighted[:1], intercept[1:] - intercept[:1]) if two else (weighted, intercept)


class LdaHead(SoftmaxHead):
    """Linear discriminant analysis with a shrunk covariance, the shrinkage chosen by cross-validation.

    At one shrinkage it is scikit-learn's `LinearDiscriminantAnalysis` with ``solver="lsqr"``.

    Parameters
    ----------
    shrinkage : float or "auto"
        Share of the spherical covariance ``tr(S) / D · I`` mixed into the pooled within-class covariance S, in [0, 1].
        ``"auto"`` chooses among ``shrinkages``.
    shrinkages : sequence of float
        Values to try.
    class_weight : "balanced", dict or None
        Weights of the classes' shares in the prior: None takes the shares as they are, ``"balanced"`` makes all classes
        equally probable. The covariance is that of all rows in any case.
    cv : int or None
        Folds, stratified, of whole groups. None leaves nothing out and takes a single shrinkage.
    random_state : int
        Seed of the folds.

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); (1, D) and (1,) for two classes.
    shrinkage_ : float
        The value chosen, as `pipeline.evaluation.choice.choose` does.
    oof_scores_ : ndarray of shape (N, K)
        Scores of every row from the fold that did not see it, at the chosen shrinkage; NaN for rows that no fold held
        out.
    chosen_, sweep_ : dict and list of dict
        The shrinkage, and for every value tried ``shrinkage``, ``accuracy`` and ``log_loss``.

    References
    ----------
    Friedman, "Regularized discriminant analysis", JASA 84, 1989: covariances shrunk towards a multiple of the identity,
    by an amount that cross-validation chooses.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = LdaHead().fit(X, y)
    >>> head.score(X, y) > 0.95
    True
    """

    takes_groups = True
    scale_is_known = False
    """A covariance of few rows makes the scores far too sure: the temperature must be free."""

    def __init__(
        self,
        *,
        shrinkage: float | Literal["auto"] = "auto",
        shrinkages: Sequence[float] = SHRINKAGES,
        class_weight: Any = None,
        cv: int | None = 5,
        random_state: int = 0,
    ) -> None:
        self.shrinkage = shrinkage
        self.shrinkages = shrinkages
        self.class_weight = class_weight
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose the shrinkage on folds of the rows given, then fit them all.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        groups : array-like of shape (N,), optional
            Rows of one group share a fold.

        Raises
        ------
        ValueError
            scikit-learn's own; for a shrinkage outside [0, 1]; where there is something to choose and every class has a
            single row or group.
        """
        data, codes = self._validate(X, y)
        tried = self._values()
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[codes])
        rows = TrainingRows(data, _indicators(codes, len(self.classes_)), np.ones(len(data)))
        fold = self._folds(codes, groups)
        total, outside = rows.fold_moments(fold)
        fits = {k: _Discriminants(part, data.shape[1], weight) for k, part in outside.items()}
        self.oof_scores_ = np.full((len(codes), len(self.classes_)), np.nan)
        self.shrinkage_ = tried[0]
        self.sweep_: list[dict[str, float]] = []
        if fits:
            self._choose(_HeldOutFolds(rows, fold, fits), tried, codes, groups)
        elif len(tried) > 1:
            raise ValueError(NOTHING_HELD_OUT)
        self.chosen_ = {"shrinkage": self.shrinkage_}
        self.coef_, self.intercept_ = rows.as_given(*_Discriminants(total, data.shape[1], weight).coef(self.shrinkage_))
        return self

    def at_chosen(self) -> LdaHead:
        """Return a head at the chosen shrinkage, to be fitted to other rows; it leaves none out."""
        return LdaHead(shrinkage=self.shrinkage_, class_weight=self.class_weight, cv=None)

    def _values(self) -> list[float]:
        """Return the shrinkages to try, the strongest first."""
        if isinstance(self.shrinkage, str) and self.shrinkage != "auto":
            raise ValueError(f"shrinkage must be 'auto' or a number from 0 to 1, got {self.shrinkage!r}")
        given = self.shrinkages if isinstance(self.shrinkage, str) else [self.shrinkage]
        values = np.asarray(given, dtype=np.float64)
        if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"shrinkage must be 'auto' or a number from 0 to 1, got {given!r}")
        if self.cv is None and len(values) > 1:
            raise ValueError(f"without cv there is nothing to choose among {len(values)} shrinkages: give one")
        return [float(value) for value in -np.unique(-values)]

    def _folds(self, codes: Ints, groups: ArrayLike | None) -> Ints:
        n_folds = 0 if self.cv is None else fold_count(codes, self.cv, groups)
        if n_folds < 2:
            return np.full(len(codes), ALWAYS_TRAINS)
        return fold_numbers(codes, n_folds, seed=self.random_state, groups=groups)

    def _choose(self, folds: _HeldOutFolds, tried: list[float], codes: Ints, groups: ArrayLike | None) -> None:
        """Choose the shrinkage, and score the rows held out at it."""
        k = len(self.classes_)
        scored = np.flatnonzero(folds.fold != ALWAYS_TRAINS)
        some = scored_rows(scored, k, len(tried))
        kept = np.zeros((len(tried), len(some), 1 if k == 2 else k), dtype=np.float32)
        for part, number, scores in folds.scores(some, tried):
            kept[number, np.searchsorted(some, part)] = scores
        measured = [measure(two_score_columns(one), codes[some], log_probabilities=False) for one in kept]
        best = choose(measured, groups=group_numbers(groups, some))
        self.shrinkage_ = tried[best]
        self.sweep_ = [
            {"shrinkage": value, "accuracy": m.accuracy, "log_loss": m.log_loss}
            for value, m in zip(tried, measured, strict=True)
        ]
        self.oof_scores_[some] = two_score_columns(kept[best])
        for part, _, scores in folds.scores(np.setdiff1d(scored, some), [self.shrinkage_]):
            self.oof_scores_[part] = two_score_columns(scores)


class _HeldOutFolds:
    """Scores of the rows of each fold from the fit that did not see them."""

    def __init__(self, rows: TrainingRows, fold: Ints, fits: dict[int, _Discriminants]) -> None:
        self.rows, self.fold, self.fits = rows, fold, fits

    def scores(self, wanted: Ints, shrinkages: Sequence[float]) -> Iterator[tuple[Ints, int, Floats]]:
        """Return (row numbers, number of the shrinkage, scores) block by block."""
        for fold, fit in self.fits.items():
            its = wanted[self.fold[wanted] == fold]
            # Rotate the rows or the weights of all classes, whichever are fewer.
            rotates_rows = len(its) < self.rows.n_targets * len(shrinkages)
            weights = [fit.rotated_coef(each) if rotates_rows else fit.coef(each) for each in shrinkages]
            for part, block in self.rows.blocks(its):
                rotated = block @ fit.vectors if rotates_rows else block
                for number, (coef, intercept) in enumerate(weights):
                    yield part, number, rotated @ coef.T + intercept


def _indicators(codes: Ints, n_classes: int) -> Target:
    """Return the targets whose sums are the classes' row counts and feature sums."""

    def target(rows: Ints) -> Floats:
        out = np.zeros((len(rows), n_classes))
        out[np.arange(len(rows)), codes[rows]] = 1.0
        return out

    return target


def make_lda(options: FitOptions) -> Any:
    """Return the unfitted head of these options."""
    estimator = LdaHead(class_weight=options.class_weight, cv=options.folds, random_state=options.seed)
    return scaled(with_params(estimator, options.params, "the lda head"), options)
