"""Heads on several views of every image: fitted on all of them, with the mean of the views' scores as their answer.

A row of features holds its V views side by side. The fit sees each view as a row of its own, and keeps those of an
image in one fold.

Axes: N images, V views, D features of a view, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.heads.model import mean_of_views, rows_of_views

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.heads.fit import FitOptions, FittedHead, Fitter
    from pipeline.heads.model import HeadModel


def on_views(fit: Fitter, views: int) -> Fitter:
    """Return a fitter of heads on ``views`` views of every image, from one of heads on single rows.

    An image counts as often as it has views. That is the same for all, so the choice of the penalty evens it out.
    """
    if views == 1:
        return fit

    def fit_on_views(X: Any, y: NDArray[Any], groups: NDArray[Any] | None, options: FitOptions) -> FittedHead:
        images = np.arange(len(y)) if groups is None else groups
        fitted = fit(rows_of_views(X, views), _each(y, views), _each(images, views), options)
        return _of_views(fitted, views)

    return fit_on_views


def _each(values: NDArray[Any], views: int) -> NDArray[Any]:
    """Return the value of every image once for each of its views."""
    return np.repeat(values, views, axis=0)


def _of_views(fitted: FittedHead, views: int) -> FittedHead:
    again, scores = fitted.refit, fitted.oof_scores

    def refit(X: NDArray[np.float32], y: NDArray[Any]) -> HeadModel | None:
        assert again is not None
        model = again(rows_of_views(X, views), _each(y, views))
        return None if model is None else replace(model, views=views)

    return replace(
        fitted,
        model=replace(fitted.model, views=views),
        oof_scores=None if scores is None else mean_of_views(scores, views),
        refit=None if again is None else refit,
    )
