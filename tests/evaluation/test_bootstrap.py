"""The bootstrap measures blocks of resamples: each figure is that of its resample alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.metrics import f1_score

from pipeline.evaluation.bootstrap import bootstrap_intervals, bootstrap_weights, one_by_one, weighted_means
from pipeline.evaluation.classification import classification_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize("rows", [1, 7, 30_000])  # several, many and one resample to a block
@pytest.mark.parametrize("grouped", [False, True])
def test_resamples_come_in_their_order_whatever_the_block(rows: int, grouped: bool) -> None:
    groups = np.arange(rows) // 2 if grouped else None
    place = np.arange(rows, dtype=np.float64) % 97 + 1
    seen: list[float] = []

    def measure(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        seen.extend(weights @ place)
        return {"mean": weighted_means(weights, place)}

    bootstrap_intervals(measure, rows, seed=3, replicates=205, groups=groups)
    draw = bootstrap_weights(rows, seed=3, replicates=205, groups=groups)
    assert seen == [place.sum(), *(draw(b) @ place for b in range(205))]


def test_a_measure_of_one_resample_gives_the_same_intervals() -> None:
    values = np.random.default_rng(0).normal(size=60)
    found = bootstrap_intervals(lambda weights: {"mean": weighted_means(weights, values)}, 60, replicates=300)
    single = bootstrap_intervals(one_by_one(lambda w: {"mean": float(w @ values / w.sum())}), 60, replicates=300)
    assert found == single
    assert found["mean"].low < found["mean"].value < found["mean"].high


def test_a_class_that_a_resample_lacks_does_not_count_in_it() -> None:
    rng = np.random.default_rng(1)
    y = np.array([0, 1, 1, 2, 2, 2, 3])
    p = rng.dirichlet(np.ones(5), len(y))  # the fifth class has no rows, but may be predicted
    found = classification_metrics(y, p, seed=4, replicates=200)
    draw = bootstrap_weights(len(y), seed=4, replicates=200)
    drawn = [np.repeat(np.arange(len(y)), draw(b).astype(int)) for b in range(200)]
    assert any(len(np.unique(y[rows])) < 4 for rows in drawn)
    predicted = p.argmax(axis=1)
    recalls = [[(predicted[rows][y[rows] == k] == k).mean() for k in np.unique(y[rows])] for rows in drawn]
    expected = {
        "balanced_accuracy": [np.mean(each) for each in recalls],
        "macro_f1": [f1_score(y[rows], predicted[rows], average="macro") for rows in drawn],
    }
    for name, values in expected.items():
        ends = np.percentile(values, [2.5, 97.5])
        assert (found[name].low, found[name].high) == pytest.approx(tuple(ends))
