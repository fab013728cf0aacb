"""Classes by their texts: the class whose prompts lie nearest to the image, in the space of a dual encoder.

Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.errors import HeadError
from pipeline.evaluation.calibration import softmax
from pipeline.heads.base import ClassHead
from pipeline.heads.fit import FitOptions, FittedHead
from pipeline.heads.model import HeadModel, cosine_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ZeroShotHead(ClassHead):
    """The class whose texts have the largest cosine to the image. Fitting only learns the names of the classes.

    Parameters
    ----------
    coef : ndarray of shape (K, D)
        Text features of the classes, in sorted order of the classes, times the encoder's scale.
    bias : float
        The encoder's.

    References
    ----------
    Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021, section 3.1.
    """

    def __init__(self, coef: ArrayLike = (), bias: float = 0.0) -> None:
        self.coef = coef
        self.bias = bias

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn the classes.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes, as many as ``coef`` has rows.

        Raises
        ------
        ValueError
            scikit-learn's own; for another number of classes or features.
        """
        data, _ = self._validate(X, y)
        coef = np.asarray(self.coef, dtype=np.float64)
        if coef.shape != (len(self.classes_), data.shape[1]):
            raise ValueError(f"expected coef of shape {(len(self.classes_), data.shape[1])}, got {coef.shape}")
        self.coef_ = coef
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the encoder's logits (N, K)."""
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        return cosine_scores(data, self.coef_, np.full(len(self.coef_), self.bias))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (N, K)."""
        return softmax(self.decision_function(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the largest logit."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(axis=1)])


def fit_zero_shot(
    X: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[Any] | None, options: FitOptions
) -> FittedHead:
    """Return the head of the prompts; the rows only give it a temperature.

    Raises
    ------
    HeadError
        There are no prompts.
    """
    texts = options.texts
    if texts is None:
        raise HeadError("the zero-shot head reads texts of the classes: give them with --prompts FILE")
    if options.params or options.scaling != "none" or options.class_weight is not None:
        raise HeadError("the zero-shot head is not fitted: leave --set, --scaling and --balanced out")
    estimator = ZeroShotHead(texts.coef, texts.bias).fit(X, y)
    intercept = np.full(len(texts.features), texts.bias)
    model = HeadModel("cosine", {"coef": texts.coef, "intercept": intercept}, "softmax", len(intercept))
    return FittedHead(
        estimator,
        model,
        oof_scores=model.scores(X),  # no row was seen
        log_probabilities=False,  # the scale was learnt on other images and other texts
        chosen={"scale": texts.scale, "bias": texts.bias, "prompts": texts.prompts},
    )
