"""The heads by name, and what fitting one gives: an estimator, plain arrays, and scores from inside the folds.

Adding a head is one function here and one line in ``HEADS``.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError, near_names
from pipeline.heads.fit import FitOptions, FittedHead, with_params, without_weights
from pipeline.heads.model import HeadModel
from pipeline.heads.multilabel import fit_labels_logistic, fit_labels_ridge
from pipeline.heads.sklearn import (
    REFIT_TOL,
    class_head,
    explained,
    linear_arrays,
    logistic_sweep,
    number_head,
    scaled,
    two_columns,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.heads.fit import Fitter
    from pipeline.heads.streamed_rows import StreamedRows


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
            f"(from {min(failed):g} to {max(failed):g}) and were not chosen: to go on longer with them, "
            f"--set max_passes={_more(estimator.max_passes)}"
        )
    if not estimator.converged_:
        warnings.append(
            f"the fit at C = {estimator.C_:g} did not converge: go on longer with "
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
    """Fit `LinearHead` on rows that may be streamed; the temperature comes from the rows that it holds out."""
    from pipeline.evaluation.calibration import fit_temperature
    from pipeline.heads.linear import LinearHead

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
    coef, intercept = two_columns(*linear_arrays(estimator))
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


def knn_model(estimator: Any) -> HeadModel:
    """Take the arrays of a `KnnHead`."""
    return estimator.model()  # type: ignore[no-any-return]


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


def _ridge(options: FitOptions) -> Any:
    from pipeline.heads.ridge import RidgeHead

    estimator = RidgeHead(class_weight=options.class_weight, cv=options.folds)
    return scaled(with_params(estimator, options.params, "the ridge head"), options)


def _ridge_regression(options: FitOptions) -> Any:
    from pipeline.heads.ridge import RidgeRegressionHead

    without_weights(options, "ridge regression")
    return scaled(with_params(RidgeRegressionHead(), options.params, "the ridge head"), options)


def _lda(options: FitOptions) -> Any:
    from pipeline.heads.lda import LdaHead

    estimator = LdaHead(class_weight=options.class_weight, cv=options.folds, random_state=options.seed)
    return scaled(with_params(estimator, options.params, "the lda head"), options)


_SVM_CS = tuple(10.0**e for e in range(-4, 3))
_SVM_ROWS = 3000


def _svm(options: FitOptions) -> Any:
    from sklearn.svm import LinearSVC

    from pipeline.heads.tuned import Tuned, without

    # The primal (dual=False) suits many rows. The tolerance is liblinear's own for this solver: a hundredth of it,
    # scikit-learn's default, takes longer and changes hardly a prediction.
    estimator = LinearSVC(dual=False, tol=0.01, class_weight=options.class_weight, random_state=options.seed)
    estimator = scaled(with_params(estimator, options.params, "the svm head"), options)
    candidates = without([{"C": c} for c in _SVM_CS], options.params)
    return Tuned(estimator, candidates, cv=options.folds, most_rows=_SVM_ROWS, margins=True, random_state=options.seed)


def _knn(options: FitOptions) -> Any:
    from pipeline.heads.knn import KnnHead

    without_weights(options, "knn")
    if options.scaling != "none":
        raise HeadError("the knn head chooses its own scaling, so it takes no --scaling: use --set scaling=standard")
    head = KnnHead(cv=options.folds, scoring=options.scoring, random_state=options.seed)
    return with_params(head, options.params, "the knn head")


def _centroid(options: FitOptions) -> Any:
    from pipeline.heads.classic import CentroidHead

    # A class mean counts the same however many rows it has: --balanced is always met.
    return scaled(with_params(CentroidHead(), options.params, "the centroid head"), options)


_MLP_ROWS = 1000
_MLP_STOPS_EARLY_FROM = 3000


def _mlp_candidates(codes: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return settings of the MLP for these classes, the strongest regularisation first.

    With many rows a tenth of them says well when to stop. With few rows it does not, and they are missed: the penalty
    is chosen instead.
    """
    count = np.bincount(codes)
    if len(codes) >= max(_MLP_STOPS_EARLY_FROM, 20 * len(count)) and count.min() >= 4:
        return [{"hidden_layer_sizes": (256,), "alpha": 1e-4, "early_stopping": True, "max_iter": 60}]
    rest = {"learning_rate_init": 3e-3, "tol": 1e-3, "early_stopping": False, "max_iter": 300}
    return [
        {"hidden_layer_sizes": (width,), "alpha": alpha, **rest}
        for alpha, width in ((10.0, 64), (1.0, 64), (1.0, 256), (0.1, 256), (0.01, 256))
    ]


def _mlp(options: FitOptions) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipeline.heads.tuned import Tuned, without

    without_weights(options, "mlp")
    network = with_params(MLPClassifier(random_state=options.seed), options.params, "the mlp head")
    return Tuned(
        make_pipeline(StandardScaler(), network),
        lambda codes: without(_mlp_candidates(codes), options.params),
        cv=options.folds,
        most_rows=_MLP_ROWS,
        random_state=options.seed,
    )


def _plain(fit: Fitter) -> Fitter:
    """Let a head keep the scikit-learn estimator that was chosen, not what chose it."""

    def fit_plain(X: Any, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        fitted = fit(X, y, groups, options)
        return replace(fitted, estimator=fitted.estimator.best_estimator_)

    return fit_plain


HEADS: dict[str, Fitter] = {
    "logistic": fit_logistic,
    "linear": fit_linear,
    "ridge": class_head(_ridge),
    "lda": class_head(_lda),
    "svm": _plain(class_head(_svm)),
    "knn": class_head(_knn, knn_model),
    "centroid": class_head(_centroid),
    "mlp": _plain(class_head(_mlp, mlp_model)),
}
"""Name of every classification head and the function that fits it."""

STREAMED = frozenset({"linear"})
"""Heads that take `StreamedRows` instead of an array in memory."""

REGRESSION_HEADS: dict[str, Fitter] = {"ridge": number_head(_ridge_regression)}
"""Name of every head that predicts numbers."""

MULTILABEL_HEADS: dict[str, Fitter] = {"logistic": fit_labels_logistic, "ridge": fit_labels_ridge}
"""Name of every head that predicts label sets."""

HEADS_OF: dict[str, dict[str, Fitter]] = {
    "classification": HEADS,
    "regression": REGRESSION_HEADS,
    "multilabel": MULTILABEL_HEADS,
}
"""The heads of every task; the first is the default."""


def find_head(name: str, task: str = "classification") -> Fitter:
    """Return the function that fits the head called ``name``.

    Raises
    ------
    HeadError
        For an unknown name, which lists near ones, and for a head of other tasks.
    """
    heads = HEADS_OF[task]
    if name in heads:
        return heads[name]
    if any(name in others for others in HEADS_OF.values()):
        raise HeadError(
            f"the {name} head does not fit the task {task}: take --head {' or '.join(heads)}, or --estimator"
        )
    raise HeadError(f"no head is called {name!r}: {near_names(name, heads)}")
