from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads import LoadedHead
from pipeline.heads.calibration import Calibration, ConformalScores, TrainingRows
from pipeline.heads.model import HeadModel
from pipeline.heads.novelty import fit_novelty
from pipeline.heads.trust import Trust, TrustOptions

USUAL = np.linspace(-1, -0.1, 100)
TRAINING = TrainingRows("c.h5", "f", "k", np.arange(3), np.zeros(3, np.int64))


def head_of(task: str = "classification", names: tuple[str, ...] = ("ant", "bee", "cat")) -> LoadedHead:
    link = {"classification": "softmax", "multilabel": "sigmoid", "regression": "identity"}[task]
    model = HeadModel(
        "linear", {"coef": np.zeros((len(names), 4)), "intercept": np.zeros(len(names))}, link, len(names)
    )
    return LoadedHead(model, names, "penultimate", {}, "f", "logistic", task)


def scores(values: Any, source: str = "out-of-fold") -> ConformalScores:
    values = np.asarray(values, dtype=np.float64)
    return ConformalScores(values, np.zeros(len(values), np.int64), np.arange(len(values)), source)


def calibration(values: Any = USUAL) -> Calibration:
    X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32) + 3
    return Calibration(TRAINING, fit_novelty(X), scores(values))


P = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.34, 0.33, 0.33]])
X = np.full((3, 4), 3.0, dtype=np.float32) * np.array([[1], [1], [-1]], dtype=np.float32)


def test_sets_hold_the_classes_whose_score_is_usual() -> None:
    found = Trust(head_of(), calibration(), TrustOptions(coverage=0.8))
    assert found.header == ["novelty", "set"]
    # The 81st of 100 scores from -1 to -0.1 is -0.273: a class needs that probability.
    cells, doubted = found.columns(X, P)
    assert [each[1] for each in cells] == ["ant", "bee", "ant|bee|cat"]
    assert not doubted.any()
    novelty = [float(each[0]) for each in cells]
    assert novelty[0] == novelty[1] < 50
    assert novelty[2] > 99


def test_labels_in_doubt_are_left_out_and_counted() -> None:
    both = Trust(head_of(), calibration(), TrustOptions(abstain_novelty=95, abstain_confidence=0.8))
    cells, doubted = both.columns(X, P)
    assert doubted.tolist() == [True, False, True]
    assert all(len(each) == 1 for each in cells)
    both.count(doubted)
    assert both.lines() == ["no label for 2 of 3 images (novelty above 95 or confidence below 0.8)"]
    alone = Trust(head_of(), calibration(), TrustOptions(abstain_novelty=95)).columns(X, P)[1]
    assert alone.tolist() == [False, False, True]


def test_numbers_have_intervals_as_wide_as_the_usual_error() -> None:
    found = Trust(head_of("regression", ("age",)), calibration(np.arange(1.0, 20.0)), TrustOptions(coverage=0.9))
    assert found.header == ["novelty", "low", "high"]
    cells, _ = found.columns(X, np.array([[10.0], [0.0], [-2.5]]))
    assert [each[1:] for each in cells] == [["-8", "28"], ["-18", "18"], ["-20.5", "15.5"]]
    few = Trust(head_of("regression", ("age",)), calibration([1.0, 2.0]), TrustOptions(coverage=0.9))
    assert few.columns(X, np.ones((3, 1)))[0][0][1:] == ["-inf", "inf"]
    assert few.lines() == ["2 calibration rows are too few for a coverage of 0.9, which takes 9: nothing is ruled out"]


def test_a_run_that_keeps_nothing_predicts_as_before_and_refuses_the_rest() -> None:
    plain = Trust(head_of(), None, TrustOptions())
    assert plain.header == []
    assert plain.columns(X, P)[0] == [[], [], []]
    assert plain.lines() == []
    for options, message in (
        (TrustOptions(abstain_novelty=99), "--abstain-novelty: the run keeps no .*: fit the head again"),
        (TrustOptions(coverage=0.9), "--coverage: the run keeps no .*: fit the head again"),
    ):
        with pytest.raises(HeadError, match=message):
            Trust(head_of(), None, options)
    assert Trust(head_of(), None, TrustOptions(abstain_confidence=0.5)).columns(X, P)[1].tolist() == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (head_of("regression", ("age",)), TrustOptions(abstain_confidence=0.5), "--abstain-confidence is for classes"),
        (head_of("multilabel"), TrustOptions(abstain_confidence=0.5), "--abstain-confidence is for classes"),
        (head_of("multilabel"), TrustOptions(coverage=0.9), "--coverage is for classes and numbers"),
        (head_of(), TrustOptions(by_class=True), "give both"),
        (head_of("regression", ("age",)), TrustOptions(coverage=0.9, by_class=True), "--coverage-by-class"),
        (head_of(names=("a|b", "c", "d")), TrustOptions(coverage=0.9), r"'a\|b'"),
    ],
)
def test_options_of_other_tasks_are_refused(head: LoadedHead, options: TrustOptions, message: str) -> None:
    with pytest.raises(HeadError, match=message) as caught:
        Trust(head, calibration(), options)
    assert "\n" not in str(caught.value)


def test_a_percentile_that_no_row_can_pass_is_said() -> None:
    found = Trust(head_of(), calibration(), TrustOptions(abstain_novelty=99.9))
    assert found.lines()[0].startswith("no row is ever above a novelty of 99.9: the 200 training rows")
    without = Trust(head_of(), replace(calibration(), conformal=None), TrustOptions())
    assert without.header == ["novelty"]
