"""The head that a training starts from, where the fitted one has seen the validation rows.

Axes: n training rows, D embedding width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.heads.logistic import LogisticHead
from pipeline.heads.model import two_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.heads import LoadedHead


def fit_without_validation(
    head: LoadedHead, run: Mapping[str, Any], X: NDArray[Any], y: NDArray[Any]
) -> LoadedHead | None:
    """Fit a logistic head again, at the C, scaling and weights of its classes, on the rows that will train.

    A head that was fitted on the validation rows too knows their classes. Their loss would then prefer the start to
    every tuned network.

    Parameters
    ----------
    head : LoadedHead
    run : mapping
        What the ``run.json`` beside it holds.
    X : ndarray of shape (n, D)
        Cached embeddings.
    y : ndarray of shape (n,), int64
        Classes, all of the head's.

    Returns
    -------
    LoadedHead or None
        With the temperature of ``head``; None for a head of another kind.
    """
    c, settings = run.get("chosen", {}).get("C"), run["settings"]
    if head.head != "logistic" or c is None or settings.get("start", "zero") != "zero":
        return None
    again = LogisticHead(C=c, scaling=settings["scaling"], class_weight=settings["class_weight"]).fit(X, y)
    coef, intercept = two_columns(again.coef_, again.intercept_)
    return replace(head, model=replace(head.model, arrays={"coef": coef, "intercept": intercept}))
