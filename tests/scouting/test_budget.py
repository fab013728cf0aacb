"""Successive halving in a limited time."""

from __future__ import annotations

import pytest

from pipeline.scouting.budget import Pace, Round, next_round


def paces(*networks: tuple[float, float]) -> dict[str, Pace]:
    return {"abcdefgh"[i]: Pace(speed, accuracy) for i, (speed, accuracy) in enumerate(networks)}


FOUR = paces((50, 0.9), (50, 0.7), (50, 0.8), (50, 0.6))


def test_where_the_time_suffices_every_network_gets_all_rows() -> None:
    assert next_round(200, 2000, FOUR, 4 * 1800 / 50) == Round(2000, ("a", "b", "c", "d"))


def test_the_weaker_half_is_dropped_where_its_rows_would_cost_the_others_theirs() -> None:
    assert next_round(200, 2000, FOUR, 30.0) == Round(950, ("a", "c"))


def test_rows_grow_before_networks_are_dropped() -> None:
    # Half of the time for all four: 40 s let each have 500 more.
    assert next_round(200, 2000, FOUR, 80.0) == Round(700, ("a", "b", "c", "d"))


def test_a_slow_network_counts_with_its_time() -> None:
    slow = paces((50, 0.9), (0.5, 0.95))
    assert next_round(200, 2000, slow, 100.0).rows == 200  # 49 rows more would change nothing
    assert next_round(200, 2000, slow, 1000.0) == Round(200 + int(1000 / (1 / 50 + 1 / 0.5)), ("a", "b"))


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_without_time_nothing_is_added_and_two_networks_stay(seconds: float) -> None:
    coming = next_round(200, 2000, FOUR, seconds)
    assert coming == Round(200, ("a", "c"))
    assert next_round(200, 2000, paces((50, 0.9)), seconds) == Round(200, ("a",))


def test_of_seven_four_then_two_are_kept() -> None:
    seven = paces(*((100, accuracy / 10) for accuracy in (1, 7, 2, 6, 3, 5, 4)))
    coming = next_round(200, 4000, seven, 40.0)
    assert coming.kept == ("b", "d", "f", "g")
    assert 400 <= coming.rows < 4000
