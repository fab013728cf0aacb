"""A fitted head as a few arrays, and scores from them in plain numpy.

Every linear head is one `HeadModel` of kind ``linear``; so is nearest centroid, because
``−‖x − c‖²`` is linear in x up to a term that all classes share. Prediction imports neither torch nor scikit-learn.

Axes: N rows, D features, K classes, T targets, H hidden units, M training rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.vectors import unit_rows
from pipeline.evaluation.calibration import softmax
from pipeline.heads.neighbours import (
    METRICS,
    WEIGHTS,
    Space,
    count_votes,
    log_shares,
    search,
    vote_weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

_BLOCK_ROWS = 4096

ARRAYS: dict[str, tuple[str, ...]] = {
    "linear": ("coef", "intercept"),
    "cosine": ("coef", "intercept"),
    "mlp": ("mean", "scale", "weight_0", "bias_0", "weight_1", "bias_1"),
    "knn": ("neighbours", "classes", "n_neighbors", "center", "scale", "metric", "weighting", "smoothing"),
}
"""The arrays of every kind of head."""

SHARES_ARRAYS = ("neighbours", "classes", "n_neighbors")
"""The arrays of a k-NN head whose link is ``"shares"``: uniform votes by cosine, as earlier versions wrote it."""


def arrays_of(kind: str, link: str) -> tuple[str, ...]:
    """Return the names of the arrays of a head of this kind and link."""
    return SHARES_ARRAYS if link == "shares" else ARRAYS[kind]


def linear_scores(X: Array, coef: Array, intercept: Array) -> NDArray[np.float64]:
    """Return ``X @ coef.T + intercept`` in float64, block by block so that X is never copied whole.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Features.
    coef : ndarray of shape (K, D)
        Weights.
    intercept : ndarray of shape (K,)
        Intercepts.
    """
    columns = np.ascontiguousarray(coef.T, dtype=np.float64)
    out = np.empty((len(X), columns.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        np.matmul(X[rows].astype(np.float64), columns, out=out[rows])
    out += intercept
    return out


def cosine_scores(X: Array, coef: Array, intercept: Array) -> NDArray[np.float64]:
    """Return `linear_scores` of rows scaled to unit length; a row of zeros stays one."""
    out = np.empty((len(X), len(coef)))
    for start in range(0, len(X), _BLOCK_ROWS):
        block = np.asarray(X[start : start + _BLOCK_ROWS], dtype=np.float64)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        out[start : start + len(block)] = linear_scores(block / np.where(length > 0, length, 1.0), coef, intercept)
    return out


def two_columns(coef: NDArray[Any], intercept: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Turn scikit-learn's one row for two classes into two rows with the same softmax."""
    if len(coef) == 1:
        return np.concatenate([np.zeros_like(coef), coef]), np.concatenate([np.zeros_like(intercept), intercept])
    return coef, intercept


