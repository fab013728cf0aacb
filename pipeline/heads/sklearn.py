"""Fitting any scikit-learn estimator as a head, and taking its arrays where it is linear.

Axes: N rows, D features, K classes, L labels.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import counted
from pipeline.errors import HeadError, first_line, near_names
from pipeline.evaluation.calibration import softmax
from pipeline.evaluation.splits import fold_numbers
from pipeline.heads.fit import MANY_CLASSES, FittedHead, explained, scaled, with_params
from pipeline.heads.model import HeadModel, two_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.heads.fit import FitOptions, Fitter

    Data = NDArray[np.float32]
    Scores = NDArray[np.float64]

_LARGEST_LOGIT = 36.0
"""Logit of the largest probability below one in float64."""
_CHECK_ROWS = 256
_LEAST_AGREEMENT = 0.9
"""Share of rows on which scores must lead to the predicted class: some estimators break ties in another way."""


class EstimatorModel(HeadModel):
    """A head that only its own scikit-learn estimator can evaluate.

    ``notes["estimator"]`` is the estimator, ``notes["method"]`` the method that gives its scores.
    """

    @property
    def width_of_view(self) -> int:
        """Return D."""
        return int(self.notes["estimator"].n_features_in_)

    def _scores(self, X: NDArray[Any]) -> Scores:
        estimator = self.notes["estimator"]
        with explained(estimator):
            return _finite(scores_of(estimator, X, self.link, self.outputs, self.notes["method"]))


METHODS = ("decision_function", "predict_proba", "predict")
"""Methods that can give scores, the preferred one first."""


def scores_of(estimator: Any, X: NDArray[Any], link: str, outputs: int, method: str) -> Scores:
    """Return the scores of an estimator for every row, in the form that the link expects.

    Parameters
    ----------
    estimator : object
        Fitted on classes 0 … K−1, on an indicator matrix (N, L), or on numbers.
    X : ndarray of shape (N, D)
        Features.
    link : str
        ``"softmax"``, ``"sigmoid"`` or ``"identity"``.
    outputs : int
        K, L or the number of targets.
    method : str
        One of ``METHODS``.

    Returns
    -------
    ndarray of shape (N, outputs), float64
        The decision function, log-probabilities (logits for labels), or for the method ``"predict"`` the numbers, and
        of classes and labels all weight on what is predicted.

    Raises
    ------
    ValueError
        The method gives no column for each output.
    """
    from sklearn.base import is_regressor

    found = np.asarray(getattr(estimator, method)(X))
    if link == "identity" or is_regressor(estimator):
        return found.astype(np.float64).reshape(len(X), outputs)
    if method == "decision_function":
        scores = found.astype(np.float64)
        if scores.ndim == 1 and outputs == 2 and link == "softmax":
            return np.stack([np.zeros_like(scores), scores], axis=1)
        if scores.shape != (len(X), outputs):
            raise ValueError(f"expected scores of shape {(len(X), outputs)}, found {scores.shape}")
        return scores
    share = found.astype(np.float64)
    if method == "predict" and link == "softmax":
        share = np.eye(outputs)[found.astype(np.int64)]
    if share.shape != (len(X), outputs):
        raise ValueError(f"expected probabilities of shape {(len(X), outputs)}, found {share.shape}")
    if link == "softmax":
        return np.log(np.clip(share, 1e-12, 1.0))
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(share) - np.log1p(-share), -_LARGEST_LOGIT, _LARGEST_LOGIT))


def scoring_method(estimator: Any, X: NDArray[Any], link: str, outputs: int) -> str:
    """Return the method whose scores lead to what the estimator itself predicts.

    Columns of a decision function need not be classes: of one-vs-one they are pairs, as many as classes where there are
    three. So each method is tried on a few rows, and the predictions themselves are taken where none agrees.

    Parameters
    ----------
    estimator, X, link, outputs
        As in `scores_of`.
    """
    from sklearn.base import is_regressor

    if link == "identity" or is_regressor(estimator):
        return "predict"
    predicted = np.asarray(estimator.predict(X))
    for method in METHODS[:-1]:
        if not hasattr(estimator, method):
            continue
        try:
            scores = scores_of(estimator, X, link, outputs, method)
        except (ValueError, IndexError):
            continue
        agree = _is_best(scores, predicted.astype(np.int64)) if link == "softmax" else (scores > 0) == (predicted > 0)
        if agree.mean() >= _LEAST_AGREEMENT:
            return method
    return "predict"


def _finite(scores: Scores) -> Scores:
    """Refuse scores (N, K) from which no prediction follows, though the estimator names a class.

    Raises
    ------
    ValueError
        Some are not finite.
    """
    without = int((~np.isfinite(scores).all(axis=1)).sum())
    if without:
        raise ValueError(f"its scores of {without} of {counted(len(scores), 'row')} are not finite")
    return scores


def _is_best(scores: Scores, predicted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether no score of a row (N, K) is above that of its predicted class: among ties either may be it."""
    at_predicted = scores[np.arange(len(predicted)), predicted]
    return np.asarray((at_predicted >= scores.max(axis=1)) & np.isfinite(scores).all(axis=1))


