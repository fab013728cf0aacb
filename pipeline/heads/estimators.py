"""Fitting any scikit-learn estimator as a head, and taking its arrays where it is linear.

Axes: N rows, D features, K classes, L labels.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError, first_line, near_names
from pipeline.heads.fitted import FittedHead, with_params
from pipeline.heads.model import HeadModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.heads.fitted import FitOptions, Fitter

    Data = NDArray[np.float32]
    Scores = NDArray[np.float64]

_LARGEST_LOGIT = 36.0
"""Logit of the largest probability below one in float64."""
_PROOF_ROWS = 256

REFIT_TOL = 1e-3
"""Relative gap of the fits behind learning curves, whose scores do not notice more."""


def logistic_sweep(options: FitOptions) -> Any:
    """Return an unfitted `pipeline.heads.LogisticSweep` of these options."""
    from pipeline.heads.logistic import LogisticSweep

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


class EstimatorModel(HeadModel):
    """A head that only its own scikit-learn estimator can evaluate: ``notes["estimator"]``."""

    @property
    def width(self) -> int:
        """Return D."""
        return int(self.notes["estimator"].n_features_in_)

    def scores(self, X: NDArray[Any]) -> Scores:
        """Return scores (N, K) before link and temperature."""
        estimator = self.notes["estimator"]
        with explained(estimator):
            return scores_of(estimator, X, self.link, self.outputs)


def scores_of(estimator: Any, X: NDArray[Any], link: str, outputs: int) -> Scores:
    """Return what an estimator says of every row, as the link wants it.

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

    Returns
    -------
    ndarray of shape (N, outputs), float64
        Decision function, or else log-probabilities (logits for labels), or else the prediction.
    """
    from sklearn.base import is_regressor

    if is_regressor(estimator):
        return np.asarray(estimator.predict(X), dtype=np.float64).reshape(len(X), outputs)
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(X), dtype=np.float64)
        if scores.ndim == 1 and outputs == 2 and link == "softmax":
            return np.stack([np.zeros_like(scores), scores], axis=1)
        if scores.shape == (len(X), outputs):
            return scores
    if hasattr(estimator, "predict_proba"):
        share = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    else:
        share = np.eye(outputs)[np.asarray(estimator.predict(X), dtype=np.int64)]
    if link == "softmax":
        return np.log(np.clip(share, 1e-12, 1.0))
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(share) - np.log1p(-share), -_LARGEST_LOGIT, _LARGEST_LOGIT))


def proof_rows(X: Data) -> Data:
    """Return the rows on which `model_of` compares; a copy, so that X is not kept."""
    return X[:: max(len(X) // _PROOF_ROWS, 1)][:_PROOF_ROWS].copy()


def model_of(estimator: Any, proof: Data, link: str, outputs: int) -> HeadModel:
    """Take the arrays of a fitted estimator where they alone give its scores, and the estimator otherwise.

    Having ``coef_`` proves nothing (a Poisson regression predicts exponentials), so both are compared on a few rows.
    """
    theirs = EstimatorModel("estimator", {}, link, outputs, notes={"estimator": estimator})
    try:
        coef, intercept = linear_arrays(estimator)
    except (AttributeError, ValueError):
        return theirs
    if link == "softmax" and len(coef) == 1:
        coef, intercept = np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])
    if coef.shape != (outputs, proof.shape[1]) or intercept.shape != (outputs,):
        return theirs
    ours = HeadModel("linear", {"coef": coef, "intercept": intercept}, link, outputs)
    expected = theirs.scores(proof)
    near = np.allclose(ours.scores(proof), expected, rtol=1e-3, atol=1e-3 * (np.abs(expected).max() + 1e-12))
    return ours if near else theirs


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
        from pipeline.evaluation.splits import fold_numbers

        classes, proof = int(y.max()) + 1, proof_rows(X)

        def taken(fitted: Any) -> HeadModel:
            return arrays(fitted) if arrays is not None else model_of(fitted, proof, "softmax", classes)

        def folds() -> NDArray[np.int64]:
            return fold_numbers(y, options.folds, seed=options.seed, groups=groups)

        def possible(labels: NDArray[Any]) -> bool:
            return len(np.unique(labels)) == classes

        return fit_estimator(make(options), X, y, groups, options, taken, folds, possible)

    return fit


def label_head(make: Callable[[FitOptions], Any]) -> Fitter:
    """Make a fitter of label sets out of a classifier: one for each label."""

    def fit(X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        from sklearn.multiclass import OneVsRestClassifier

        from pipeline.evaluation.splits import fold_numbers

        labels, proof = y.shape[1], proof_rows(X)

        def folds() -> NDArray[np.int64]:
            return fold_numbers(y, options.folds, seed=options.seed, groups=groups, stratify=False)

        def possible(some: NDArray[Any]) -> bool:
            return bool((some.any(axis=0) & ~some.all(axis=0)).all())

        return fit_estimator(
            OneVsRestClassifier(make(options)),
            X,
            y.astype(np.int64),
            groups,
            options,
            lambda fitted: model_of(fitted, proof, "sigmoid", labels),
            folds,
            possible,
        )

    return fit


def number_head(make: Callable[[FitOptions], Any]) -> Fitter:
    """Make a fitter of numbers out of a scikit-learn regressor."""

    def fit(X: Data, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        proof = proof_rows(X)
        return fit_estimator(
            make(options), X, y, groups, options, lambda fitted: model_of(fitted, proof, "identity", 1)
        )

    return fit


def fit_estimator(
    estimator: Any,
    X: Data,
    y: NDArray[Any],
    groups: NDArray[Any] | None,
    options: FitOptions,
    taken: Callable[[Any], HeadModel],
    folds: Callable[[], NDArray[np.int64]] | None = None,
    possible: Callable[[NDArray[Any]], bool] = lambda y: len(y) > 1,
) -> FittedHead:
    """Fit on all rows and, where probabilities are to be calibrated, on the rows outside each fold."""
    from sklearn.base import clone

    said: list[str] = []
    with _heard(said), explained(estimator):
        fitted = _fit_with_groups(clone(estimator), X, y, groups)
        model = taken(fitted)
        scores = None
        # Shares of neighbours are probabilities already; no temperature applies to them.
        if folds is not None and options.calibrate and model.link != "shares":
            fold = folds()
            scores = np.empty((len(X), model.outputs))
            for number in np.unique(fold):
                held_out = fold == number
                part = _fit_with_groups(
                    clone(estimator), X[~held_out], y[~held_out], None if groups is None else groups[~held_out]
                )
                scores[held_out] = scores_of(part, X[held_out], model.link, model.outputs)

    def refit(rows: Data, target: NDArray[Any]) -> HeadModel | None:
        if not possible(target):
            return None
        with _heard([]), explained(estimator):
            return taken(clone(estimator).fit(rows, target))

    last = _last_step(fitted)
    return FittedHead(
        fitted,
        model,
        oof_scores=scores,
        chosen={"alpha": float(last.alpha_)} if np.ndim(getattr(last, "alpha_", [])) == 0 else {},
        sweep=list(getattr(last, "sweep_", [])),
        warnings=said,
        refit=refit,
    )


def _fit_with_groups(estimator: Any, X: Data, y: NDArray[Any], groups: NDArray[Any] | None) -> Any:
    """Fit; a head that chooses something by leaving rows out is told which belong together."""
    from pipeline.heads.ridge import RidgeHead, RidgeRegressionHead

    last = _last_step(estimator)
    if groups is None or not isinstance(last, (RidgeHead, RidgeRegressionHead)):
        return estimator.fit(X, y)
    name = "groups" if last is estimator else f"{estimator.steps[-1][0]}__groups"
    return estimator.fit(X, y, **{name: groups})


def _last_step(estimator: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


@contextlib.contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Collect what libraries warn of, each message once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = f"{warning.category.__name__}: {first_line(warning.message)}"  # type: ignore[arg-type]
        if text not in said:
            said.append(text)


@contextlib.contextmanager
def explained(estimator: Any) -> Iterator[None]:
    """Turn scikit-learn's complaints about settings and data into one line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise HeadError(
            f"{type(estimator).__name__} fails ({first_line(error)}): change it with --set, or the data"
        ) from error


def scaled(estimator: Any, options: FitOptions) -> Any:
    """Standardise the features first where that is asked for."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator) if options.scaling == "standard" else estimator


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
    if not (hasattr(estimator, "fit") and hasattr(estimator, "predict") and hasattr(estimator, "get_params")):
        raise HeadError(f"{name} is no scikit-learn estimator: it needs fit, predict and get_params")
    if task == "regression" and not is_regressor(estimator):
        raise HeadError(f"{name} is no regressor: take another estimator, or --task classification")
    if task != "regression" and not is_classifier(estimator):
        raise HeadError(f"{name} is no classifier: take another estimator, or --task regression")
    return estimator
