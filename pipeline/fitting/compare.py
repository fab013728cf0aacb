"""Compare runs on the rows that all of them were tested on.

Axes: N rows, B bootstrap replicates.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import HeadError, first_line
from pipeline.evaluation import bootstrap
from pipeline.evaluation.shares import effective_rows, share_interval
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.run_folder import PREDICTIONS_FILE, read_run

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.tasks import Task


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
    task = _common_task(runs)
    tables = _tables_of_same_rows(runs, split)
    keys = sorted(tables[0])
    cost = [_cost(task, [table[key] for key in keys]) for table in tables]
    groups = [group for key in keys if (group := tables[0][key].group) is not None] or None
    intervals = paired_intervals(task, cost, groups, seed=seed, replicates=replicates)
    return [
        Comparison(
            str(run),
            task.measure_name,
            intervals[f"figure {i}"],
            intervals[f"difference {i}"],
            *_test_of_counts(int((cost[0] < cost[i]).sum()), int((cost[i] < cost[0]).sum())),
        )
        for i, run in enumerate(runs)
    ]


def _common_task(runs: Sequence[str | os.PathLike[str]]) -> Task:
    if len(runs) < 2:
        raise HeadError(f"expected at least 2 runs to compare, got {len(runs)}: name another run")
    names = [_task_name(Path(run)) for run in runs]
    for run, name in zip(runs, names, strict=True):
        if name != names[0]:
            raise HeadError(
                f"expected runs of one task, found {names[0]} in {runs[0]} and {name} in {run}: "
                "compare runs of one task"
            )
    return TASKS[names[0]]


def _task_name(run: Path) -> str:
    """Return the task of a run; classification where its ``run.json`` does not say."""
    try:
        name = read_run(run)["task"]
    except (HeadError, KeyError):
        return "classification"
    if name not in TASKS:
        raise HeadError(f"{run} holds a run for each target: compare the folders below it")
    return str(name)


def _tables_of_same_rows(runs: Sequence[str | os.PathLike[str]], split: str) -> list[dict[str, Prediction]]:
    first, *others = [predictions_of(Path(run), split) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        _check_same_rows(runs[0], run, first, other)
    return [first, *others]


def paired_intervals(
    task: Task, cost: Sequence[NDArray[np.float64]], groups: Sequence[str] | None, *, seed: int, replicates: int
) -> dict[str, bootstrap.Interval]:
    """Return the figure of each of several predictors, and its difference to the first one's, on the same resamples.

    Parameters
    ----------
    task : Task
        What is predicted.
    cost : sequence of ndarray of shape (N,)
        Each one's cost of every row; see `pipeline.evaluation.tasks.Task.cost`.
    groups : sequence of str or None
        Group of every row; whole groups are resampled.
    seed, replicates : int
        Of the bootstrap.

    Returns
    -------
    dict of str to Interval
        ``"figure i"`` and ``"difference i"`` of each.
    """
    # A figure that falls as rows get better is a mean cost; one that rises counts the rows without cost.
    scored = cost if task.measure_is_cost else [1 - c for c in cost]

    def measure(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        mean = [bootstrap.weighted_means(weights, row) for row in scored]
        figures = {f"figure {i}": value for i, value in enumerate(mean)}
        return figures | {f"difference {i}": value - mean[0] for i, value in enumerate(mean)}

    intervals = bootstrap.bootstrap_intervals(measure, len(cost[0]), seed=seed, replicates=replicates, groups=groups)
    return intervals if task.measure_is_cost else intervals | _of_shares(scored, intervals, groups)


def _test_of_counts(only_first: int, only_this: int) -> tuple[int, int, float]:
    """Return the counts and the p-value of their exact two-sided test."""
    from scipy.special import betainc  # scipy.stats takes half a second more

    # At p = ½ the distribution is symmetric: twice the tail up to the smaller count, by the incomplete beta function.
    less, more = sorted((only_first, only_this))
    tail = float(betainc(more, less + 1, 0.5)) if more else 0.5
    return only_first, only_this, min(1.0, 2.0 * tail)


def _of_shares(
    scored: Sequence[NDArray[np.float64]], intervals: dict[str, bootstrap.Interval], groups: Sequence[str] | None
) -> dict[str, bootstrap.Interval]:
    """Return the intervals of shares of right rows, and of differences in which the bootstrap found no spread.

    Where two runs are right on the same rows, a difference is bounded as Bonett and Price do ("Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", J. Educ. Behav. Stat. 37, 2012): one more
    row each way.
    """
    rows = len(scored[0]) if groups is None else len(set(groups))
    out = {}
    for i, right in enumerate(scored):
        share = float(right.mean())
        out[f"figure {i}"] = bootstrap.Interval(share, *share_interval(share, effective_rows(right, groups)))
        difference = intervals[f"difference {i}"]
        if i and difference.is_point:
            both = 1.0 / (rows + 2)
            half = 1.96 * (2 * both / (rows + 2)) ** 0.5
            ends = max(difference.value - half, -1.0), min(difference.value + half, 1.0)
            out[f"difference {i}"] = bootstrap.Interval(difference.value, *ends)
    return out


def _cost(task: Task, rows: list[Prediction]) -> NDArray[np.float64]:
    try:
        return task.cost([row.label for row in rows], [row.predicted for row in rows], [row.hit for row in rows])
    except ValueError as error:
        raise HeadError(f"expected numbers in the predictions of a regression ({error}): fit the head again") from None


class Prediction(NamedTuple):
    """A row of ``predictions.csv``: label, prediction, group, and how right it is."""

    label: str
    predicted: str
    group: str | None
    hit: float

    @classmethod
    def of(cls, row: dict[str, str]) -> Prediction:
        """Take a line of the table; classes that tie for the largest probability are right in equal parts."""
        hit = float(row["label"] == row["predicted"])
        most = row.get(f"p_{row['predicted']}")
        if most is not None and row.get(f"p_{row['label']}") == most:
            hit = 1.0 / sum(value == most for name, value in row.items() if name.startswith("p_"))
        return cls(row["label"], row["predicted"], row.get("group"), hit)


def predictions_of(run: Path, split: str) -> dict[str, Prediction]:
    """Return what a run predicted on a split, by key.

    Raises
    ------
    HeadError
        It has no predictions, or none on this split.
    """
    file = run / PREDICTIONS_FILE
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            table = {row["key"]: Prediction.of(row) for row in csv.DictReader(lines) if row["split"] == split}
    except (OSError, KeyError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise HeadError(f"cannot read {file} ({reason}): give folders that pipeline fit-head wrote") from None
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
