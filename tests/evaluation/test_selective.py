from __future__ import annotations

import numpy as np

from pipeline.evaluation.selective import area_under_risk, risk_coverage


def test_rows_are_left_out_from_the_most_doubtful_on() -> None:
    doubt = np.array([0.3, 0.1, 0.2, 0.4])
    found = risk_coverage(doubt, np.array([1.0, 0.0, 0.0, 1.0]))
    assert found["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert found["risk"] == [0.0, 0.0, 1 / 3, 0.5]
    assert found["doubt"] == [0.1, 0.2, 0.3, 0.4]


def test_equal_doubt_is_one_point_whatever_the_order_of_the_rows() -> None:
    doubt, errors = np.array([0.5] * 6 + [0.9]), np.array([1.0, 0, 0, 0, 0, 0, 1.0])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(7)
        found = risk_coverage(doubt[order], errors[order])
        assert np.allclose(found["coverage"], [6 / 7, 1])
        assert np.allclose(found["risk"], [1 / 6, 2 / 7])


def test_many_rows_make_a_bounded_curve_that_ends_at_the_error_of_all() -> None:
    rng = np.random.default_rng(0)
    doubt, errors = rng.random(5000), (rng.random(5000) < 0.3).astype(float)
    found = risk_coverage(doubt, errors)
    assert len(found["risk"]) <= 200
    assert found["risk"][-1] == errors.mean()
    assert found["coverage"][-1] == 1.0


def test_a_doubt_that_finds_the_errors_has_the_smaller_area() -> None:
    errors = np.repeat([0.0, 1.0], 50)
    assert area_under_risk(errors, errors) < area_under_risk(-errors, errors)
