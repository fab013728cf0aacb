"""What each task predicts, measures and writes: classes, label sets, numbers.

Axes: N rows, K classes, L labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.evaluation import bootstrap, calibration, classification, multilabel, regression
from pipeline.evaluation.choice import hits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TaskName = Literal["classification", "regression", "multilabel"]

_LEAST = float(np.finfo(np.float32).eps)
"""The least probability that counts, as in the log loss."""
_STRATA = 10
"""Parts of the range of numbers that a hold-out keeps in their shares."""


class Task(ABC):
    """What differs between classes, label sets and numbers.

    Attributes
    ----------
    links : tuple of str
        How scores become predictions: class probabilities or shares of neighbours, one probability a label, numbers.
        The first is the default.
    score, score_name : str
        The figure that curves show, and what it is called.
    score_is_share : bool
        Whether it lies in [0, 1] as the share of correct rows does.
    measure_name : str
        The figure by which runs are compared.
    measure_is_cost : bool
        Whether that figure is the mean cost of the rows, and not the share without cost.
    """

    links: ClassVar[tuple[str, ...]]
    score: ClassVar[str]
    score_name: ClassVar[str]
    score_is_share: ClassVar[bool] = True
    measure_name: ClassVar[str]
    measure_is_cost: ClassVar[bool] = False

    @abstractmethod
    def strata(self, y: NDArray[Any], held: float | None = None) -> NDArray[np.int64]:
        """Return what a hold-out keeps in its shares (N,); of ``held`` rows in all, where their number is known."""

    def temperature(self, scores: Floats, y: NDArray[Any], *, log_probabilities: bool) -> float:
        """Return the temperature of out-of-fold scores (N, K)."""
        return 1.0

    @abstractmethod
    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return figures with intervals by name, as they are written."""

    @abstractmethod
    def scorer(self, y: NDArray[Any], predictions: Floats) -> Callable[[Floats], Floats]:
        """Return a function from weights (R, N) to the figure that curves show (R,)."""

    @abstractmethod
    def losses(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return each row's loss (N,), by which settings of one data set are compared."""

    @abstractmethod
    def costs(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return each row's cost (N,), by which runs are compared: 1 minus how right it is, or its absolute error."""

    def evidence(self, predictions: Floats) -> Floats:
        """Return what is averaged over the rows of a group (N, K): the numbers, or logarithms of probabilities."""
        return predictions

    def of_evidence(self, evidence: Floats, temperature: float) -> Floats:
        """Return the predictions of pooled evidence (N, K)."""
        return evidence

    @abstractmethod
    def decide(self, predictions: Floats, names: tuple[str, ...]) -> NDArray[Any]:
        """Return what is predicted: class names (N,), a boolean matrix (N, L), or the numbers (N, 1)."""

    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return the columns of a table of predictions."""
        return ["predicted", *(f"p_{name}" for name in names)]

    @abstractmethod
    def cells(self, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return the cells of one row under ``header``."""

    @abstractmethod
    def label(self, y: Any, names: tuple[str, ...]) -> str:
        """Return the cell of one row's true value."""

    @abstractmethod
    def headline(self, figures: dict[str, Any]) -> str:
        """Return the main figures in one line."""

    def cost(self, labels: Sequence[str], predicted: Sequence[str], hits: Sequence[float]) -> Floats:
        """Return each row's cost from its cells: by default 1 minus how correct it is, from 0 to 1.

        Raises
        ------
        ValueError
            The cells are not of this task.
        """
        return 1.0 - np.asarray(hits, dtype=np.float64)


class Classification(Task):
    """One class of K."""

    links = ("softmax", "shares")
    score, score_name = "accuracy", "accuracy"
    measure_name = "accuracy"

    def strata(self, y: NDArray[Any], held: float | None = None) -> NDArray[np.int64]:
        """Return the classes."""
        return np.asarray(y, dtype=np.int64)

    def temperature(self, scores: Floats, y: NDArray[Any], *, log_probabilities: bool) -> float:
        """Return the temperature of the softmax."""
        return calibration.fit_temperature(scores, y, log_probabilities=log_probabilities)

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return accuracy, log loss and the like."""
        return _plain(classification.classification_metrics(y, predictions, **bootstrap))

    def scorer(self, y: NDArray[Any], predictions: Floats) -> Callable[[Floats], Floats]:
        """Return a function of weights that gives the accuracy."""
        right = hits(predictions, y)
        return lambda weights: bootstrap.weighted_means(weights, right)

    def losses(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return −log of the probability of each row's class."""
        return classification.row_losses(y, predictions)

    def costs(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return 1 where the most probable class is wrong, a share where classes tie."""
        return 1.0 - hits(predictions, y)

    def evidence(self, predictions: Floats) -> Floats:
        """Return log-probabilities; no row excludes a class for its group."""
        return np.asarray(np.log(np.clip(predictions, _LEAST, 1.0)))

    def of_evidence(self, evidence: Floats, temperature: float) -> Floats:
        """Return the softmax."""
        return calibration.softmax(evidence / temperature)

    def decide(self, predictions: Floats, names: tuple[str, ...]) -> NDArray[Any]:
        """Return the name of the most probable class."""
        return np.asarray(np.asarray(names)[predictions.argmax(axis=1)])

    def cells(self, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return the predicted class and the probabilities."""
        return [names[int(predictions.argmax())], *(f"{p:.6g}" for p in predictions)]

    def label(self, y: Any, names: tuple[str, ...]) -> str:
        """Return the class name."""
        return names[int(y)]

    def headline(self, figures: dict[str, Any]) -> str:
        """Return accuracy and log loss."""
        return f"accuracy {with_interval(figures['accuracy'])}, log loss {figures['log_loss']['value']:.4f}"


class Multilabel(Task):
    """Any set of L labels."""

    links = ("sigmoid",)
    score, score_name = "mean_average_precision", "mean average precision"
    measure_name = "subset accuracy"

    def strata(self, y: NDArray[Any], held: float | None = None) -> NDArray[np.int64]:
        """Return each row's rarest label."""
        rarity = np.where(y, y.sum(axis=0), len(y) + 1)
        return np.asarray(np.where(y.any(axis=1), rarity.argmin(axis=1), y.shape[1]), dtype=np.int64)

    def temperature(self, scores: Floats, y: NDArray[Any], *, log_probabilities: bool) -> float:
        """Return one temperature for the sigmoids of all labels."""
        # A sigmoid is a softmax of two.
        pairs = np.stack([np.zeros(scores.size), scores.ravel()], axis=1)
        return calibration.fit_temperature(pairs, y.ravel().astype(np.int64), log_probabilities=log_probabilities)

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return mean average precision, F1 and the like, and the table of labels."""
        figures, each = multilabel.multilabel_metrics(y, predictions, **bootstrap)
        return _plain(figures) | {"labels": multilabel.per_label_table(y, predictions, names, each)}

    def scorer(self, y: NDArray[Any], predictions: Floats) -> Callable[[Floats], Floats]:
        """Return a function of weights that gives the mean average precision."""
        of_weight = multilabel.MeanAveragePrecision(y, predictions)
        return lambda weights: np.array([of_weight(weight) for weight in weights])

    def losses(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return the mean of −log of the probabilities of what each label is."""
        right = np.where(y, predictions, 1.0 - predictions)
        return np.asarray(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean(axis=1))

    def costs(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return 1 where the set of labels is not wholly right."""
        return np.asarray(((predictions >= multilabel.THRESHOLD) != y).any(axis=1), dtype=np.float64)

    def evidence(self, predictions: Floats) -> Floats:
        """Return log-odds; no row settles a label for its group."""
        clipped = np.clip(predictions, _LEAST, 1.0 - _LEAST)
        return np.asarray(np.log(clipped) - np.log1p(-clipped))

    def of_evidence(self, evidence: Floats, temperature: float) -> Floats:
        """Return the sigmoid."""
        return np.asarray(1.0 / (1.0 + np.exp(-evidence / temperature)))

    def decide(self, predictions: Floats, names: tuple[str, ...]) -> NDArray[Any]:
        """Return which labels are predicted."""
        return np.asarray(predictions >= multilabel.THRESHOLD)

    def cells(self, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return the joined predicted labels and the probabilities."""
        return [self.label(predictions >= multilabel.THRESHOLD, names), *(f"{p:.6g}" for p in predictions)]

    def label(self, y: Any, names: tuple[str, ...]) -> str:
        """Return the joined labels."""
        return multilabel.joined(y, names)

    def headline(self, figures: dict[str, Any]) -> str:
        """Return mean average precision and micro F1."""
        return (
            f"mean average precision {with_interval(figures['mean_average_precision'])}, "
            f"micro F1 {figures['micro_f1']['value']:.4f}"
        )


class Regression(Task):
    """A number."""

    links = ("identity",)
    score, score_name = "r2", "R²"
    score_is_share = False
    measure_name = "MAE"
    measure_is_cost = True

    def strata(self, y: NDArray[Any], held: float | None = None) -> NDArray[np.int64]:
        """Return tenths of the range, or fewer parts: each has a row to hold out, and one that is not."""
        parts = _STRATA if held is None else int(np.clip(min(round(held), len(y) - round(held)), 1, _STRATA))
        edges = np.unique(np.quantile(y, np.linspace(0, 1, parts + 1)[1:-1]))
        return np.asarray(np.searchsorted(edges, y, side="right"), dtype=np.int64)

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return R², errors and rank correlation."""
        return _plain(regression.regression_metrics(y, predictions[:, 0], **bootstrap))

    def scorer(self, y: NDArray[Any], predictions: Floats) -> Callable[[Floats], Floats]:
        """Return a function of weights that gives R²."""
        return lambda weights: np.array([regression.r2(y, predictions[:, 0], weight) for weight in weights])

    def losses(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return the squared errors."""
        return np.asarray((predictions[:, 0] - y) ** 2)

    def costs(self, y: NDArray[Any], predictions: Floats) -> Floats:
        """Return the absolute errors."""
        return np.asarray(np.abs(predictions[:, 0] - y))

    def decide(self, predictions: Floats, names: tuple[str, ...]) -> NDArray[Any]:
        """Return the numbers."""
        return predictions

    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return one column."""
        return ["predicted"]

    def cells(self, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return the number."""
        return [f"{predictions[0]:.10g}"]

    def label(self, y: Any, names: tuple[str, ...]) -> str:
        """Return the number."""
        return f"{y:.10g}"

    def headline(self, figures: dict[str, Any]) -> str:
        """Return R² and mean absolute error."""
        return f"R² {with_interval(figures['r2'])}, MAE {figures['mae']['value']:.4g}"

    def cost(self, labels: Sequence[str], predicted: Sequence[str], hits: Sequence[float]) -> Floats:
        """Return the absolute errors."""
        return np.abs(np.asarray(predicted, dtype=np.float64) - np.asarray(labels, dtype=np.float64))


TASKS: dict[str, Task] = {"classification": Classification(), "multilabel": Multilabel(), "regression": Regression()}
"""Every task by name."""


def _plain(figures: dict[str, bootstrap.Interval]) -> dict[str, Any]:
    return {name: figure.as_dict() for name, figure in figures.items()}


def with_interval(figure: Mapping[str, float]) -> str:
    """Write a figure and its interval, also where rows are too few for either.

    Examples
    --------
    >>> with_interval({"value": 0.5, "low": 0.4, "high": 0.6})
    '0.5000 (0.4000 to 0.6000)'
    >>> nan = float("nan")
    >>> with_interval({"value": 0.5, "low": nan, "high": nan}), with_interval({"value": nan, "low": nan, "high": nan})
    ('0.5000 (no interval)', 'not defined')
    """
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    if np.isnan(value):
        return "not defined"
    return f"{value:.4f} ({'no interval' if np.isnan(low) else f'{low:.4f} to {high:.4f}'})"
