"""As many images are in flight as latency and rate ask for, and no more than there is room for."""

from __future__ import annotations

import pytest

from pipeline.decoding.read_ahead import MOST_GAP, InFlight, Line

LEAST, MOST = 32, 1024


def settled(latency: float, fastest: float, *, most: int = MOST, start: InFlight | None = None) -> int:
    """Return the number in flight after a run whose engine takes ``fastest`` images/s, by a clock of its own."""
    now = 0.0
    ahead = start or InFlight(LEAST, most, lambda: now)
    ahead._clock = lambda: now
    ahead.restart()
    ahead.done([latency] * 8)
    for _ in range(4000):
        now += 8 / min(fastest, ahead.images / latency)  # Little's law, of what is in flight
        ahead.done([latency] * 8)
    return ahead.images


@pytest.mark.parametrize(
    ("latency", "fastest", "expected"),
    [(0.001, 100, LEAST), (0.05, 1000, 100), (0.3, 125, 75), (0.3, 1000, 600), (0.3, 1e6, MOST)],
)
def test_images_in_flight_follow_latency_and_rate(latency: float, fastest: float, expected: int) -> None:
    assert settled(latency, fastest) == pytest.approx(expected, abs=1)


def test_it_adapts_while_running() -> None:
    ahead = InFlight(LEAST, MOST)
    assert settled(0.3, 500, start=ahead) == pytest.approx(300, abs=1)
    assert settled(0.001, 500, start=ahead) == LEAST
    assert settled(0.3, 500, start=ahead) == pytest.approx(300, abs=1)


def test_reads_that_queue_do_not_count_as_distance() -> None:
    """A line at its bandwidth: what is put in flight beyond it only waits."""
    now, latency, bandwidth = 0.0, 0.1, 500.0
    ahead = InFlight(LEAST, MOST, lambda: now)
    ahead.done([latency])
    most = 0
    for _ in range(40):
        took = max(latency, ahead.images / bandwidth)
        now += 8 / min(bandwidth, ahead.images / latency)
        ahead.done([took] * 8)
        most = max(most, ahead.images)
    assert most == pytest.approx(2 * latency * bandwidth, abs=1)


def test_a_few_long_reads_change_nothing() -> None:
    now = 0.0
    ahead = InFlight(LEAST, MOST, lambda: now)
    ahead.done([0.001])
    for _ in range(40):
        now += 0.1
        ahead.done([0.001] * 6 + [45.0] * 2)
    assert ahead.images == LEAST


def test_a_gap_is_what_a_line_carries_in_one_latency() -> None:
    line = Line()
    assert line.gap == 0
    line.add(1000, 0.05)
    assert line.gap == pytest.approx(1000, abs=1)
    line.add(100_000, 0.1)
    assert line.gap == pytest.approx(50_000, abs=1)
    line.add(100 << 20, 0.1)
    assert line.gap == MOST_GAP
