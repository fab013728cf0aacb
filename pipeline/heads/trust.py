"""What a table of predictions says besides the prediction: novelty, label sets or intervals, and no label in doubt.

Axes: n rows, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import SET_SEPARATOR
from pipeline.errors import HeadError
from pipeline.evaluation import conformal, multilabel
from pipeline.heads.model import mean_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.heads.calibration import Calibration, ConformalScores
    from pipeline.heads.novelty import Novelty
    from pipeline.heads.saved import LoadedHead

    Floats = NDArray[np.float64]

NOVELTY, LABEL_SET, LOW, HIGH = "novelty", "set", "low", "high"
"""Columns of the table."""


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """What to say besides the prediction, and where to make none.

    Attributes
    ----------
    abstain_novelty : float or None
        Leave the label empty above this percentile of novelty.
    abstain_confidence : float or None
        Leave the label empty below this probability.
    coverage : float or None
        Write sets of classes, or intervals of numbers, that hold the truth this often.
    by_class : bool
        Every class by itself is covered as often.
    """

    abstain_novelty: float | None = None
    abstain_confidence: float | None = None
    coverage: float | None = None
    by_class: bool = False


class Trust:
    """The further columns of a table of predictions.

    Parameters
    ----------
    head : LoadedHead
    calibration : Calibration or None
        What its run keeps of the training rows.
    options : TrustOptions

    Attributes
    ----------
    header : list of str
        Names of the further columns.
    notes : list of str
        What is to be known, such as that calibration rows are few.

    Raises
    ------
    HeadError
        The run does not keep what an option needs, or the option does not apply to the task.
    """

    def __init__(self, head: LoadedHead, calibration: Calibration | None, options: TrustOptions) -> None:
        _check(head, options)
        self._head, self._options = head, options
        self._novelty = _novelty_of(calibration, options)
        self._thresholds: float | Floats | None = None
        self._rows = self._without = 0
        self.notes: list[str] = []
        self.header: list[str] = [] if self._novelty is None else [NOVELTY]
        if options.coverage is not None:
            scores = _scores_of(calibration)
            self._thresholds = scores.thresholds(options.coverage, len(head.class_names), by_class=options.by_class)
            self.notes += scores.warnings(options.coverage, head.class_names, by_class=options.by_class)
            self.header += [LOW, HIGH] if head.task == "regression" else [LABEL_SET]
        if self._novelty is not None and (options.abstain_novelty or 0) >= self._novelty.largest:
            self.notes.append(
                f"no row is ever above a novelty of {options.abstain_novelty:g}: the {len(self._novelty.held_out)} "
                f"training rows that were held out tell novelties up to {self._novelty.largest:.4g} apart"
            )

    def columns(self, X: NDArray[Any], predictions: Floats) -> tuple[list[list[str]], NDArray[np.bool_]]:
        """Return the cells of each row under ``header``, and where no label is to be given (n,)."""
        columns: list[list[str]] = []
        novelty = None
        if self._novelty is not None:
            novelty = self._novelty.percentiles(mean_view(X, self._head.model.views), predictions)
            columns.append([f"{value:.6g}" for value in novelty])
        if self._thresholds is not None:
            columns += self._sets(predictions)
        doubted = self._doubted(novelty, predictions)
        return [list(cells) for cells in zip(*columns, strict=True)] if columns else [[] for _ in X], doubted

    def count(self, doubted: NDArray[np.bool_]) -> None:
        """Count rows that have a prediction, and those of them without a label."""
        self._rows += len(doubted)
        self._without += int(doubted.sum())

    def lines(self) -> list[str]:
        """Return what the summary says."""
        options = self._options
        limits = []
        if options.abstain_novelty is not None:
            limits.append(f"novelty above {options.abstain_novelty:g}")
        if options.abstain_confidence is not None:
            limits.append(f"confidence below {options.abstain_confidence:g}")
        counted = f"no label for {self._without} of {self._rows} images ({' or '.join(limits)})"
        return [*self.notes, *([counted] if limits else [])]

    def _sets(self, predictions: Floats) -> list[list[str]]:
        assert self._thresholds is not None
        if self._head.task == "regression":
            off = float(np.asarray(self._thresholds))
            ends = (predictions[:, 0] - off, predictions[:, 0] + off)
            return [[f"{value:.10g}" for value in values] for values in ends]
        sets = conformal.label_sets(predictions, self._thresholds)
        return [[multilabel.joined(each, self._head.class_names) for each in sets]]

    def _doubted(self, novelty: Floats | None, predictions: Floats) -> NDArray[np.bool_]:
        doubted = np.zeros(len(predictions), dtype=np.bool_)
        if self._options.abstain_novelty is not None:
            assert novelty is not None
            doubted |= novelty > self._options.abstain_novelty
        if self._options.abstain_confidence is not None:
            doubted |= predictions.max(axis=1) < self._options.abstain_confidence
        return doubted


def _check(head: LoadedHead, options: TrustOptions) -> None:
    """Refuse options that do not apply to the task."""
    if options.abstain_confidence is not None and head.task != "classification":
        raise HeadError(f"--abstain-confidence is for classes, and the head's task is {head.task}: leave it out")
    if options.coverage is not None and head.task == "multilabel":
        raise HeadError("--coverage is for classes and numbers, and the head predicts label sets: leave it out")
    if options.coverage is not None and head.task == "classification":
        unclear = [name for name in head.class_names if SET_SEPARATOR in name]
        if unclear:
            raise HeadError(
                f"--coverage: expected class names without {SET_SEPARATOR}, which separates the classes of "
                f"a set, found {unclear[0]!r}: rename it, and fit the head again"
            )
    if options.by_class and (options.coverage is None or head.task != "classification"):
        raise HeadError("--coverage-by-class is for the sets of classes of --coverage: give both, or leave it out")


def _novelty_of(calibration: Calibration | None, options: TrustOptions) -> Novelty | None:
    found = None if calibration is None else calibration.novelty
    if found is None and options.abstain_novelty is not None:
        raise HeadError(
            "--abstain-novelty: the run keeps no means of its training rows, since an earlier version wrote it, or its "
            "rows were too few: fit the head again"
        )
    return found


def _scores_of(calibration: Calibration | None) -> ConformalScores:
    found = None if calibration is None else calibration.conformal
    if found is None:
        raise HeadError(
            "--coverage: the run keeps no scores of rows held out, since an earlier version wrote it, or its head "
            "holds none out: fit the head again, or another one such as logistic"
        )
    return found
