"""Heads for label sets: one sigmoid a label, every label a problem of two classes by itself.

Axes: N rows, D features, L labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.heads.fit import FittedHead, explained, refuse_class_weights, scaled, with_params
from pipeline.heads.logistic import REFIT_TOL, logistic_sweep
from pipeline.heads.model import HeadModel
from pipeline.heads.ridge import RidgeRegressionHead
from pipeline.heads.sklearn import Kind, fit_estimator, two_sided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.heads.fit import FitOptions


def fit_labels_logistic(
    X: NDArray[np.float32], y: NDArray[np.bool_], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit a logistic regression for each label, with a C of its own from folds of its own.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Features.
    y : ndarray of shape (N, L), bool
        Which labels a row has; each is there, and is not, in at least two rows (and groups).
    groups : ndarray of shape (N,) or None
        Rows of one group share a fold.
    options : FitOptions
        As for classes.
    """
    sweeps = []
    for label in y.T:
        sweep = logistic_sweep(replace(options, progress=None))
        with explained(sweep):
            sweeps.append(sweep.fit(X, label.astype(np.int64), groups))
    model = _sigmoids(sweeps)

    def refit(rows: NDArray[np.float32], labels: NDArray[np.bool_]) -> HeadModel | None:
        if not two_sided(labels):
            return None
        return _sigmoids(
            [
                sweep.at_chosen(REFIT_TOL).fit(rows, label.astype(np.int64))
                for sweep, label in zip(sweeps, labels.T, strict=True)
            ]
        )

    failed = sum(not sweep.converged_ for sweep in sweeps)
    warnings = []
    if failed:
        passes = 4 * sweeps[0].max_passes
        warnings.append(
            f"the fits of {failed} of {len(sweeps)} labels did not converge: "
            f"allow more passes with --set max_passes={passes}"
        )
    return FittedHead(
        _one_versus_rest(sweeps, y),
        model,
        oof_scores=np.stack([sweep.oof_scores_[:, 1] - sweep.oof_scores_[:, 0] for sweep in sweeps], axis=1),
        chosen={"C": [sweep.C_ for sweep in sweeps], "folds": options.folds},
        warnings=warnings,
        refit=refit,
    )


def fit_labels_ridge(
    X: NDArray[np.float32], y: NDArray[np.bool_], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Fit least squares on ±1 for all labels at once; the temperature turns its scores into probabilities."""
    refuse_class_weights(options, "multilabel ridge")
    fitted = fit_estimator(
        scaled(with_params(RidgeRegressionHead(), options.params, "the ridge head"), options),
        X,
        _signs(y),
        groups,
        options,
        Kind("sigmoid", y.shape[1]),
    )
    fit_again = fitted.refit
    assert fit_again is not None

    def refit(rows: NDArray[np.float32], labels: NDArray[np.bool_]) -> HeadModel | None:
        return fit_again(rows, _signs(labels)) if two_sided(labels) else None

    return replace(fitted, refit=refit)


def _signs(labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(labels, 1.0, -1.0)


def _sigmoids(heads: Sequence[Any]) -> HeadModel:
    arrays = {
        "coef": np.concatenate([head.coef_ for head in heads]),
        "intercept": np.concatenate([head.intercept_ for head in heads]),
    }
    return HeadModel("linear", arrays, "sigmoid", len(heads))


def _one_versus_rest(heads: Sequence[Any], y: NDArray[np.bool_]) -> Any:
    """Return the fitted heads as scikit-learn's own estimator of label sets."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import LabelBinarizer

    together = OneVsRestClassifier(heads[0])
    together.estimators_ = list(heads)
    together.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(y.astype(np.int64))
    together.n_features_in_ = heads[0].n_features_in_
    return together
