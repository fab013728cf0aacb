from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from pipeline.evaluation.multilabel import AveragePrecision, MeanAveragePrecision, multilabel_metrics, per_label_table


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), ties=st.booleans())
def test_average_precision_is_scikit_learns_under_any_weights(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    truth[0] = True
    scores = np.round(rng.random(n), 1 if ties else 12)
    weight = rng.integers(0, 4, n).astype(np.float64)
    weight[0] = 1
    expected = average_precision_score(truth, scores, sample_weight=weight)
    assert AveragePrecision(truth, scores)(weight) == pytest.approx(expected)


def test_the_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 4)) < [0.5, 0.3, 0.1, 0.02]
    p = np.clip(0.6 * truth + 0.5 * rng.random((200, 4)), 0, 1)
    figures, each = multilabel_metrics(truth, p, replicates=200)
    predicted = p >= 0.5
    assert figures["micro_f1"].value == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert figures["macro_f1"].value == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert figures["subset_accuracy"].value == pytest.approx(accuracy_score(truth, predicted))
    mean = average_precision_score(truth, p, average="macro")
    assert figures["mean_average_precision"].value == pytest.approx(mean)
    assert MeanAveragePrecision(truth, p)(np.ones(200)) == pytest.approx(mean)
    for k, interval in enumerate(each):
        assert interval.value == pytest.approx(average_precision_score(truth[:, k], p[:, k]))
        assert interval.low <= interval.value <= interval.high
    table = per_label_table(truth, p, ("a", "b", "c", "d"), each)
    assert [row["rows"] for row in table] == truth.sum(axis=0).tolist()
    assert table[1]["f1"] == pytest.approx(f1_score(truth[:, 1], predicted[:, 1]))


def test_a_label_nobody_has_does_not_count() -> None:
    truth = np.zeros((20, 2), dtype=np.bool_)
    truth[::2, 0] = True
    p = np.where(truth, 0.9, 0.1)
    figures, each = multilabel_metrics(truth, p, replicates=200)
    assert figures["mean_average_precision"].value == figures["macro_f1"].value == 1
    assert np.isnan(each[1].value)
    assert np.isnan(per_label_table(truth, p, ("a", "b"), each)[1]["recall"])
