"""The heads by name.

A head is a function in the module of its estimator, and one line here. What it returns is a
`pipeline.heads.fit.FittedHead`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import HeadError, near_names
from pipeline.heads.classic import make_centroid
from pipeline.heads.knn import knn_model, make_knn
from pipeline.heads.lda import make_lda
from pipeline.heads.linear import fit_linear
from pipeline.heads.logistic import fit_logistic
from pipeline.heads.multilabel import fit_labels_logistic, fit_labels_ridge
from pipeline.heads.ridge import make_ridge, make_ridge_regression
from pipeline.heads.sklearn import class_head, number_head
from pipeline.heads.tuned import keep_best, make_mlp, make_svm, mlp_model
from pipeline.heads.zero_shot import fit_zero_shot

if TYPE_CHECKING:
    from pipeline.heads.fit import Fitter

HEADS: dict[str, Fitter] = {
    "logistic": fit_logistic,
    "linear": fit_linear,
    "ridge": class_head(make_ridge),
    "lda": class_head(make_lda),
    "svm": keep_best(class_head(make_svm)),
    "knn": class_head(make_knn, knn_model),
    "centroid": class_head(make_centroid),
    "mlp": keep_best(class_head(make_mlp, mlp_model)),
    "zero-shot": fit_zero_shot,
}
"""Name of every classification head and the function that fits it."""

STREAMED = frozenset({"linear"})
"""Heads that take `StreamedRows` instead of an array in memory."""

REGRESSION_HEADS: dict[str, Fitter] = {"ridge": number_head(make_ridge_regression)}
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