def gives_log_probabilities(estimator: Any, method: str, scores: Scores, X: NDArray[Any], link: str) -> bool:
    """Return whether scores (N, K) are log-probabilities up to a constant of each row, rather than margins."""
    if method != "decision_function":
        return method == "predict_proba"
    if not hasattr(estimator, "predict_proba") or link != "softmax":
        return False
    return bool(np.allclose(softmax(scores), estimator.predict_proba(X), atol=1e-3))


def check_rows(X: Data) -> Data:
    """Return the rows on which scores are compared; a copy, so that X is not kept."""
    return X[:: max(len(X) // _CHECK_ROWS, 1)][:_CHECK_ROWS].copy()


def model_of(estimator: Any, rows: Data, link: str, outputs: int, method: str | None = None) -> HeadModel:
    """Take the arrays of a fitted estimator where they alone give its scores, and the estimator otherwise.

    Having ``coef_`` proves nothing (a Poisson regression predicts exponentials), so both are compared on a few rows.
    What all classes of a row share makes no difference to a softmax, and none here.

    Parameters
    ----------
    estimator, link, outputs
        As in `scores_of`.
    rows : ndarray of shape (n, D)
        Rows to compare on, from `check_rows`.
    method : str, optional
        Where it is known already.
    """
    method = method or scoring_method(estimator, rows, link, outputs)
    original = EstimatorModel("estimator", {}, link, outputs, notes={"estimator": estimator, "method": method})
    try:
        coef, intercept = linear_arrays(estimator)
    except (AttributeError, ValueError):
        return original
    if link == "softmax":
        coef, intercept = two_columns(coef, intercept)
    if coef.shape != (outputs, rows.shape[1]) or intercept.shape != (outputs,):
        return original
    linear = HeadModel("linear", {"coef": coef, "intercept": intercept}, link, outputs)
    expected, found = original.scores(rows), linear.scores(rows)
    if link == "softmax":
        expected, found = (scores - scores.mean(axis=1, keepdims=True) for scores in (expected, found))
    near = np.allclose(found, expected, rtol=1e-3, atol=1e-3 * (np.abs(expected).max() + 1e-12))
    return linear if near else original


def linear_arrays(estimator: Any) -> tuple[Scores, Scores]:
    """Return ``coef`` (K, D) and ``intercept`` (K,) on the features as they are.

    Raises
    ------
    AttributeError
        For an estimator that has none.
    """
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(estimator, OneVsRestClassifier):
        parts = [linear_arrays(one) for one in estimator.estimators_]
        return np.concatenate([coef for coef, _ in parts]), np.concatenate([intercept for _, intercept in parts])
    if isinstance(estimator, Pipeline) and len(estimator) == 2 and isinstance(estimator[0], StandardScaler):
        coef, intercept = linear_arrays(estimator[1])
        coef = coef / estimator[0].scale_
        return coef, intercept - coef @ estimator[0].mean_
    coef = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    return coef, np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), len(coef)).copy()


# --- fitting -------------------------------------------------------------------------------------------------


