from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from pipeline.errors import HeadError
from pipeline.evaluation import calibration, classification, splits


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n_rows=st.integers(5, 60), n_classes=st.integers(2, 6))
def test_metrics_are_scikit_learns(seed: int, n_rows: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_rows)
    p = rng.dirichlet(np.ones(n_classes), n_rows)
    found = classification.classification_metrics(y, p, replicates=200)
    predicted = p.argmax(axis=1)
    assert found["accuracy"].value == pytest.approx(accuracy_score(y, predicted))
    assert found["macro_f1"].value == pytest.approx(f1_score(y, predicted, average="macro"))
    assert found["log_loss"].value == pytest.approx(log_loss(y, p, labels=range(n_classes)), rel=1e-5)
    recalls = [(predicted[y == k] == k).mean() for k in np.unique(y)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    for interval in found.values():
        assert interval.low <= interval.high


def test_balanced_accuracy_is_scikit_learns() -> None:
    y, p = np.array([0, 0, 1, 2, 2, 2]), np.eye(3)[[0, 1, 1, 2, 2, 0]]
    found = classification.classification_metrics(y, p)["balanced_accuracy"].value
    assert found == pytest.approx(balanced_accuracy_score(y, p.argmax(axis=1)))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        y = np.zeros(150, np.int64)
        p = np.where(rng.random(150) < 0.8, 0.9, 0.1)
        found = classification.classification_metrics(y, np.stack([p, 1 - p], axis=1), seed=trial, replicates=200)
        covered += found["accuracy"].low <= 0.8 <= found["accuracy"].high
    assert 0.90 <= covered / 100 <= 0.99


def test_whole_groups_are_resampled() -> None:
    """Rows copied ten times over hold no more evidence than one of them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    p = rng.dirichlet(np.ones(2), 100)
    one = classification.classification_metrics(y, p)["accuracy"]
    many = (np.repeat(y, 10), np.repeat(p, 10, axis=0))
    grouped = classification.classification_metrics(*many, groups=np.repeat(np.arange(100), 10))["accuracy"]
    alone = classification.classification_metrics(*many)["accuracy"]
    assert grouped.high - grouped.low == pytest.approx(one.high - one.low, rel=0.1)
    assert alone.high - alone.low < 0.5 * (one.high - one.low)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.6), n_classes=st.integers(2, 5))
def test_a_hold_out_keeps_every_class_on_both_sides(seed: int, share: float, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.full(rng.integers(2, 40), k) for k in range(n_classes)])
    split = splits.hold_out(y, share=share, seed=seed)
    for k in range(n_classes):
        count, out = (y == k).sum(), (split[y == k] == "test").sum()
        assert 1 <= out < count
        assert abs(out - share * count) <= 1
    np.testing.assert_array_equal(split, splits.hold_out(y, share=share, seed=seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_group_lies_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, groups = rng.integers(0, 3, 200), rng.integers(0, 40, 200)
    split = splits.hold_out(y, share=0.25, seed=seed, groups=groups)
    assert not np.intersect1d(groups[split == "train"], groups[split == "test"]).size
    fold = splits.fold_numbers(y, 4, seed=seed, groups=groups)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    assert set(fold) == {0, 1, 2, 3}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.6, 0.7])
def test_whole_groups_come_near_the_share(share: float) -> None:
    groups = np.repeat(np.arange(200), 5)
    y = np.arange(1000) % 3
    split = splits.hold_out(y, share=share, seed=0, groups=groups)
    assert (split == "test").mean() == pytest.approx(share, abs=0.02)
    assert not set(groups[split == "test"]) & set(groups[split == "train"])


def test_a_split_of_other_words_is_refused() -> None:
    with pytest.raises(HeadError, match=r"'tets' \(2 rows\): did you mean test"):
        splits.named_split(["train", "tets", "tets"])


def test_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 4)) * 2
    y = (calibration.softmax(scores).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert calibration.fit_temperature(scores * 3, y) == pytest.approx(3.0, rel=0.05)
    before = calibration.softmax(scores * 3)
    after = calibration.softmax(scores * 3 / calibration.fit_temperature(scores * 3, y))
    eces = [calibration.expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == y) for p in (before, after)]
    assert eces[1] < 0.25 * eces[0]


def test_the_class_table_counts() -> None:
    confusion = classification.confusion_matrix(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), 3)
    table = classification.per_class_table(confusion, ("a", "b", "c"))
    assert table[0]["recall"] == 0.5
    assert table[1] | {"recall": 0, "precision": 0, "f1": 0} == {
        "class": "b", "rows": 3, "recall": 0, "precision": 0, "f1": 0, "taken_for": "a", "taken_for_rows": 1,
    }  # fmt: skip
    assert np.isnan(float(table[2]["recall"]))


@pytest.mark.parametrize("alone", [0.0, 0.5, 0.99])
def test_folds_of_groups_keep_the_classes_even(alone: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(4, 2000, p=[0.6, 0.3, 0.08, 0.02])
    groups = np.where(rng.random(2000) < alone, np.arange(2000), 2000 + rng.integers(0, 300, 2000))
    fold = splits.fold_numbers(y, 5, seed=1, groups=groups)
    counts = np.stack([np.bincount(y[fold == k], minlength=4) for k in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 3).all()
    assert np.ptp(counts.sum(axis=1)) <= 6
    assert (fold != splits.fold_numbers(y, 5, seed=2, groups=groups)).any()
