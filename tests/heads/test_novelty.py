from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads.novelty import LEAST_ROWS, NOVELTY_ARRAYS, Novelty, fit_novelty


def rows_of(center: float, count: int, seed: int, width: int = 8) -> Any:
    """Return rows around a direction that depends on ``center``."""
    rng = np.random.default_rng(seed)
    direction = np.cos(center * np.arange(1, width + 1))
    return (direction + 0.2 * rng.normal(size=(count, width))).astype(np.float32)


def predictions_of(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).dirichlet([5.0, 0.5, 0.5], count)


def test_the_distance_is_that_to_the_neighbour_counted_by_hand() -> None:
    X = rows_of(0.0, 60, 0)
    found = fit_novelty(X)
    assert found is not None
    assert found.neighbour == 5
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    new = rows_of(0.7, 3, 1)
    cosines = np.sort(new / np.linalg.norm(new, axis=1, keepdims=True) @ unit.T, axis=1)
    assert found.distances(new) == pytest.approx(1 - cosines[:, -5], abs=1e-6)
    own = unit @ unit.T
    np.fill_diagonal(own, -1)
    assert found.held_out == pytest.approx(np.sort(1 - np.sort(own, axis=1)[:, -5]), abs=1e-6)


def test_percentiles_of_rows_like_the_training_rows_are_evenly_spread() -> None:
    found = fit_novelty(rows_of(0.0, 2000, 0), predictions_of(2000, 1))
    assert found is not None
    values = found.percentiles(rows_of(0.0, 2000, 2), predictions_of(2000, 3))
    for percentile in (50, 90, 95, 99):
        assert (values > percentile).mean() == pytest.approx(1 - percentile / 100, abs=0.03)


def test_rows_elsewhere_are_novel_and_so_are_undecided_ones() -> None:
    found = fit_novelty(rows_of(0.0, 400, 0), predictions_of(400, 1))
    assert found is not None
    usual, undecided = predictions_of(100, 5), np.full((100, 3), 1 / 3)
    far = found.percentiles(rows_of(1.5, 100, 4), usual)
    near = found.percentiles(rows_of(0.0, 100, 4), usual)
    doubted = found.percentiles(rows_of(0.0, 100, 4), undecided)
    assert np.median(far) > 80
    assert np.median(near) < 70
    assert (doubted > near).all()
    assert max(far.max(), doubted.max()) <= found.largest < 100


def test_rows_of_one_group_are_not_each_others_neighbours() -> None:
    X = np.repeat(rows_of(0.0, 40, 0), 3, axis=0)
    alone, grouped = fit_novelty(X), fit_novelty(X, groups=np.repeat(np.arange(40), 3))
    assert alone is not None
    assert grouped is not None
    assert np.median(grouped.held_out) > np.median(alone.held_out)


def test_features_are_divided_by_their_scale() -> None:
    X, new, scale = rows_of(0.0, 60, 0), rows_of(0.4, 5, 1), np.array([100.0] * 4 + [1.0] * 4)
    found, plain = fit_novelty((X * scale).astype(np.float32), scale=scale), fit_novelty(X)
    assert found is not None
    assert plain is not None
    assert found.distances(new * scale) == pytest.approx(plain.distances(new), abs=1e-6)


def test_few_rows_say_nothing() -> None:
    assert fit_novelty(rows_of(0.0, LEAST_ROWS - 1, 0)) is None
    assert fit_novelty(rows_of(0.0, 100, 0), groups=np.repeat(np.arange(10), 10)) is None
    one = np.concatenate([np.zeros(80, np.int64), np.arange(1, 21)])
    assert fit_novelty(rows_of(0.0, 100, 0), groups=one) is not None


def test_a_row_of_zeros_has_a_distance() -> None:
    found = fit_novelty(rows_of(0.0, 60, 0))
    assert found is not None
    assert found.distances(np.zeros((1, 8), np.float32)) == pytest.approx([1.0])


def test_arrays_give_the_same_score_and_others_are_refused() -> None:
    found = fit_novelty(rows_of(0.0, 60, 0), predictions_of(60, 1))
    assert found is not None
    arrays = found.arrays()
    assert tuple(arrays) == NOVELTY_ARRAYS
    again, new = Novelty.of_arrays(arrays), rows_of(0.2, 9, 3)
    assert (
        again.percentiles(new, predictions_of(9, 2)).tolist() == found.percentiles(new, predictions_of(9, 2)).tolist()
    )
    for name, value in (
        ("novelty_rows", arrays["novelty_rows"][:, :5]),
        ("novelty_neighbour", np.array([0])),
        ("novelty_neighbour", np.array([61])),
        ("novelty_distances", arrays["novelty_distances"][::-1]),
        ("novelty_scale", np.zeros(8)),
        ("novelty_sums", arrays["novelty_sums"][:7]),
    ):
        with pytest.raises(HeadError, match="novelty score"):
            Novelty.of_arrays(arrays | {name: value})
