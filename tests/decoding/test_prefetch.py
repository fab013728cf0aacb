"""Reads side by side: the right bytes for every turn, bounded, and honest about what went wrong."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding import prefetch
from pipeline.decoding.prefetch import AHEAD_BYTES, SLOW_READ_S, Prefetcher

if TYPE_CHECKING:
    from collections.abc import Callable

NO_ROW = -1
Items = list[tuple[int, int, Any]]


def items(count: int = 8) -> Items:
    return [(i, 100 + i, i) for i in range(count)]


def ahead_of(reader: Callable[[Any], bytes], threads: int = 8) -> tuple[Prefetcher, np.ndarray[Any, Any]]:
    reading = np.full(threads, NO_ROW, dtype=np.int64)
    return Prefetcher(reader, reading, NO_ROW), reading


def start(ahead: Prefetcher, task: Items) -> None:
    ahead.add(task)
    ahead.begin()


def slowly(locator: int) -> bytes:
    time.sleep(SLOW_READ_S * 1.5)
    return bytes([locator])


def learn(ahead: Prefetcher) -> None:
    """Let it find out that the storage is slow."""
    start(ahead, items(1))
    ahead.take()


def test_slow_storage_is_read_ahead_and_fast_storage_is_not() -> None:
    threads: list[str] = []
    pause = SLOW_READ_S * 1.5

    def reader(locator: int) -> bytes:
        threads.append(threading.current_thread().name)
        time.sleep(pause)
        return bytes([locator])

    ahead, reading = ahead_of(reader)
    here = threading.current_thread().name
    for expected in ([here] * 8, None, None):
        threads.clear()
        start(ahead, items())
        assert [ahead.take() for _ in range(8)] == [bytes([i]) for i in range(8)]
        assert (threads == expected) if expected else (here not in threads)
        assert (reading == NO_ROW).all()
        if expected is None:
            pause = 0.0
    threads.clear()
    start(ahead, items())  # the task before was quick
    assert [ahead.take() for _ in range(8)] == [bytes([i]) for i in range(8)]
    assert threads == [here] * 8


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["slow", "quick", "error", "memory"]), min_size=1, max_size=8), max_size=4))
def test_every_turn_gets_its_own_bytes_or_its_own_error(tasks: list[list[str]]) -> None:
    def reader(locator: tuple[str, int]) -> bytes:
        what, number = locator
        if what == "slow":
            time.sleep(SLOW_READ_S * 2)
        elif what == "error":
            raise OSError(f"number {number}")
        elif what == "memory":
            raise MemoryError(number)
        return str(number).encode()

    ahead, reading = ahead_of(reader)
    for task in tasks:
        start(ahead, [(i, i, (what, i)) for i, what in enumerate(task)])
        for i, what in enumerate(task):
            if what == "error":
                with pytest.raises(OSError, match=f"number {i}"):
                    ahead.take()
            elif what == "memory":
                with pytest.raises(MemoryError):
                    ahead.take()
                with pytest.raises(MemoryError):
                    ahead.take_again()
                assert not ahead.holds
            else:
                assert ahead.take() == str(i).encode()
        assert not ahead.holds
        assert (reading == NO_ROW).all()


def test_the_rows_being_read_are_noted() -> None:
    go_on, started = threading.Event(), threading.Barrier(8)

    def reader(locator: int) -> bytes:
        if locator:
            started.wait()
            go_on.wait()
        return slowly(locator)

    ahead, reading = ahead_of(reader)
    learn(ahead)
    start(ahead, [(i, 100 + i, 1 + i) for i in range(8)])
    taker = threading.Thread(target=ahead.take)
    taker.start()
    deadline = time.monotonic() + 120
    while started.n_waiting or (reading == NO_ROW).any():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert sorted(reading.tolist()) == [100 + i for i in range(8)]
    go_on.set()
    taker.join()
    for _ in range(7):
        ahead.take()
    assert (reading == NO_ROW).all()


def test_what_is_held_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = most = 0
    lock = threading.Lock()

    def reader(locator: int) -> bytes:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(SLOW_READ_S * 2)
        return bytes(1000)

    monkeypatch.setattr(prefetch, "AHEAD_BYTES", 3000)
    assert AHEAD_BYTES > 3000
    ahead, _ = ahead_of(reader)
    for _ in range(3):
        start(ahead, items())
        for _ in range(8):
            ahead.take()
            with lock:
                held -= 1
    assert most == 3


def test_what_is_short_of_memory_is_read_again_alone() -> None:
    together: list[int] = []
    under_way = 0
    lock = threading.Lock()

    def reader(locator: int) -> bytes:
        nonlocal under_way
        with lock:
            under_way += 1
            together.append(under_way)
        time.sleep(SLOW_READ_S * 2)
        with lock:
            under_way -= 1
        return bytes([locator])

    ahead, _ = ahead_of(reader)
    learn(ahead)
    start(ahead, items())
    assert ahead.take() == b"\0"
    assert ahead.holds
    together.clear()
    assert ahead.take_again() == b"\0"
    assert together[-1] == 1
    assert not ahead.holds
    assert [ahead.take() for _ in range(7)] == [bytes([i]) for i in range(1, 8)]


def test_the_images_of_all_queued_tasks_are_read_ahead() -> None:
    reads: list[int] = []

    def reader(locator: int) -> bytes:
        reads.append(locator)
        return slowly(locator)

    ahead, reading = ahead_of(reader, threads=32)
    learn(ahead)
    for first in range(0, 24, 8):
        ahead.add([(i, i, i) for i in range(first, first + 8)])
    ahead.begin()
    assert ahead.take() == b"\0"
    assert [ahead.take() for _ in range(23)] == [bytes([i]) for i in range(1, 24)]
    assert sorted(reads) == [0, *range(24)]
    assert (reading == NO_ROW).all()
    assert not ahead.holds


def test_one_read_that_is_very_slow_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "VERY_SLOW_READ_S", SLOW_READ_S)
    ahead, _ = ahead_of(slowly)
    start(ahead, items())
    assert ahead.take() == b"\0"
    assert ahead.slow
    assert ahead.take() == b"\1"
    assert ahead.holds


def test_nothing_is_read_beside_an_image_that_is_alone() -> None:
    reads: list[int] = []

    def reader(locator: int) -> bytes:
        reads.append(locator)
        return slowly(locator)

    ahead, _ = ahead_of(reader)
    learn(ahead)
    ahead.add([(0, 0, 1)])
    ahead.add([(0, 0, 2)], alone=True)
    ahead.add([(0, 0, 3)])
    ahead.begin()
    assert ahead.take() == b"\1"
    assert not ahead.holds
    assert ahead.take() == b"\2"
    assert not ahead.holds
    assert reads == [0, 1, 2]
    assert ahead.take() == b"\3"


class Joining:
    """Reads ten bytes at each place of one file of 1 000; counts its requests."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []

    def __call__(self, locator: int) -> bytes:
        self.requests.append([locator])
        time.sleep(SLOW_READ_S * 1.5)
        return b"%010d" % locator

    def span(self, locator: int) -> tuple[int, int, int] | None:
        return None if locator == 999 else (0, locator, locator + 10)

    def read_together(self, locators: list[int]) -> list[bytes | Exception]:
        self.requests.append(locators)
        time.sleep(SLOW_READ_S * 1.5)
        return [OSError("part") if locator == 30 else b"%010d" % locator for locator in locators]


def test_neighbours_are_read_by_one_request() -> None:
    reader = Joining()
    ahead, reading = ahead_of(reader)
    learn(ahead)
    reader.requests.clear()
    # With a small gap; backwards; far beyond what a line carries in one latency; not to be joined.
    start(ahead, [(i, i, place) for i, place in enumerate([10, 20, 31, 5, 900, 999])])
    assert [int(ahead.take()) for _ in range(6)] == [10, 20, 31, 5, 900, 999]
    assert sorted(reader.requests) == [[5], [10, 20, 31], [900], [999]]
    assert (reading == NO_ROW).all()


def test_a_joined_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "JOINED_BYTES", 20)
    reader = Joining()
    ahead, _ = ahead_of(reader)
    learn(ahead)
    reader.requests.clear()
    start(ahead, [(i, i, 10 * i) for i in range(5)])
    with pytest.raises(OSError, match="part"):  # of the fourth, and of no other
        [ahead.take() for _ in range(5)]
    assert int(ahead.take()) == 40
    assert sorted(reader.requests) == [[0, 10], [20, 30], [40]]
