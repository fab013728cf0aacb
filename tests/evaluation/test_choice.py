"""Choosing among candidates by rows that they have not seen."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.choice import cheapest


def losses(mean: float, *, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=400)
    return np.asarray(mean + spread * (found - found.mean()))


def test_a_candidate_that_is_clearly_worse_is_not_taken_however_cheap() -> None:
    assert cheapest([losses(1.0), losses(2.0)], [100, 1]) == (0, [0])


def test_among_those_that_cannot_be_distinguished_the_cheapest_is_taken() -> None:
    near = losses(1.001, seed=1)  # a thousandth, where the difference of two rows has a standard deviation of 1.4
    assert cheapest([losses(1.0), near, losses(3.0)], [100, 50, 1]) == (1, [0, 1])
    assert cheapest([losses(1.0), near], [50, 50]) == (0, [0, 1])


def test_pairing_tells_apart_what_varies_together() -> None:
    shift = losses(1.0)
    assert cheapest([shift, shift + 0.001 + 0.001 * losses(0.0, seed=1)], [2, 1]) == (0, [0])


def test_rows_of_one_group_count_as_one() -> None:
    # Ten groups of forty equal rows: forty times fewer independent differences than rows.
    difference = np.repeat(np.random.default_rng(3).normal(0.25, 1.0, 10), 40)
    base = losses(1.0)
    groups = np.repeat(np.arange(10), 40)
    assert cheapest([base, base + difference], [2, 1])[1] == [0]
    assert cheapest([base, base + difference], [2, 1], groups)[1] == [0, 1]
