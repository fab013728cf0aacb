"""What each task predicts and measures: classes, numbers, label sets.

Axes: N rows, K classes, L labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.evaluation import bootstrap, calibration, classification, multilabel, regression
from pipeline.evaluation.choice import hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.fitting.rows import Rows
    from pipeline.fitting.settings import FitSettings
    from pipeline.heads.fit import FittedHead
    from pipeline.heads.model import HeadModel

    Floats = NDArray[np.float64]


class Task(ABC):
    """What a task predicts, and how that is measured and written.

    Attributes
    ----------
    score : str
        The figure that curves show.
    score_is_share : bool
        Whether it lies in [0, 1] as the share of right rows does.
    """

    score: ClassVar[str]
    score_is_share: ClassVar[bool] = True

    def temperature(self, fitted: FittedHead, y: NDArray[Any], settings: FitSettings) -> float:
        """Return what scores are divided by: from out-of-fold scores, or as the head found it itself."""
        if not settings.calibrate:
            return 1.0
        if fitted.oof_scores is None:
            return fitted.model.temperature
        held_out = np.isfinite(fitted.oof_scores).all(axis=1)
        return self._temperature(fitted.oof_scores[held_out], y[held_out], fitted.log_probabilities)

    def _temperature(self, scores: Floats, y: NDArray[Any], log_probabilities: bool) -> float:
        return 1.0

    def predictions(self, model: HeadModel, scores: Floats) -> Floats:
        """Return probabilities (N, K) or (N, L), or numbers (N, 1)."""
        return model.link_scores(scores)

    @abstractmethod
    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return figures with intervals by name, as they are written."""

    @abstractmethod
    def score_of(self, y: NDArray[Any], predictions: Floats, weight: Floats) -> float:
        """Return the figure that curves show."""

    @abstractmethod
    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return the columns of ``predictions.csv`` after key and split."""

    @abstractmethod
    def cells(self, y: Any, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return the cells of one row under ``header``."""

    @abstractmethod
    def headline(self, figures: dict[str, Any]) -> str:
        """Return the figures a person asks for first, in a line."""


