"""The classes of a fit as a text tower reads them: plain arrays.

Axes: M prompts, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassTexts:
    """The classes of a fit as a text tower reads them.

    Attributes
    ----------
    features : ndarray of shape (K, D)
        Unit vectors: the mean of the unit vectors of a class's prompts, normalised.
    scale, bias : float
        The encoder's logit is ``scale`` · cosine + ``bias``.
    prompts : int
        How many prompts there are in all.
    """

    features: NDArray[np.float64]
    scale: float
    bias: float
    prompts: int

    @classmethod
    def of_prompts(
        cls, vectors: NDArray[np.floating], classes: NDArray[np.integer], *, scale: float, bias: float
    ) -> ClassTexts:
        """Average the prompts of each class.

        Parameters
        ----------
        vectors : ndarray of shape (M, D)
            Text features of M prompts.
        classes : ndarray of shape (M,)
            The class 0 … K−1 of each; every class has one.
        scale, bias : float
            See `ClassTexts`.
        """
        units = _unit(np.asarray(vectors, dtype=np.float64))
        means = [units[classes == label].mean(axis=0) for label in range(int(classes.max()) + 1)]
        return cls(_unit(np.stack(means)), scale, bias, len(units))

    @property
    def coef(self) -> NDArray[np.float64]:
        """Weights (K, D) on features of unit length."""
        return self.scale * self.features

    def coef_for(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return weights (K, D) on features as they are: those of unit length, for the mean length of these rows."""
        length = float(np.linalg.norm(X.astype(np.float64), axis=1).mean())
        return self.coef / length if length > 0 else self.coef


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0))
