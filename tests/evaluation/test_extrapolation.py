from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.evaluation.extrapolation import Doubling, doubled, gain_of_doubling

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = np.array([100.0, 300.0, 1000.0])


def measured(error: NDArray[np.float64], rows: int, *, seed: int = 0) -> Doubling:
    """Return the extrapolation of heads of these errors, which are wrong on the same rows first."""
    rng = np.random.default_rng(seed)
    right = rng.random(rows) >= error[:, None]
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), 300) / rows
    found = doubled(ROWS, right.mean(axis=1), right @ weights.T, rows)
    assert found is not None
    return found


@pytest.mark.parametrize("power", [0.0, 0.3, 0.9])
def test_a_power_law_goes_on(power: float) -> None:
    error = 0.6 * np.array([10.0, *ROWS, 2000.0]) ** -power
    error[0] = 0.1  # far away: not part of the slope
    gain = gain_of_doubling(np.array([10.0, *ROWS]), 1 - error[:-1, None], 1e9)
    assert gain == pytest.approx(error[-2] - error[-1], abs=1e-6)


def test_more_measured_rows_narrow_the_intervals_and_show_the_gain() -> None:
    error = 2.0 * ROWS**-0.4
    few, many = measured(error, 60), measured(error, 20_000)
    assert (few.rows, many.rows) == (2000, 2000)
    assert many.is_measurable
    assert few.gain.high - few.gain.low > many.gain.high - many.gain.low
    assert few.score.low < many.score.low < many.score.high < few.score.high
    assert many.gain.low < error[-1] * (1 - 2**-0.4) < many.gain.high
    # Even with all rows measured, the draw of the training rows remains.
    assert many.gain.high - many.gain.low > 0.01


def test_a_flat_curve_promises_nothing() -> None:
    for seed in range(20):
        found = measured(np.full(3, 0.9), 250, seed=seed)
        assert not found.is_measurable
        assert found.gain.low < 0 < found.gain.high


def test_where_all_rows_are_right_the_intervals_are_no_points() -> None:
    found = doubled(ROWS, np.ones(3), np.ones((3, 50)), 25)
    assert found is not None
    assert (found.gain.value, found.score.value, found.score.high) == (0.0, 1.0, 1.0)
    assert found.score.low < 0.9
    assert found.gain.high > 0.005
    assert not found.is_measurable


def test_the_score_stays_a_share() -> None:
    found = doubled(ROWS[:2], np.array([0.5, 0.99]), np.tile([[0.5], [0.99]], 50), 100)
    assert found is not None
    assert 0.99 < found.score.value <= found.score.high <= 1.0


def test_one_point_has_no_slope() -> None:
    assert doubled(ROWS[:1], np.ones(1), np.ones((1, 9)), 50) is None


def test_the_figures_have_names() -> None:
    figures = measured(2.0 * ROWS**-0.4, 1000).as_dict()
    assert figures["rows"] == 2000
    assert set(figures) == {"rows", "score", "gain", "measurable"}
    assert set(figures["gain"]) == {"value", "low", "high"}
