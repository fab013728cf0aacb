"""Ctrl-C and other signals as a request to stop, which a task grants once finished rows are durable."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from pipeline.core.callbacks import Say


class StopRequest(threading.Event):
    """An event that a signal sets; ``signum`` is the signal, None before."""

    def __init__(self) -> None:
        super().__init__()
        self.signum: int | None = None


@contextlib.contextmanager
def stop_on(
    signals: Sequence[signal.Signals], say: Say, at_once: Callable[[int, FrameType | None], object]
) -> Iterator[StopRequest]:
    """Yield an event that the first signal sets; a second signal calls ``at_once``.

    Only the main thread receives signals. In another thread the event is never set.
    """
    stop = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.signum is not None:
            at_once(signum, frame)
            return
        stop.signum = signum
        stop.set()
        say("\nstopping: committing what is done (repeat to stop at once)")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
