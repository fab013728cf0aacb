"""What each position of an image contributes to the scores of a linear head.

Where an embedding is the mean of a feature map over positions, a linear score is the mean of a map of contributions:
``w · mean(f) + b = mean(w · f + b)``.

Axes: n images, h w positions, D features, K classes, T classes shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import HeadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.heads.saved import LoadedHead

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_LINEAR = ("linear", "cosine")


def check_linear(head: LoadedHead) -> None:
    """Refuse a head whose scores are no means of contributions.

    Raises
    ------
    HeadError
        It is not linear, or takes several layers.
    """
    if head.model.kind not in _LINEAR:
        raise HeadError(
            f"the {head.head} head is not linear, so its scores have no map over the image: fit logistic, ridge, lda, "
            "svm or centroid for maps"
        )
    if len(head.layers) > 1:
        raise HeadError(
            f"the head takes the layers {head.layer}, whose positions differ, so its scores have no one map over the "
            "image: fit a head on one layer for maps"
        )


class Contributions:
    """The maps of a linear head.

    A softmax knows differences of scores alone: a number that all classes share changes nothing. So of such a
    head, the score of a class is taken relative to the mean score of all classes.

    Parameters
    ----------
    head : LoadedHead
        Linear, on one layer; see `check_linear`.
    """

    def __init__(self, head: LoadedHead) -> None:
        check_linear(head)
        coef = np.asarray(head.model.arrays["coef"], dtype=np.float64)
        intercept = np.asarray(head.model.arrays["intercept"], dtype=np.float64)
        if head.model.link == "softmax":
            coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
        self._coef, self._intercept = coef, intercept
        self._has_unit_rows = head.model.kind == "cosine"

    def scores(self, X: NDArray[np.floating]) -> Floats:
        """Return the scores (n, K) of embeddings (n, D)."""
        return np.asarray((X / self._length(X)[:, None]) @ self._coef.T + self._intercept)

    def maps(self, features: NDArray[np.floating], X: NDArray[np.floating], classes: Ints) -> Floats:
        """Return the contributions to the scores of some classes.

        Parameters
        ----------
        features : ndarray of shape (n, h, w, D)
            Feature maps.
        X : ndarray of shape (n, D)
            Their means over positions: a head that scales rows to unit length divides by the length of the mean.
        classes : ndarray of shape (n, T)
            Which classes of each image.

        Returns
        -------
        ndarray of shape (n, T, h, w)
            The mean of each map is the score of the class.
        """
        weights = self._coef[classes] / self._length(X)[:, None, None]
        found = np.einsum("nhwd,ntd->nthw", features.astype(np.float64), weights, optimize=True)
        return np.asarray(found + self._intercept[classes][:, :, None, None])

    def _length(self, X: NDArray[np.floating]) -> Floats:
        """Return what each row is divided by."""
        if not self._has_unit_rows:
            return np.ones(len(X))
        length = np.linalg.norm(np.asarray(X, dtype=np.float64), axis=1)
        return np.asarray(np.where(length > 0, length, 1.0))
