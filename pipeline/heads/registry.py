"""The heads by name, and what fitting one gives: an estimator, plain arrays, and scores from inside the folds.

Adding a head is one function here and one line in ``HEADS``.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import HeadError, near_names
from pipeline.heads.model import HeadModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.heads.streaming import StreamedRows

_SWEEP_FROM = 4
"""Fewer values than this are the user's own short list, and its ends need no warning."""


@dataclass(frozen=True)
class FitOptions:
    """What a head may want to know besides the data."""

    Cs: Literal["auto", "full"] | tuple[float, ...] = "auto"
    folds: int = 5
    scoring: Literal["accuracy", "log_loss"] = "accuracy"
    scaling: Literal["none", "standard"] = "none"
    class_weight: Literal["balanced"] | None = None
    seed: int = 0
    device: str = "cpu"
    calibrate: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class FittedHead:
    """A head after fitting.

    Attributes
    ----------
    estimator : object
        scikit-learn estimator, fitted on all training rows.
    model : HeadModel or None
        Its arrays; None where only the estimator can predict.
    oof_scores : ndarray of shape (N, K) or None
        Scores of every training row from a fit that did not see it.
    chosen : dict
        Hyper-parameters that were chosen.
    sweep : list of dict
        One entry for every value tried, empty where nothing was.
    warnings : list of str
        What the user should know, such as values of C that did not converge.
    refit : callable or None
        Fits other rows (every class among them) at the chosen hyper-parameters; gives the arrays.
    """

    estimator: Any
    model: HeadModel | None
    oof_scores: NDArray[np.float64] | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refit: Callable[[NDArray[np.float32], NDArray[np.int64]], HeadModel | None] | None = None


