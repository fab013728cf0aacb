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


def slowly(locator: int) -> bytes:
    time.sleep(SLOW_READ_S * 1.5)
    return bytes([locator])


def learn(ahead: Prefetcher) -> None:
    """Let it find out that the storage is slow."""
    ahead.begin(items(1))
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
        ahead.begin(items())
        assert [ahead.take() for _ in range(8)] == [bytes([i]) for i in range(8)]
        assert (threads == expected) if expected else (here not in threads)
        assert (reading == NO_ROW).all()
        if expected is None:
            pause = 0.0
    threads.clear()
    ahead.begin(items())  # the task before was quick
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
        ahead.begin([(i, i, (what, i)) for i, what in enumerate(task)])
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
    ahead.begin([(i, 100 + i, 1 + i) for i in range(8)])
    taker = threading.Thread(target=ahead.take)
    taker.start()
    deadline = time.monotonic() + 120
    while started.n_waiting or (reading == NO_ROW).any():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert reading.tolist() == [100 + i for i in range(8)]
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
        ahead.begin(items())
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
    ahead.begin(items())
    assert ahead.take() == b"\0"
    assert ahead.holds
    together.clear()
    assert ahead.take_again() == b"\0"
    assert together[-1] == 1
    assert not ahead.holds
    assert [ahead.take() for _ in range(7)] == [bytes([i]) for i in range(1, 8)]