def expected_shapes(kind: str, width: int, outputs: int, arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shape that every array of a head must have.

    Parameters
    ----------
    kind : str
        Key of ``ARRAYS``.
    width : int
        D.
    outputs : int
        K or T.
    arrays : mapping
        The arrays found; H and M are read from them.
    """
    if kind in ("linear", "cosine"):
        return {"coef": (outputs, width), "intercept": (outputs,)}
    if kind == "mlp":
        hidden = int(arrays["bias_0"].size)
        return {
            "mean": (width,),
            "scale": (width,),
            "weight_0": (width, hidden),
            "bias_0": (hidden,),
            "weight_1": (hidden, outputs),
            "bias_1": (outputs,),
        }
    kept = int(arrays["classes"].size)
    settings = dict.fromkeys(("n_neighbors", "metric", "weighting", "smoothing"), (1,))
    shapes = {"neighbours": (kept, width), "classes": (kept,), "center": (width,), "scale": (width,)} | settings
    return {name: shape for name, shape in shapes.items() if name in arrays}


def rows_of_views(X: Array, views: int) -> Array:
    """Return the views of images (N · V, D), those of an image one after the other, from (N, V · D)."""
    return X.reshape(len(X) * views, -1)


def mean_of_views(rows: Array, views: int) -> NDArray[Any]:
    """Return the mean (N, …) over the views of every image, from a row for each view (N · V, …)."""
    return np.asarray(rows.reshape(-1, views, *rows.shape[1:]).mean(axis=1))


def mean_view(X: Array, views: int) -> Array:
    """Return the mean (N, D) of the views of every image, from (N, V · D)."""
    return X if views == 1 else mean_of_views(rows_of_views(X, views), views)


@dataclass(frozen=True)
class HeadModel:
    """Arrays and how they turn features into predictions.

    Attributes
    ----------
    kind : str
        ``"linear"``, ``"cosine"`` (linear on rows of unit length), ``"mlp"`` (one hidden layer, ReLU) or ``"knn"``;
        ``"estimator"`` is not saved.
    arrays : mapping of str to ndarray
        As `arrays_of` lists them.
    link : str
        One of `pipeline.evaluation.tasks.Task.links`.
    outputs : int
        K or T.
    temperature : float
        Scores are divided by it before the softmax or sigmoid.
    views : int
        V: how many views of an image a row of features holds, side by side; the scores are the mean over them.
    """

    kind: str
    arrays: Mapping[str, Array]
    link: str
    outputs: int
    temperature: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)
    views: int = 1

    @property
    def width(self) -> int:
        """Return how many features a row has, of all views together."""
        return self.views * self.width_of_view

    @property
    def width_of_view(self) -> int:
        """Return D."""
        return int(self.arrays[ARRAYS[self.kind][0]].shape[-1])

    def scores(self, X: Array) -> NDArray[np.float64]:
        """Return scores (N, K) before link and temperature."""
        if self.views == 1:
            return self._scores(X)
        return mean_of_views(self._scores(rows_of_views(X, self.views)), self.views)

    def _scores(self, X: Array) -> NDArray[np.float64]:
        a = self.arrays
        if self.kind == "linear":
            return linear_scores(X, a["coef"], a["intercept"])
        if self.kind == "cosine":
            return cosine_scores(X, a["coef"], a["intercept"])
        if self.kind == "knn" and self.link != "shares":
            return self._neighbour_votes(X)
        out = np.empty((len(X), self.outputs))
        for start in range(0, len(X), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            block = np.asarray(X[rows], dtype=np.float32)
            out[rows] = self._mlp(block) if self.kind == "mlp" else self._neighbour_shares(block)
        return out

    def _mlp(self, block: NDArray[np.float32]) -> Array:
        a = self.arrays
        hidden = (block - a["mean"]) / a["scale"] @ a["weight_0"] + a["bias_0"]
        np.maximum(hidden, 0.0, out=hidden)
        return np.asarray(hidden @ a["weight_1"] + a["bias_1"])

    def _neighbour_votes(self, X: Array) -> NDArray[np.float64]:
        """Return log shares (N, K) of weighted votes."""
        a = self.arrays
        space, metric = Space(a["center"], a["scale"]), METRICS[int(a["metric"][0])]
        count, weights = int(a["n_neighbors"][0]), WEIGHTS[int(a["weighting"][0])]
        out = np.empty((len(X), self.outputs))
        for start in range(0, len(X), _BLOCK_ROWS):
            block = space.place(X[start : start + _BLOCK_ROWS])
            if metric == "cosine":
                block = unit_rows(block)
            for rows, _, distance, near in search(block, a["neighbours"], count, (metric,)):
                votes = count_votes(vote_weights(distance, weights), a["classes"][near], self.outputs)
                first = start + rows.start
                out[first : first + len(votes)] = log_shares(votes, self.outputs, float(a["smoothing"][0]))
        return out

    def _neighbour_shares(self, block: NDArray[np.float32]) -> Array:
        a = self.arrays
        count = int(a["n_neighbors"][0])
        norm = np.linalg.norm(block, axis=1, keepdims=True)
        similarity = (block / np.where(norm > 0, norm, 1.0)) @ a["neighbours"].T
        near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        classes = a["classes"][near]
        rows = np.arange(len(block))[:, None] * self.outputs
        votes = np.bincount((classes + rows).ravel(), minlength=len(block) * self.outputs)
        return np.asarray(votes.reshape(len(block), self.outputs) / count)

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        """Return probabilities (N, K): of classes, or of each label by itself for a multilabel head."""
        return self.link_scores(self.scores(X))

    def link_scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn scores into predictions."""
        if self.link == "softmax":
            return softmax(scores / self.temperature)
        if self.link == "sigmoid":
            from scipy.special import expit

            return np.asarray(expit(scores / self.temperature))
        return scores
