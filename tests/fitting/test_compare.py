from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.fitting.compare import compare_runs

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def a_run(folder: Path, right: NDArray[np.bool_], *, label: str = "a", prefix: str = "") -> Path:
    folder.mkdir()
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "split", "label", "predicted"])
        # The order of the lines is not the same in every run.
        for i in np.random.default_rng(len(folder.name)).permutation(len(right)):
            writer.writerow([f"{prefix}{i}", "test", label, label if right[i] else "z"])
    return folder


def test_pairing_shows_what_two_intervals_would_hide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = rng.random(1000) < 0.8
    two = one.copy()
    two[np.flatnonzero(~one)[:20]] = True
    first, second = compare_runs([a_run(tmp_path / "one", one), a_run(tmp_path / "second", two)])
    assert second.difference.value == pytest.approx(0.02)
    assert second.difference.low > 0
    assert first.figure.high > second.figure.low
    assert (second.only_first, second.only_this) == (0, 20)
    assert second.p_value == pytest.approx(2 * 0.5**20)
    assert (first.difference.low, first.difference.high, first.p_value) == (0, 0, 1)


def test_rows_of_a_group_come_together_or_not_at_all(tmp_path: Path) -> None:
    """Twenty films of fifty frames, all right or none: there are twenty facts, not a thousand."""
    films = np.arange(20) % 3 == 0
    one, two = np.repeat(films, 50), np.repeat(films | (np.arange(20) % 7 == 1), 50)
    runs = [a_run(tmp_path / "one", one), a_run(tmp_path / "second", two)]
    alone = compare_runs(runs)[1].difference
    for run in runs:
        lines = (run / "predictions.csv").read_text().splitlines()
        groups = ["group", *(str(int(line.split(",")[0]) // 50) for line in lines[1:])]
        grouped = "\n".join(f"{line},{group}" for line, group in zip(lines, groups, strict=True))
        (run / "predictions.csv").write_text(grouped)
    together = compare_runs(runs)[1].difference
    assert together.value == alone.value > 0
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_runs_that_are_right_on_the_same_few_rows_may_differ_on_others(tmp_path: Path) -> None:
    right = np.ones(10, dtype=bool)
    first, second = compare_runs([a_run(tmp_path / "one", right), a_run(tmp_path / "second", right)])
    assert first.figure.low < 0.8
    assert second.difference.value == 0
    assert -0.3 < second.difference.low < -0.1
    assert 0.1 < second.difference.high < 0.3


def test_classes_that_tie_are_right_in_equal_parts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = ["key,split,label,predicted,p_a,p_b", *(f"{i},test,{'ab'[i % 2]},a,0.5,0.5" for i in range(20))]
        (tmp_path / name / "predictions.csv").write_text("\n".join(lines))
    assert compare_runs([tmp_path / "one", tmp_path / "two"])[0].figure.value == 0.5


def test_equal_heads_are_not_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    _, second = compare_runs([a_run(tmp_path / n, rng.random(500) < 0.8) for n in ("one", "second")])
    assert second.difference.low < 0 < second.difference.high
    assert second.p_value > 0.05


def test_other_rows_or_labels_are_refused(tmp_path: Path) -> None:
    right = np.ones(10, bool)
    one = a_run(tmp_path / "one", right)
    with pytest.raises(HeadError, match="other rows \\(20 of 20"):
        compare_runs([one, a_run(tmp_path / "rows", right, prefix="x")])
    with pytest.raises(HeadError, match="other labels for 10 rows"):
        compare_runs([one, a_run(tmp_path / "labels", right, label="b")])
    with pytest.raises(HeadError, match="at least 2 runs"):
        compare_runs([one])
    with pytest.raises(HeadError, match=r"cannot read .*predictions\.csv \(No such file or directory\): give folders"):
        compare_runs([one, tmp_path / "nowhere"])
    with pytest.raises(HeadError, match="no predictions on the val split"):
        compare_runs([one, one], split="val")


def test_numbers_are_compared_by_their_errors(tmp_path: Path) -> None:
    truth = np.arange(200.0)
    runs = []
    for name, error in (("one", 2.0), ("second", 1.0)):
        (tmp_path / name).mkdir()
        lines = [f"{i},test,{t},{t + error * (-1) ** i}" for i, t in enumerate(truth)]
        (tmp_path / name / "predictions.csv").write_text("\n".join(["key,split,label,predicted", *lines]))
        (tmp_path / name / "run.json").write_text('{"task": "regression"}')
        runs.append(tmp_path / name)
    first, second = compare_runs(runs)
    assert (first.measure, first.figure.value, second.figure.value) == ("MAE", 2.0, 1.0)
    assert second.difference.value == second.difference.low == second.difference.high == -1.0
    assert (second.only_first, second.only_this) == (0, 200)
    with pytest.raises(HeadError, match="found regression in"):
        compare_runs([runs[0], a_run(tmp_path / "classes", np.ones(3, bool))])
    (tmp_path / "second/run.json").write_text('{"task": "several"}')
    with pytest.raises(HeadError, match="a run for each target"):
        compare_runs(runs)
