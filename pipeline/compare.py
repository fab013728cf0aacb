"""Compare runs on the rows that all of them were tested on.

Axes: N rows, B bootstrap replicates.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import evaluate
from pipeline.errors import HeadError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Comparison:
    """A run against the first one.

    Attributes
    ----------
    run : str
        The run's folder.
    accuracy : Interval
        Its accuracy.
    difference : Interval
        Its accuracy minus the first run's, on the same resampled rows.
    only_first, only_this : int
        Rows that only the first run, and only this one, has right.
    p_value : float
        Exact two-sided McNemar test of these two counts.
    """

    run: str
    accuracy: evaluate.Interval
    difference: evaluate.Interval
    only_first: int
    only_this: int
    p_value: float


def compare_runs(
    runs: Sequence[str | os.PathLike[str]], *, split: str = "test", seed: int = 0, replicates: int = 1000
) -> list[Comparison]:
    """Compare the predictions of runs, row by row.

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
    first, *others = [predictions_of(Path(run), split) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        _check_same_rows(runs[0], run, first, other)
    keys = sorted(first)
    hits = [
        np.asarray([predicted == label for label, predicted in (table[key] for key in keys)], dtype=np.float64)
        for table in (first, *others)
    ]

    def measure(weight: NDArray[np.float64]) -> dict[str, float]:
        accuracy = [float(weight @ hit / weight.sum()) for hit in hits]
        figures = {f"accuracy {i}": value for i, value in enumerate(accuracy)}
        return figures | {f"difference {i}": value - accuracy[0] for i, value in enumerate(accuracy)}

    intervals = evaluate.bootstrap_intervals(measure, len(keys), seed=seed, replicates=replicates)
    out = []
    for i, (run, hit) in enumerate(zip(runs, hits, strict=True)):
        only_first, only_this = int(((hits[0] == 1) & (hit == 0)).sum()), int(((hits[0] == 0) & (hit == 1)).sum())
        differ = only_first + only_this
        p_value = float(binomtest(only_this, differ).pvalue) if differ else 1.0
        out.append(
            Comparison(
                str(run), intervals[f"accuracy {i}"], intervals[f"difference {i}"], only_first, only_this, p_value
            )
        )
    return out


def predictions_of(run: Path, split: str) -> dict[str, tuple[str, str]]:
    """Return label and prediction by key."""
    file = run / "predictions.csv"
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            rows = [(row["key"], row["split"], row["label"], row["predicted"]) for row in csv.DictReader(lines)]
    except (OSError, KeyError, csv.Error) as error:
        raise HeadError(
            f"cannot read the predictions of {run} ({error}): give folders that pipeline fit-head wrote"
        ) from None
    table = {key: (label, predicted) for key, its_split, label, predicted in rows if its_split == split}
    if not table:
        raise HeadError(f"{run} has no predictions on the {split} split: fit with a split that has one")
    return table


def _check_same_rows(
    first_run: str | os.PathLike[str],
    run: str | os.PathLike[str],
    first: dict[str, tuple[str, str]],
    other: dict[str, tuple[str, str]],
) -> None:
    if first.keys() != other.keys():
        differ = first.keys() ^ other.keys()
        raise HeadError(
            f"{first_run} and {run} were tested on other rows ({len(differ)} of {len(first.keys() | other.keys())} "
            f"differ, such as {min(differ)!r}): fit both with the same split or seed"
        )
    changed = [key for key, (label, _) in first.items() if other[key][0] != label]
    if changed:
        raise HeadError(
            f"{first_run} and {run} have other labels for {len(changed)} rows (such as {changed[0]!r}): "
            "fit both on the same labels"
        )