def two_columns(coef: NDArray[Any], intercept: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Turn scikit-learn's one row for two classes into two rows with the same softmax."""
    if len(coef) == 1:
        return np.concatenate([np.zeros_like(coef), coef]), np.concatenate([np.zeros_like(intercept), intercept])
    return coef, intercept


def fit_logistic(
    X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit multinomial logistic regression, C chosen on folds of the rows given."""
    from pipeline.heads.logistic import LogisticHead, LogisticSweep

    estimator = LogisticSweep(
        Cs=options.Cs,
        cv=options.folds,
        scoring=options.scoring,
        scaling=options.scaling,
        class_weight=options.class_weight,
        device=options.device,
        random_state=options.seed,
        progress=options.progress,
        **options.params,
    ).fit(X, y, groups)
    estimator.set_params(progress=None)
    coef, intercept = two_columns(estimator.coef_, estimator.intercept_)
    warnings = []
    failed = [entry["C"] for entry in estimator.sweep_ if not entry["converged"]]
    if failed:
        warnings.append(
            f"{len(failed)} of {len(estimator.sweep_)} values of C did not reach the tolerance "
            f"(from {min(failed):g} to {max(failed):g}): raise max_passes"
        )
    if not estimator.converged_:
        warnings.append(f"the fit at the chosen C = {estimator.C_:g} did not converge: raise max_passes")
    values = [entry["C"] for entry in estimator.sweep_]
    if len(values) > _SWEEP_FROM and estimator.C_ in (values[0], values[-1]):
        warnings.append(f"the best C = {estimator.C_:g} lies at the end of the values tried: widen the sweep")

    def refit(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> HeadModel | None:
        if len(np.unique(labels)) < len(estimator.classes_):
            return None
        again = LogisticHead(
            C=estimator.C_,
            scaling=options.scaling,
            class_weight=options.class_weight,
            tol=1e-3,
            device=options.device,
        ).fit(rows, labels)
        coef, intercept = two_columns(again.coef_, again.intercept_)
        return HeadModel("linear", {"coef": coef, "intercept": intercept}, "softmax", len(intercept))

    return FittedHead(
        estimator,
        HeadModel("linear", {"coef": coef, "intercept": intercept}, "softmax", len(intercept)),
        oof_scores=estimator.oof_scores_,
        chosen={
            "C": estimator.C_,
            "converged": bool(estimator.converged_),
            "gap_estimate": estimator.gap_estimate_,
            "gradient_norm": estimator.gradient_norm_,
            "objective": estimator.objective_,
            "folds": estimator.n_folds_,
        },
        sweep=estimator.sweep_,
        warnings=warnings,
        refit=refit,
    )


def fit_linear(
    rows: StreamedRows, y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit `LinearHead` on rows that are streamed; the temperature comes from the rows it sets apart."""
    from pipeline.evaluate import fit_temperature
    from pipeline.heads.linear import LinearHead

    estimator = LinearHead(
        class_weight=options.class_weight,
        device=options.device,
        random_state=options.seed,
        progress=options.progress,
        **options.params,
    ).fit(rows, y, groups)
    estimator.set_params(progress=None)
    temperature = fit_temperature(estimator.validation_scores_, y[estimator.validation_rows_])
    warnings = []
    if options.scaling != "none":
        warnings.append("the linear head steps in the features' own covariance, so --scaling changes nothing")
    for name, chosen, tried in (
        ("learning rate", estimator.learning_rate_, estimator.learning_rates),
        ("weight decay", estimator.weight_decay_, estimator.weight_decays),
    ):
        if len(tried) > 2 and chosen in (min(tried), max(tried)):
            warnings.append(f"the best {name} {chosen:g} lies at the end of the values tried")
    return FittedHead(
        estimator,
        replace(linear_model(estimator), temperature=temperature),
        chosen={
            "learning_rate": estimator.learning_rate_,
            "weight_decay": estimator.weight_decay_,
            "equivalent_C": estimator.C_,
            "validation_rows": len(estimator.validation_rows_),
            "steps": estimator.n_iter_,
        },
        sweep=estimator.curve_,
        warnings=warnings,
    )


def linear_model(estimator: Any) -> HeadModel:
    """Take the arrays of any estimator with ``coef_`` and ``intercept_``."""
    coef, intercept = two_columns(np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_))
    arrays = {"coef": coef.astype(np.float64), "intercept": intercept.astype(np.float64)}
    return HeadModel("linear", arrays, "softmax", len(intercept))


def knn_model(estimator: Any) -> HeadModel:
    """Take the arrays of a `KnnHead`."""
    count = min(estimator.n_neighbors, len(estimator.codes_))
    arrays = {
        "neighbours": estimator.neighbours_,
        "classes": estimator.codes_,
        "n_neighbors": np.asarray([count], dtype=np.int64),
    }
    return HeadModel("knn", arrays, "shares", len(estimator.classes_))


def mlp_model(pipeline: Any) -> HeadModel:
    """Take the arrays of a pipeline of StandardScaler and MLPClassifier with one hidden layer."""
    scaler, network = pipeline[0], pipeline[1]
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


def _ridge(options: FitOptions) -> Any:
    from pipeline.heads.classic import RidgeHead

    return RidgeHead(**options.params)


def _lda(options: FitOptions) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(**{"solver": "lsqr", "shrinkage": 0.01, **options.params})


def _svm(options: FitOptions) -> Any:
    from sklearn.svm import LinearSVC

    # The primal (dual=False) suits many rows; C on raw embeddings as for logistic regression.
    given = {"C": 0.01, "dual": False, "class_weight": options.class_weight, "random_state": options.seed}
    return LinearSVC(**{**given, **options.params})


def _knn(options: FitOptions) -> Any:
    from pipeline.heads.classic import KnnHead

    return KnnHead(**options.params)


def _centroid(options: FitOptions) -> Any:
    from pipeline.heads.classic import CentroidHead

    return CentroidHead(**options.params)


def _mlp(options: FitOptions) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given = {"hidden_layer_sizes": (256,), "early_stopping": True, "max_iter": 60, "random_state": options.seed}
    return make_pipeline(StandardScaler(), MLPClassifier(**{**given, **options.params}))


def _estimator_head(make: Callable[[FitOptions], Any], arrays: Callable[[Any], HeadModel]) -> Any:
    """Make a fitter out of a scikit-learn estimator and a function that takes its arrays."""

    def fit(
        X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
    ) -> FittedHead:
        from sklearn.base import clone

        from pipeline.evaluate import fold_numbers
        from pipeline.heads.classic import out_of_fold_scores

        try:
            estimator = make(options)
        except TypeError as error:
            raise HeadError(f"the head does not take these settings ({error}): see docs/heads.md") from None
        scores = None
        # Shares of neighbours are probabilities already; no temperature applies to them.
        if options.calibrate and make is not _knn:
            fold = fold_numbers(y, options.folds, seed=options.seed, groups=groups)
            scores = out_of_fold_scores(estimator, X, y, fold)
        fitted = clone(estimator).fit(X, y)

        def refit(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> HeadModel | None:
            if len(np.unique(labels)) < len(np.unique(y)):
                return None
            return arrays(clone(estimator).fit(rows, labels))

        chosen = {"alpha": fitted.alpha_} if hasattr(fitted, "alpha_") else {}
        return FittedHead(fitted, arrays(fitted), oof_scores=scores, chosen=chosen, refit=refit)

    return fit


HEADS: dict[str, Any] = {
    "logistic": fit_logistic,
    "linear": fit_linear,
    "ridge": _estimator_head(_ridge, linear_model),
    "lda": _estimator_head(_lda, linear_model),
    "svm": _estimator_head(_svm, linear_model),
    "knn": _estimator_head(_knn, knn_model),
    "centroid": _estimator_head(_centroid, linear_model),
    "mlp": _estimator_head(_mlp, mlp_model),
}
"""Name of every classification head and the function that fits it."""


STREAMED = frozenset({"linear"})
"""Heads that take `StreamedRows` instead of an array in memory."""


def find_head(name: str) -> Any:
    """Return the function that fits the head called ``name``.

    Raises
    ------
    HeadError
        For an unknown name; lists near ones.
    """
    if name not in HEADS:
        raise HeadError(f"no head is called {name!r}: {near_names(name, HEADS)}")
    return HEADS[name]