class Classification(Task):
    """One class of K."""

    score = "accuracy"

    def _temperature(self, scores: Floats, y: NDArray[Any], log_probabilities: bool) -> float:
        return calibration.fit_temperature(scores, y, log_probabilities=log_probabilities)

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return accuracy and its kin."""
        return _plain(classification.classification_metrics(y, predictions, **bootstrap))

    def score_of(self, y: NDArray[Any], predictions: Floats, weight: Floats) -> float:
        """Return the accuracy."""
        return float(weight @ hits(predictions, y) / weight.sum())

    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return label, predicted class and a probability a class."""
        return ["label", "predicted", *(f"p_{name}" for name in names)]

    def cells(self, y: Any, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return class names and probabilities."""
        return [names[y], names[int(predictions.argmax())], *(f"{p:.6g}" for p in predictions)]

    def headline(self, figures: dict[str, Any]) -> str:
        """Return accuracy and log loss."""
        return f"accuracy {_with_interval(figures['accuracy'])}, log loss {figures['log_loss']['value']:.4f}"


class Multilabel(Task):
    """Any set of L labels."""

    score = "mean_average_precision"

    def _temperature(self, scores: Floats, y: NDArray[Any], log_probabilities: bool) -> float:
        # A sigmoid is a softmax of two; one temperature for all labels.
        pairs = np.stack([np.zeros(scores.size), scores.ravel()], axis=1)
        return calibration.fit_temperature(pairs, y.ravel().astype(np.int64), log_probabilities=log_probabilities)

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return mean average precision and its kin, and the table of labels."""
        figures, each = multilabel.multilabel_metrics(y, predictions, **bootstrap)
        return _plain(figures) | {"labels": multilabel.per_label_table(y, predictions, names, each)}

    def score_of(self, y: NDArray[Any], predictions: Floats, weight: Floats) -> float:
        """Return the mean average precision."""
        return multilabel.mean_average_precision(y, predictions, weight)

    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return labels, predicted labels and a probability a label."""
        return ["label", "predicted", *(f"p_{name}" for name in names)]

    def cells(self, y: Any, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return joined names and probabilities."""
        return [
            multilabel.joined(y, names),
            multilabel.joined(predictions >= multilabel.THRESHOLD, names),
            *(f"{p:.6g}" for p in predictions),
        ]

    def headline(self, figures: dict[str, Any]) -> str:
        """Return mean average precision and micro F1."""
        return (
            f"mean average precision {_with_interval(figures['mean_average_precision'])}, "
            f"micro F1 {figures['micro_f1']['value']:.4f}"
        )


class Regression(Task):
    """A number."""

    score = "r2"
    score_is_share = False

    def measure(self, y: NDArray[Any], predictions: Floats, names: tuple[str, ...], **bootstrap: Any) -> dict[str, Any]:
        """Return R² and its kin."""
        return _plain(regression.regression_metrics(y, predictions[:, 0], **bootstrap))

    def score_of(self, y: NDArray[Any], predictions: Floats, weight: Floats) -> float:
        """Return R²."""
        return regression.r2(y, predictions[:, 0], weight)

    def header(self, names: tuple[str, ...]) -> list[str]:
        """Return the true and the predicted number."""
        return ["label", "predicted"]

    def cells(self, y: Any, predictions: Floats, names: tuple[str, ...]) -> list[str]:
        """Return both numbers."""
        return [f"{y:.10g}", f"{predictions[0]:.10g}"]

    def headline(self, figures: dict[str, Any]) -> str:
        """Return R² and mean absolute error."""
        return f"R² {_with_interval(figures['r2'])}, MAE {figures['mae']['value']:.4g}"


TASKS: dict[str, Task] = {"classification": Classification(), "multilabel": Multilabel(), "regression": Regression()}
"""Every task by name."""


def measure_splits(
    rows: Rows, scores: dict[str, Floats], fitted: FittedHead, temperature: float, settings: FitSettings
) -> dict[str, Any]:
    """Measure every split that was held out, and keep what the report shows.

    Parameters
    ----------
    rows : Rows
        The rows used.
    scores : dict of str to ndarray of shape (N, K)
        Scores of the head by split, the measured one first.
    fitted : FittedHead
        The head.
    temperature : float
        What scores are divided by.
    settings : FitSettings
        ``seed`` and ``replicates`` count.

    Returns
    -------
    dict
        ``metrics``, what is written; ``predictions`` and, where a temperature changed them, ``uncalibrated``, by split;
        ``oof_predictions``; ``calibration``, the number of ``rows`` that the temperature was fitted on; ``sweep``,
        ``chosen``, ``temperature`` and ``held_out``.
    """
    task = TASKS[rows.task]
    tempered = replace(fitted.model, temperature=temperature)
    metrics: dict[str, Any] = {}
    results: dict[str, Any] = {"metrics": metrics, "predictions": {}, "held_out": rows.held_out}
    for split, of_split in scores.items():
        at = rows.of(split)
        predictions = task.predictions(tempered, of_split)
        groups = None if rows.groups is None else rows.groups[at]
        metrics[split] = task.measure(
            rows.y[at],
            predictions,
            rows.class_names,
            seed=settings.seed,
            replicates=settings.replicates,
            groups=groups,
        )
        metrics[split]["rows"] = len(at)
        results["predictions"][split] = predictions
        if temperature != 1.0:
            before = task.predictions(replace(fitted.model, temperature=1.0), of_split)
            results.setdefault("uncalibrated", {})[split] = before
            if rows.task == "classification":
                hit = hits(before, rows.y[at])
                metrics[split]["before_calibration"] = {
                    "ece": calibration.expected_calibration_error(before.max(1), hit),
                    "log_loss": float(classification.row_losses(rows.y[at], before).mean()),
                }
    held_out = 0 if fitted.oof_scores is None else int(np.isfinite(fitted.oof_scores).all(axis=1).sum())
    results["calibration"] = {"rows": held_out or int(fitted.chosen.get("validation_rows", 0))}
    if fitted.oof_scores is not None:
        results["oof_predictions"] = task.predictions(tempered, fitted.oof_scores)
    facts = {"chosen": fitted.chosen, "temperature": temperature, "sweep": fitted.sweep}
    metrics |= facts
    return results | facts


def _plain(figures: dict[str, bootstrap.Interval]) -> dict[str, Any]:
    return {name: figure.as_dict() for name, figure in figures.items()}


def _with_interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
