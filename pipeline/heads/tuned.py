"""Settings of a scikit-learn classifier chosen by cross-validation, on a sample where there are many rows.

Axes: N rows, D features, K classes, A candidates.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from pipeline.evaluation.choice import choose
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers
from pipeline.heads.base import ClassHead
from pipeline.heads.choosing import NOTHING_HELD_OUT, group_numbers, measure
from pipeline.heads.fit import FitOptions, FittedHead, refuse_class_weights, scaled, with_params
from pipeline.heads.model import HeadModel, two_columns
from pipeline.heads.sklearn import linear_arrays, scores_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.heads.fit import Fitter

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Settings = dict[str, Any]

_CALIBRATION_FOLDS = 10
"""With more rows than choose, one fit on all but a tenth gives the scores for calibration."""

_SMALL = 1 << 21
"""Values of training data up to which one thread fits."""


def _has(name: str) -> Callable[[Any], bool]:
    return lambda tuned: hasattr(getattr(tuned, "best_estimator_", tuned.estimator), name)


class Tuned(ClassHead):
    """A scikit-learn classifier with settings chosen by cross-validation on the training rows.

    Parameters
    ----------
    estimator : object
        Classifier, or pipeline that ends with one.
    candidates : sequence of dict, or callable
        Settings of the classifier to try, from the strongest regularisation to the weakest; or a function of the
        classes (N,) that returns them. One candidate is not a choice: it is taken.
    cv : int
        Folds, stratified, of whole groups.
    most_rows : int
        Rows that choose, at most: a sample of each class, of whole groups.
    margins : bool
        Whether the scores are margins, which have no scale of their own, and not log-probabilities.
    random_state : int
        Seed of the sample and of the folds.

    Attributes
    ----------
    best_estimator_ : object
        The scikit-learn estimator with the settings chosen, fitted on all rows.
    oof_scores_ : ndarray of shape (N, K)
        Scores of each row from a fit that did not see it, at the chosen settings; NaN for rows not scored. With more
        than ``most_rows`` rows a tenth of them is scored, from one fit on the others: scores of fits on a small sample
        would need another temperature.
    chosen_, sweep_ : dict and list of dict
        The settings, and for every candidate these, ``accuracy``, ``log_loss`` and ``converged``.
    """

    takes_groups = True

    def __init__(
        self,
        estimator: Any,
        candidates: Sequence[Settings] | Callable[[Ints], Sequence[Settings]],
        *,
        cv: int = 5,
        most_rows: int = 3000,
        margins: bool = False,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.candidates = candidates
        self.cv = cv
        self.most_rows = most_rows
        self.margins = margins
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose on folds of the rows given (or of a sample), then fit them all.

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
            scikit-learn's own; where there is something to choose and every class has a single row or group.
        """
        data, codes = self._validate(X, y)
        candidates = list(self.candidates(codes) if callable(self.candidates) else self.candidates)
        unit = np.arange(len(codes)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        some = _sample(codes, unit.ravel(), self.most_rows, self.random_state)
        whole = len(some) == len(codes)
        self.oof_scores_ = np.full((len(codes), len(self.classes_)), np.nan)
        self.sweep_: list[Settings] = []
        best = 0
        if len(candidates) > 1 or whole:
            best = self._choose(data, codes, None if groups is None else unit.ravel(), some, candidates, keep=whole)
        self.chosen_ = _plain(candidates[best])
        if not whole:
            self._score_a_tenth(data, codes, unit.ravel())
        self.best_estimator_ = self._fit_all(data, self.classes_[codes])
        return self

    def at_chosen(self) -> Any:
        """Return the scikit-learn estimator with the chosen settings, to be fitted to other rows."""
        return self._with(self.chosen_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of every row."""
        check_is_fitted(self)
        return np.asarray(self.best_estimator_.predict(X))

    @available_if(_has("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the scores: (N, K), or (N,) for two classes."""
        check_is_fitted(self)
        return np.asarray(self.best_estimator_.decision_function(X))

    @available_if(_has("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return class probabilities (N, K)."""
        check_is_fitted(self)
        return np.asarray(self.best_estimator_.predict_proba(X))

    @property
    def coef_(self) -> Floats:
        """Weights of a linear classifier, on the features as they are."""
        return linear_arrays(self.best_estimator_)[0]

    @property
    def intercept_(self) -> Floats:
        """Intercepts of a linear classifier, on the features as they are."""
        return linear_arrays(self.best_estimator_)[1]

    def _with(self, settings: Settings) -> Any:
        out = clone(self.estimator)
        _last(out).set_params(**settings)
        return out

    def _choose(
        self,
        data: NDArray[np.float32],
        codes: Ints,
        groups: Ints | None,
        some: Ints,
        candidates: list[Settings],
        *,
        keep: bool,
    ) -> int:
        """Score every candidate on folds of some rows; return the number of the best, and keep its scores if asked."""
        its_groups = None if groups is None else groups[some]
        n_folds = fold_count(codes[some], self.cv, its_groups)
        if n_folds < 2:
            if len(candidates) > 1:
                raise ValueError(NOTHING_HELD_OUT)
            return 0
        fold = fold_numbers(codes[some], n_folds, seed=self.random_state, groups=its_groups)
        held = fold != ALWAYS_TRAINS
        measured, converged, kept = [], [], []
        for settings in candidates:
            scores, complete = self._cross_validate(data[some], codes[some], fold, settings)
            measured.append(measure(scores[held], codes[some][held], log_probabilities=not self.margins))
            converged.append(complete)
            kept.append(scores.astype(np.float32))
        best = choose(measured, usable=converged, groups=group_numbers(groups, some[held]))
        self.sweep_ = [
            {**_plain(settings), "accuracy": m.accuracy, "log_loss": m.log_loss, "converged": complete}
            for settings, m, complete in zip(candidates, measured, converged, strict=True)
        ]
        if keep:
            self.oof_scores_[some] = kept[best]
        return best

    def _cross_validate(
        self, data: NDArray[np.float32], codes: Ints, fold: Ints, settings: Settings
    ) -> tuple[Floats, bool]:
        """Return held-out scores (n, K), NaN for rows of no fold, and whether all fits converged."""
        scores, complete = np.full((len(codes), len(self.classes_)), np.nan), True
        for number in np.unique(fold[fold != ALWAYS_TRAINS]):
            its = fold == number
            fitted, unconverged = _quietly(self._with(settings), data[~its], codes[~its])
            complete = complete and not unconverged
            scores[its] = self._scores(fitted, data[its])
        return scores, complete

    def _score_a_tenth(self, data: NDArray[np.float32], codes: Ints, unit: Ints) -> None:
        n_folds = fold_count(codes, _CALIBRATION_FOLDS, unit)
        if n_folds < 2:
            return
        its = fold_numbers(codes, n_folds, seed=self.random_state, groups=unit) == 0
        fitted, _ = _quietly(self.at_chosen(), data[~its], codes[~its])
        self.oof_scores_[its] = self._scores(fitted, data[its])

    def _scores(self, fitted: Any, data: NDArray[np.float32]) -> Floats:
        method = "decision_function" if self.margins else "predict_proba"
        return scores_of(fitted, data, "softmax", len(self.classes_), method)

    def _fit_all(self, data: NDArray[np.float32], target: NDArray[Any]) -> Any:
        """Fit all rows; say what to type where that does not converge."""
        fitted, failed = _quietly(self.at_chosen(), data, target)
        if failed:
            iterations = _last(fitted).get_params().get("max_iter")
            todo = f"try --set max_iter={4 * iterations}" if iterations else "raise its iterations with --set"
            warnings.warn(
                f"the fit on all rows did not converge within {iterations} iterations: {todo}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return fitted


def _without(candidates: Sequence[Settings], fixed: Any) -> list[Settings]:
    """Return the candidates without settings that are fixed, each once.

    Examples
    --------
    >>> _without([{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}], {"b": 5})
    [{'a': 1}, {'a': 2}]
    """
    out: list[Settings] = []
    for settings in candidates:
        rest = {key: value for key, value in settings.items() if key not in fixed}
        if rest not in out:
            out.append(rest)
    return out


def _quietly(estimator: Any, data: NDArray[np.float32], target: NDArray[Any]) -> tuple[Any, bool]:
    """Fit; return the estimator, and whether it warned that it has not converged."""
    # Threads cost more than they save on small products, and many times that on a busy machine.
    threads = 1 if data.size < _SMALL else None
    with threadpool_limits(threads, "blas"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = estimator.fit(data, target)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn(warning.message, warning.category, stacklevel=3)
    return fitted, any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _last(estimator: Any) -> Any:
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def _plain(settings: Settings) -> Settings:
    """Return settings as JSON holds them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _sample(codes: Ints, unit: Ints, most: int, seed: int) -> Ints:
    """Return at most about ``most`` rows: of each class its share, at least two units (rows or groups), whole units."""
    if len(codes) <= most:
        return np.arange(len(codes))
    rng = np.random.default_rng(seed)
    rank = rng.permutation(int(unit.max()) + 1)
    chosen = np.zeros(len(rank), dtype=bool)
    for label in range(int(codes.max()) + 1):
        rows = np.flatnonzero(codes == label)
        rows = rows[np.argsort(rank[unit[rows]], kind="stable")]
        chosen[unit[rows[: round(most * len(rows) / len(codes))]]] = True
        seen = list(dict.fromkeys(unit[rows[: 2 + round(most * len(rows) / len(codes))]].tolist()))
        if len(seen) < 2:
            seen = np.unique(unit[rows])[:2].tolist()
        chosen[seen[:2]] = True
    return np.flatnonzero(chosen[unit])


# --- the heads that are tuned --------------------------------------------------------------------------------

_SVM_CS = tuple(10.0**e for e in range(-4, 3))
_SVM_ROWS = 3000


def make_svm(options: FitOptions) -> Any:
    """Return the unfitted head of these options."""
    from sklearn.svm import LinearSVC

    # The primal (dual=False) suits many rows. The tolerance is liblinear's own for this solver: a hundredth of it,
    # scikit-learn's default, takes longer and changes hardly a prediction.
    estimator = LinearSVC(dual=False, tol=0.01, class_weight=options.class_weight, random_state=options.seed)
    estimator = scaled(with_params(estimator, options.params, "the svm head"), options)
    candidates = _without([{"C": c} for c in _SVM_CS], options.params)
    return Tuned(estimator, candidates, cv=options.folds, most_rows=_SVM_ROWS, margins=True, random_state=options.seed)


_MLP_ROWS = 1000
_MLP_STOPS_EARLY_FROM = 3000


def _mlp_candidates(codes: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return settings of the MLP for these classes, the strongest regularisation first.

    With many rows a tenth of them is enough to stop early. With few rows a tenth is too noisy, and the rows are
    needed for training: the penalty is chosen instead.
    """
    count = np.bincount(codes)
    if len(codes) >= max(_MLP_STOPS_EARLY_FROM, 20 * len(count)) and count.min() >= 4:
        return [{"hidden_layer_sizes": (256,), "alpha": 1e-4, "early_stopping": True, "max_iter": 60}]
    rest = {"learning_rate_init": 3e-3, "tol": 1e-3, "early_stopping": False, "max_iter": 300}
    return [
        {"hidden_layer_sizes": (width,), "alpha": alpha, **rest}
        for alpha, width in ((10.0, 64), (1.0, 64), (1.0, 256), (0.1, 256), (0.01, 256))
    ]


def make_mlp(options: FitOptions) -> Any:
    """Return the unfitted head of these options."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    refuse_class_weights(options, "mlp")
    network = with_params(MLPClassifier(random_state=options.seed), options.params, "the mlp head")
    return Tuned(
        make_pipeline(StandardScaler(), network),
        lambda codes: _without(_mlp_candidates(codes), options.params),
        cv=options.folds,
        most_rows=_MLP_ROWS,
        random_state=options.seed,
    )


def mlp_model(pipeline: Any) -> HeadModel:
    """Take the arrays of a pipeline of StandardScaler and MLPClassifier with one hidden layer."""
    fitted = getattr(pipeline, "best_estimator_", pipeline)
    scaler, network = fitted[0], fitted[1]
    weight, bias = two_columns(network.coefs_[1].T, network.intercepts_[1])
    arrays = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "weight_0": network.coefs_[0],
        "bias_0": network.intercepts_[0],
        "weight_1": weight.T,
        "bias_1": bias,
    }
    arrays = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    return HeadModel("mlp", arrays, "softmax", len(bias))


def keep_best(fit: Fitter) -> Fitter:
    """Make a fitter keep the scikit-learn estimator that was chosen, instead of the `Tuned` that chose it."""

    def fit_plain(X: Any, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        fitted = fit(X, y, groups, options)
        return replace(fitted, estimator=fitted.estimator.best_estimator_)

    return fit_plain
