"""The head that is refitted after every action: a linear model on reduced embeddings, warm-started.

Axes: n labelled rows, N rows, d directions, K classes, labels of sets, or 1 for numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labelling.state import CLASSES, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

PENALTY = 0.1
"""Of the squared weights, for points with a mean squared length of 1: the best of 0.01, 0.03, 0.1 and 0.3 at 200 and
at 500 random labels of Fashion-MNIST."""
_NUMBER_PENALTY = 0.1
_MOST_STEPS = 60
_FOLDS = 5


@dataclass(frozen=True)
class Linear:
    """A fitted linear model.

    Attributes
    ----------
    task : str
    weights : (K, d + 1) float32
        The last column is the intercept.
    """

    task: str
    weights: Floats

    def outputs(self, points: Floats) -> Floats:
        """Return class probabilities, a probability for each label, or numbers, (N, d) to (N, K)."""
        z = points @ self.weights[:, :-1].T
        z += self.weights[:, -1]
        if self.task == NUMBERS:
            return z
        return _softmax(z) if self.task == CLASSES else _sigmoid(z)


def fit(task: str, points: Floats, y: NDArray[Any], classes: int, start: Floats | None = None) -> Linear:
    """Fit a linear model.

    Parameters
    ----------
    task : str
        What kind of labels.
    points : (n, d) float32
        The labelled rows.
    y : (n,) int64 below K, (n, K) bool, or (n,) float64
        Their labels.
    classes : int
        K; 1 for numbers.
    start : (K', d + 1) float32, optional
        The weights of the last fit, with which the solver starts; K' may be smaller.

    Returns
    -------
    Linear
        L2-penalised softmax or logistic regression, or ridge regression.
    """
    if task == NUMBERS:
        return Linear(task, _ridge(points, np.asarray(y, dtype=np.float64)))
    target = np.eye(classes, dtype=np.float32)[y] if task == CLASSES else np.asarray(y, dtype=np.float32)
    weights = np.zeros((classes, points.shape[1] + 1), np.float32)
    if start is not None:
        weights[: min(len(start), classes)] = start[:classes]
    return Linear(task, _minimize(_loss(task, points, target), weights))


def out_of_fold(task: str, points: Floats, y: NDArray[Any], classes: int, seed: int = 0) -> Floats:
    """Return the outputs for labelled rows of models that were fitted without them, (n, K)."""
    fold = np.random.default_rng(seed).permutation(len(points)) % min(_FOLDS, len(points))
    out = np.zeros((len(points), classes), np.float32)
    for k in range(fold.max() + 1):
        inside = fold == k
        out[inside] = fit(task, points[~inside], y[~inside], classes).outputs(points[inside])
    return out


def _loss(task: str, points: Floats, target: Floats) -> Callable[[Floats], tuple[float, Floats]]:
    """Return the penalised loss and its gradient as a function of the weights."""

    def value(weights: Floats) -> tuple[float, Floats]:
        z = points @ weights[:, :-1].T + weights[:, -1]
        p = _softmax(z) if task == CLASSES else _sigmoid(z)
        if task == CLASSES:
            loss = -np.log(np.maximum((p * target).sum(axis=1), 1e-30)).sum(dtype=np.float64)
        else:  # log(1 + exp(z)) - z y, without overflow
            loss = (np.maximum(z, 0) - z * target + np.log1p(np.exp(-np.abs(z)))).sum(dtype=np.float64)
        slope = np.empty_like(weights)
        rest = p - target
        slope[:, :-1] = rest.T @ points + PENALTY * weights[:, :-1]
        slope[:, -1] = rest.sum(axis=0)
        return float(loss + PENALTY / 2 * np.square(weights[:, :-1]).sum(dtype=np.float64)), slope

    return value


def _minimize(loss: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    from scipy.optimize import minimize  # takes a third of a second to load

    def flat(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, slope = loss(w.reshape(start.shape).astype(np.float32))
        return value, slope.ravel().astype(np.float64)

    options = {"maxiter": _MOST_STEPS, "ftol": 1e-6}
    found = minimize(flat, start.ravel().astype(np.float64), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float32).reshape(start.shape)


def _ridge(points: Floats, y: NDArray[np.float64]) -> Floats:
    """Return ridge weights (1, d + 1): solved in the span of the rows where these are fewer than the directions."""
    mean, middle = points.mean(axis=0, dtype=np.float64), y.mean()
    centred, rest = points - mean, y - middle
    n, d = centred.shape
    if n <= d:
        weights = centred.T @ np.linalg.solve(centred @ centred.T + _NUMBER_PENALTY * np.eye(n), rest)
    else:
        weights = np.linalg.solve(centred.T @ centred + _NUMBER_PENALTY * np.eye(d), centred.T @ rest)
    return np.asarray([[*weights, middle - mean @ weights]], dtype=np.float32)


def _softmax(z: Floats) -> Floats:
    z = z - z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -60, 60))), dtype=np.float32)


def decided(task: str, outputs: Floats) -> Ints:
    """Return one number for what is predicted for each row, so that changes can be counted, (N, K) to (N,)."""
    if task == CLASSES:
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)
    if task == NUMBERS:
        return np.round(outputs[:, 0].astype(np.float64), 2).view(np.int64)
    weights = np.random.default_rng(0).integers(1, 2**40, outputs.shape[1])  # a sum that tells sets apart
    return np.asarray((outputs >= 0.5) @ weights, dtype=np.int64)


def doubt(task: str, outputs: Floats) -> Floats:
    """Return how unsure the model is of each row, from 0 to 1: nothing is known of numbers."""
    if task == NUMBERS:
        return np.zeros(len(outputs), np.float32)
    if task == CLASSES:
        if outputs.shape[1] < 2:
            return np.zeros(len(outputs), np.float32)
        two = np.partition(outputs, -2, axis=1)[:, -2:]
        return np.asarray(1 - (two[:, 1] - two[:, 0]), dtype=np.float32)
    return np.asarray(1 - 2 * np.abs(outputs - np.float32(0.5)).min(axis=1), dtype=np.float32)
