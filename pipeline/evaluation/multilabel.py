"""Metrics of predicted label sets, with intervals: pure functions on arrays.

Axes: N rows, L labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import SET_SEPARATOR
from pipeline.evaluation.bootstrap import Interval, bootstrap_intervals, one_by_one, replicates_for
from pipeline.evaluation.shares import effective_rows, mean_of_classes, share_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

THRESHOLD = 0.5
"""A label is predicted from this probability on."""


class AveragePrecision:
    """Average precision of one label under any row weights, sorted once.

    Parameters
    ----------
    truth : ndarray of shape (N,), bool
        Whether the row has the label.
    scores : ndarray of shape (N,)
        The larger, the more likely.

    Notes
    -----
    Σ (R_n − R_{n−1}) P_n over the distinct scores from the largest down, as scikit-learn defines it: no interpolation.
    """

    def __init__(self, truth: Bools, scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._truth = truth[self._order]
        self._last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))

    def __call__(self, weight: Floats) -> float:
        """Return the figure; NaN where no row of weight has the label."""
        heavy = weight[self._order]
        found = np.cumsum(heavy * self._truth)[self._last]
        if found[-1] <= 0:
            return float("nan")
        looked_at = np.cumsum(heavy)[self._last]
        precision = found / np.where(looked_at > 0, looked_at, 1.0)
        return float(np.diff(found, prepend=0.0) @ precision / found[-1])


class MeanAveragePrecision:
    """The mean of the labels' average precision under any row weights, over the labels that some row has.

    Parameters
    ----------
    truth : ndarray of shape (N, L), bool
        Which labels a row has.
    scores : ndarray of shape (N, L)
        The larger, the more likely.
    """

    def __init__(self, truth: Bools, scores: Floats) -> None:
        self._of_label = [AveragePrecision(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]

    def of_each(self, weight: Floats) -> Floats:
        """Return the average precision of each label (L,)."""
        return np.asarray([of_label(weight) for of_label in self._of_label])

    def __call__(self, weight: Floats) -> float:
        """Return the figure; NaN where no row of weight has a label."""
        return _mean_of_finite(self.of_each(weight))


def _mean_of_finite(each: Floats) -> float:
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def multilabel_metrics(
    truth: Bools,
    probabilities: Floats,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[dict[str, Interval], list[Interval]]:
    """Measure predicted label sets, every figure with its interval.

    That of the subset accuracy is `pipeline.evaluation.shares.share_interval`'s; the others are percentile bootstrap
    intervals, unless every resample gives the same value.

    Parameters
    ----------
    truth : ndarray of shape (N, L), bool
        Which labels a row has.
    probabilities : ndarray of shape (N, L)
        One for each label by itself.
    seed, replicates, level, groups
        As in `pipeline.evaluation.classification.classification_metrics`; fewer replicates are drawn for many labels.

    Returns
    -------
    figures : dict of str to Interval
        ``mean_average_precision`` over the labels that occur, ``micro_f1``, ``macro_f1`` (labels that neither occur
        nor are predicted do not count) and ``subset_accuracy`` (rows whose whole set is right).
    average_precision : list of Interval
        Of every label; NaN where no row has it.
    """
    n_rows, n_labels = truth.shape
    whole = ((probabilities >= THRESHOLD) == truth).all(axis=1).astype(np.float64)
    having = truth.sum(axis=0)
    by_label = mean_of_classes(having)
    found = bootstrap_intervals(
        one_by_one(_measured(truth, probabilities, whole)),
        n_rows,
        seed=seed,
        replicates=replicates_for(n_rows * n_labels, replicates),
        level=level,
        groups=groups,
        shares={"mean_average_precision": by_label, "macro_f1": by_label, "micro_f1": float(having.sum())}
        | {f"label {k}": float(count) for k, count in enumerate(having)},
    )
    share = found["subset_accuracy"].value
    found["subset_accuracy"] = Interval(share, *share_interval(share, effective_rows(whole, groups), level))
    return {name: figure for name, figure in found.items() if not name.startswith("label ")}, [
        found[f"label {k}"] for k in range(n_labels)
    ]


def _measured(truth: Bools, probabilities: Floats, whole: Floats) -> Callable[[Floats], dict[str, float]]:
    """Return the function that measures under row weights; ``whole`` (N,) says where the whole set is right."""
    predicted = probabilities >= THRESHOLD
    both = (predicted & truth).astype(np.float64)
    either = predicted.astype(np.float64) + truth
    precision = MeanAveragePrecision(truth, probabilities)

    def measure(weight: Floats) -> dict[str, float]:
        hit, all_of = weight @ both, weight @ either
        seen = all_of > 0
        each = precision.of_each(weight)
        figures = {
            "mean_average_precision": _mean_of_finite(each),
            "micro_f1": float(2 * hit.sum() / all_of.sum()) if seen.any() else float("nan"),
            "macro_f1": float((2 * hit[seen] / all_of[seen]).mean()) if seen.any() else float("nan"),
            "subset_accuracy": float(weight @ whole / weight.sum()),
        }
        return figures | {f"label {k}": float(value) for k, value in enumerate(each)}

    return measure


def per_label_table(
    truth: Bools, probabilities: Floats, names: tuple[str, ...], average_precision: list[Interval]
) -> list[dict[str, Any]]:
    """Return row count, average precision with its interval, precision, recall and F1 of every label."""
    predicted = probabilities >= THRESHOLD
    table = []
    for k, name in enumerate(names):
        hit, has, said = (int(a.sum()) for a in (predicted[:, k] & truth[:, k], truth[:, k], predicted[:, k]))
        table.append(
            {
                "label": name,
                "rows": has,
                "average_precision": average_precision[k].as_dict(),
                "precision": hit / said if said else float("nan"),
                "recall": hit / has if has else float("nan"),
                "f1": 2 * hit / (has + said) if has + said else float("nan"),
            }
        )
    return table


def joined(has: Bools, names: tuple[str, ...]) -> str:
    """Write a set of labels as one text.

    Examples
    --------
    >>> joined(np.array([True, False, True]), ("cat", "dog", "fox"))
    'cat|fox'
    """
    return SET_SEPARATOR.join(name for name, is_there in zip(names, has, strict=True) if is_there)
