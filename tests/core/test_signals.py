"""A signal as the request to stop."""

from __future__ import annotations

import os
import signal
import threading

from pipeline.core.signals import stop_on


def test_the_first_signal_asks_and_the_second_insists() -> None:
    said: list[str] = []
    insisted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with stop_on((signal.SIGINT,), said.append, at_once=lambda signum, frame: insisted.append(signum)) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        assert stop.signum == signal.SIGINT
        assert insisted == []
        os.kill(os.getpid(), signal.SIGINT)
    assert insisted == [signal.SIGINT]
    assert len(said) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_has_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with stop_on((signal.SIGINT,), print, at_once=print) as stop:
            seen.append(stop.is_set() or signal.getsignal(signal.SIGINT) is not before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
