"""Compare runs on the rows that all of them were tested on.

Axes: N rows, B bootstrap replicates.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation import bootstrap

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MEASURES = {"classification": "accuracy", "multilabel": "subset accuracy", "regression": "MAE"}


@dataclass(frozen=True)
class Comparison:
    """A run against the first one.

    Attributes
    ----------
    run : str
        The run's folder.
    measure : str
        ``"accuracy"`` for classes, ``"subset accuracy"`` for label sets, ``"MAE"`` for numbers.
    figure : Interval
        What the run scores by it.
    difference : Interval
        Its figure minus the first run's, on the same resampled rows.
    only_first, only_this : int
        Rows that only the first run, and only this one, has right; of numbers, rows where its prediction is nearer.
    p_value : float
        Exact two-sided test of these two counts: McNemar's, and for numbers the sign test.
    """

    run: str
    measure: str
    figure: bootstrap.Interval
    difference: bootstrap.Interval
    only_first: int
    only_this: int
    p_value: float


def compare_runs(
    runs: Sequence[str | os.PathLike[str]], *, split: str = "test", seed: int = 0, replicates: int = 1000
) -> list[Comparison]:
    """Compare the predictions of runs of one task, row by row.

    Where the rows have groups, whole groups are resampled; the test of the counts takes rows as independent.

    Parameters
    ----------
    runs : sequence of path
        Run folders; the first is what the others are held against.
    split : str
        ``"test"`` or ``"val"``.
    seed, replicates
        Of the paired bootstrap.

    Returns
    -------
    list of Comparison
        One for each run; the first one's difference is zero.

    Raises
    ------
    HeadError
        Fewer than two runs, no predictions, or other rows or labels than the first run's.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947); the exact form is a binomial test of the rows on which the two disagree.
    """
    from scipy.stats import binomtest

    if len(runs) < 2:
        raise HeadError(f"expected at least 2 runs to compare, got {len(runs)}")
    tasks = [_task(Path(run)) for run in runs]
    for run, task in zip(runs, tasks, strict=True):
        if task != tasks[0]:
            raise HeadError(f"{runs[0]} is a run of {tasks[0]}, {run} one of {task}: compare runs of one task")
    first, *others = [predictions_of(Path(run), split) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        _check_same_rows(runs[0], run, first, other)
    keys = sorted(first)
    cost = [_cost(tasks[0], [(table[key].label, table[key].predicted) for key in keys]) for table in (first, *others)]
    # A figure that falls as rows get better is a mean cost; one that rises counts the rows without cost.
    scored = cost if tasks[0] == "regression" else [1 - c for c in cost]

    def measure(weight: NDArray[np.float64]) -> dict[str, float]:
        mean = [float(weight @ row / weight.sum()) for row in scored]
        figures = {f"figure {i}": value for i, value in enumerate(mean)}
        return figures | {f"difference {i}": value - mean[0] for i, value in enumerate(mean)}

    groups = [group for key in keys if (group := first[key].group) is not None]
    intervals = bootstrap.bootstrap_intervals(
        measure, len(keys), seed=seed, replicates=replicates, groups=groups or None
    )
    out = []
    for i, run in enumerate(runs):
        only_first, only_this = int((cost[0] < cost[i]).sum()), int((cost[i] < cost[0]).sum())
        differ = only_first + only_this
        out.append(
            Comparison(
                str(run),
                _MEASURES[tasks[0]],
                intervals[f"figure {i}"],
                intervals[f"difference {i}"],
                only_first,
                only_this,
                float(binomtest(only_this, differ).pvalue) if differ else 1.0,
            )
        )
    return out


def _task(run: Path) -> str:
    """Return the task of a run; classification where its ``run.json`` does not say."""
    try:
        task = json.loads((run / "run.json").read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return "classification"
    if task not in _MEASURES:
        raise HeadError(f"{run} holds a run for each target: compare the folders below it")
    return str(task)


def _cost(task: str, rows: list[tuple[str, str]]) -> NDArray[np.float64]:
    """Return what each row's prediction is off: 0 or 1, or the absolute error of a number."""
    if task != "regression":
        return np.asarray([label != predicted for label, predicted in rows], dtype=np.float64)
    try:
        numbers = np.asarray(rows, dtype=np.float64)
    except ValueError as error:
        raise HeadError(f"expected numbers in the predictions of a regression ({error}): fit the head again") from None
    return np.abs(numbers[:, 1] - numbers[:, 0])


class Prediction(NamedTuple):
    """A row of ``predictions.csv``: what it is, what it was taken for, and what it belongs together with."""

    label: str
    predicted: str
    group: str | None


def predictions_of(run: Path, split: str) -> dict[str, Prediction]:
    """Return what a run predicted on a split, by key.

    Raises
    ------
    HeadError
        It has no predictions, or none on this split.
    """
    file = run / "predictions.csv"
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            table = {
                row["key"]: Prediction(row["label"], row["predicted"], row.get("group"))
                for row in csv.DictReader(lines)
                if row["split"] == split
            }
    except (OSError, KeyError, csv.Error) as error:
        raise HeadError(
            f"cannot read the predictions of {run} ({error}): give folders that pipeline fit-head wrote"
        ) from None
    if not table:
        raise HeadError(f"{run} has no predictions on the {split} split: fit with a split that has one")
    return table


def _check_same_rows(
    first_run: str | os.PathLike[str],
    run: str | os.PathLike[str],
    first: dict[str, Prediction],
    other: dict[str, Prediction],
) -> None:
    if first.keys() != other.keys():
        differ = first.keys() ^ other.keys()
        raise HeadError(
            f"{first_run} and {run} were tested on other rows ({len(differ)} of {len(first.keys() | other.keys())} "
            f"differ, such as {min(differ)!r}): fit both with the same split or seed"
        )
    changed = [key for key, row in first.items() if other[key].label != row.label]
    if changed:
        raise HeadError(
            f"{first_run} and {run} have other labels for {len(changed)} rows (such as {changed[0]!r}): "
            "fit both on the same labels"
        )