def class_head(make: Callable[[FitOptions], Any], arrays: Callable[[Any], HeadModel] | None = None) -> Fitter:
    """Make a fitter of classes out of a classifier; ``arrays`` takes those of a head that is not linear."""

    def fit(X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        classes = int(y.max()) + 1

        def possible(labels: NDArray[Any]) -> bool:
            return len(np.unique(labels)) == classes

        return fit_estimator(
            make(options), X, y, groups, options, Kind("softmax", classes, arrays, possible, stratify=True)
        )

    return fit


def label_head(make: Callable[[FitOptions], Any]) -> Fitter:
    """Make a fitter of label sets out of a classifier: one for each label."""

    def fit(X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        from sklearn.multiclass import OneVsRestClassifier

        kind = Kind("sigmoid", y.shape[1], None, two_sided)
        return fit_estimator(OneVsRestClassifier(make(options)), X, y.astype(np.int64), groups, options, kind)

    return fit


def two_sided(labels: NDArray[Any]) -> bool:
    """Whether every label (N, L) is there in some row and not in another."""
    has = labels > 0
    return bool((has.any(axis=0) & ~has.all(axis=0)).all())


def number_head(make: Callable[[FitOptions], Any]) -> Fitter:
    """Make a fitter of numbers out of a scikit-learn regressor."""

    def fit(X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        return fit_estimator(make(options), X, y, groups, options, Kind("identity", 1))

    return fit


@dataclass(frozen=True)
class Kind:
    """What an estimator is fitted to: the link of its scores, and which rows can be fitted again."""

    link: str
    outputs: int
    arrays: Callable[[Any], HeadModel] | None = None
    possible: Callable[[NDArray[Any]], bool] = lambda y: len(y) > 1
    stratify: bool = False


def _out_of_fold(
    pinned: Any,
    X: Data,
    y: NDArray[Any],
    groups: NDArray[Any] | None,
    options: FitOptions,
    kind: Kind,
    method: str,
) -> NDArray[np.float64]:
    """Return the scores of every row by a copy fitted on the other folds; NaN where there are none."""
    from sklearn.base import clone

    fold = fold_numbers(y, options.folds, seed=options.seed, groups=groups, stratify=kind.stratify)
    scores = np.full((len(X), kind.outputs), np.nan)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        if not out.any() or not kind.possible(y[~out]):
            continue
        part = _fit_with_groups(clone(pinned), X[~out], y[~out], None if groups is None else groups[~out])
        scores[out] = _finite(scores_of(part, X[out], kind.link, kind.outputs, method))
    return scores


def fit_estimator(
    estimator: Any, X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions, kind: Kind
) -> FittedHead:
    """Fit on all rows and, where probabilities are to be calibrated, on the rows outside each fold.

    A head that chooses its settings brings scores from inside its own folds (``oof_scores_``); behind a scaler, which
    must not see the rows held out either, it is fitted again in each fold with these settings.
    """
    from sklearn.base import clone

    rows = check_rows(X)
    collected_warnings: list[str] = []
    with _collect_warnings(collected_warnings), explained(estimator):
        fitted = _fit_with_groups(clone(estimator), X, y, groups)
        last = _last_step(fitted)
        method = scoring_method(fitted, rows, kind.link, kind.outputs)

        def model_from(trained: Any) -> HeadModel:
            if kind.arrays is not None:
                return kind.arrays(trained)
            return model_of(trained, rows, kind.link, kind.outputs, method)

        model = model_from(fitted)
        expected = scores_of(fitted, rows, kind.link, kind.outputs, method)
        log_probabilities = getattr(last, "scale_is_known", True) and gives_log_probabilities(
            fitted, method, expected, rows, kind.link
        )
        pinned = _pinned(fitted)
        scores = None
        if options.calibrate and kind.link != "identity":
            scores = getattr(fitted, "oof_scores_", None) if method != "predict" else None
            if scores is None:
                scores = _out_of_fold(pinned, X, y, groups, options, kind, method)
    if method == "predict" and kind.link == "softmax":
        collected_warnings.append(
            "the estimator has no scores that agree with its predictions: its probabilities say no more than these"
        )

    def refit(again: Data, target: NDArray[Any]) -> HeadModel | None:
        if not kind.possible(target):
            return None
        with _collect_warnings([]), explained(estimator):
            return model_from(clone(pinned).fit(again, target))

    return FittedHead(
        fitted,
        model,
        oof_scores=scores,
        log_probabilities=log_probabilities,
        chosen=_chosen(last) | ({"scores": method} if model.kind == "estimator" else {}),
        sweep=list(getattr(last, "sweep_", [])),
        warnings=collected_warnings,
        refit=refit,
    )


def _chosen(head: Any) -> dict[str, Any]:
    """Return the settings that a head has chosen by itself."""
    if hasattr(head, "chosen_"):
        return dict(head.chosen_)
    return {"alpha": float(head.alpha_)} if np.ndim(getattr(head, "alpha_", [])) == 0 else {}


def _pinned(fitted: Any) -> Any:
    """Return an unfitted copy whose settings are those that were chosen."""
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline

    if isinstance(fitted, Pipeline):
        return Pipeline([(name, _pinned(step)) for name, step in fitted.steps])
    return fitted.at_chosen() if hasattr(fitted, "at_chosen") else clone(fitted)


def _fit_with_groups(estimator: Any, X: Data, y: NDArray[Any], groups: NDArray[Any] | None) -> Any:
    """Fit; a head that chooses something by leaving rows out (``takes_groups``) gets the groups."""
    last = _last_step(estimator)
    if groups is None or not getattr(last, "takes_groups", False):
        return estimator.fit(X, y)
    name = "groups" if last is estimator else f"{estimator.steps[-1][0]}__groups"
    return estimator.fit(X, y, **{name: groups})


def _last_step(estimator: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


@contextlib.contextmanager
def _collect_warnings(into: list[str]) -> Iterator[None]:
    """Collect the warnings of libraries, each message once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", MANY_CLASSES, UserWarning)
        yield
    for warning in caught:
        text = f"{warning.category.__name__}: {first_line(warning.message)}"  # type: ignore[arg-type]
        if text not in into:
            into.append(text)


# --- by name -------------------------------------------------------------------------------------------------


def estimator_by_name(name: str, task: str) -> Fitter:
    """Return the fitter of the estimator ``module:Class``.

    Parameters
    ----------
    name : str
        A class, or a function that gives an estimator, such as ``"sklearn.ensemble:RandomForestClassifier"``.
    task : str
        ``"classification"``, ``"multilabel"`` or ``"regression"``.

    Raises
    ------
    HeadError
        Where there is no such module or class, or it gives no estimator for the task.
    """
    _made(name, task)

    def make(options: FitOptions) -> Any:
        estimator = _made(name, task)
        known = estimator.get_params()
        if "random_state" in known:
            estimator.set_params(random_state=options.seed)
        if options.class_weight is not None:
            if "class_weight" not in known:
                raise HeadError(f"{name} has no class_weight, so it takes no --balanced: leave it out")
            estimator.set_params(class_weight=options.class_weight)
        return scaled(with_params(estimator, options.params, name), options)

    return {"classification": class_head, "multilabel": label_head, "regression": number_head}[task](make)


def _made(name: str, task: str) -> Any:
    from sklearn.base import is_classifier, is_regressor

    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise HeadError(
            f"expected --estimator module:Class, found {name!r}: write it like sklearn.ensemble:RandomForestClassifier"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise HeadError(
            f"cannot import {module_name} for --estimator ({first_line(error)}): install it, or put its folder on "
            "PYTHONPATH"
        ) from None
    if not hasattr(module, attribute):
        public = [known for known in dir(module) if not known.startswith("_")]
        raise HeadError(f"{module_name} has no {attribute!r}: {near_names(attribute, public)}")
    try:
        estimator = getattr(module, attribute)()
    except TypeError as error:
        raise HeadError(
            f"{name} cannot be made without arguments ({first_line(error)}): name a function that gives the estimator"
        ) from None
    # Of its class too: some have a method only once they are fitted, such as a stack of estimators its `predict`.
    parts = (estimator, type(estimator))
    if not all(any(hasattr(part, method) for part in parts) for method in ("fit", "predict", "get_params")):
        raise HeadError(f"{name} is not a scikit-learn estimator: it needs fit, predict and get_params")
    if task == "regression" and not is_regressor(estimator):
        raise HeadError(f"{name} is not a regressor: take another estimator, or --task classification")
    if task != "regression" and not is_classifier(estimator):
        raise HeadError(f"{name} is not a classifier: take another estimator, or --task regression")
    return estimator
