from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pipeline.evaluation.bootstrap import bootstrap_weights
from pipeline.evaluation.regression import parts_of_range, regression_metrics


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 60), ties=st.booleans())
def test_the_figures_are_scikit_learns_and_scipys(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=n), 0 if ties else 9) + np.arange(n) % 2
    predicted = np.round(truth + rng.normal(size=n), 0 if ties else 9) + 0.1 * (np.arange(n) == 0)
    assume(len(np.unique(truth)) > 1)  # without it R² is not defined, which scikit-learn calls 0
    found = regression_metrics(truth, predicted, replicates=200)
    assert found["r2"].value == pytest.approx(r2_score(truth, predicted))
    assert found["mae"].value == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(truth, predicted))
    if len(np.unique(predicted)) > 1:
        assert found["spearman"].value == pytest.approx(spearmanr(truth, predicted).statistic)


def test_a_replicate_is_the_resample_itself() -> None:
    """Row counts give what the rows drawn would give, ties of the repeated rows and all."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    predicted = truth + rng.normal(size=40)
    found = regression_metrics(truth, predicted, replicates=300, seed=5)
    draw = bootstrap_weights(40, seed=5, replicates=300)
    values = []
    for b in range(300):
        rows = np.repeat(np.arange(40), draw(b).astype(int))
        values.append(spearmanr(truth[rows], predicted[rows]).statistic)
    low, high = np.percentile(values, [2.5, 97.5])
    assert (found["spearman"].low, found["spearman"].high) == pytest.approx((low, high))


def test_a_constant_has_no_share_of_variance() -> None:
    found = regression_metrics(np.ones(5), np.arange(5.0), replicates=200)
    assert np.isnan(found["r2"].value)
    assert np.isnan(found["spearman"].low)
    assert found["mae"].value == pytest.approx(np.abs(np.arange(5) - 1).mean())


def test_parts_of_the_range_hold_every_row_once() -> None:
    truth = np.asarray([0.0] * 30 + list(range(1, 71)))
    parts = parts_of_range(truth, truth + 2)
    assert sum(part["rows"] for part in parts) == 100
    assert parts[0]["rows"] >= 30
    assert all(a["high"] < b["low"] for a, b in itertools.pairwise(parts))
    assert all(part["bias"] == part["mae"] == 2 for part in parts)


def test_one_or_two_rows_have_no_point_for_an_interval() -> None:
    for rows in (1, 2):
        found = regression_metrics(np.array([1.0, 2.0][:rows]), np.array([1.5, 2.5][:rows]), replicates=50)
        assert np.isnan(found["r2"].low)
        assert np.isnan(found["mae"].low)
    found = regression_metrics(np.array([1.0, 2.0]), np.array([1.5, 1.0]), replicates=50)
    assert (found["mae"].low, found["mae"].high) == (0.5, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_of_a_few_rows_is_no_point(sign: int) -> None:
    truth = np.arange(10.0)
    few = regression_metrics(truth, sign * truth, replicates=50)["spearman"]
    many = regression_metrics(np.arange(100.0), sign * np.arange(100.0), replicates=50)["spearman"]
    assert few.value == many.value == pytest.approx(sign)
    assert 0 <= min(sign * few.low, sign * few.high) < 0.5 < min(sign * many.low, sign * many.high) < 1
