"""What the signals that ask for an end do: SIGINT, SIGTERM, and SIGHUP when the terminal goes away.

The process ends at once and removes unfinished files, except where a command commits what is done first
(`stop_on_signal`). The exit code is 128 plus the number of the signal, as in a shell.
"""

# Few imports, and all of them built in or loaded by Python itself: until the handlers are set, a signal is Python's.
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from pipeline.core.ending import end_process
from pipeline.core.signals import stop_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Handler = Callable[[int, FrameType | None], None]


class Stopped(BaseException):
    """A signal asked for the end, and everything finished so far is safe."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


def end_on_signals() -> None:
    """Let the signals end this process at once, for as long as no command commits what is done first."""
    for signum in _signals():
        signal.signal(signum, _end)


@contextlib.contextmanager
def stop_on_signal() -> "Iterator[threading.Event]":
    """Yield an event that the signals set; a second signal ends the process at once.

    Raises
    ------
    Stopped
        On leaving, when a signal was received.
    """
    with stop_on(_signals(), _say_at_once, at_once=_end) as stop:
        yield stop
    if stop.signum is not None:
        raise Stopped(stop.signum)


def _say_at_once(text: str) -> None:
    # Not through Python's streams: they cannot be written to by a handler while they are being written to.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _end(signum: int, frame: "FrameType | None") -> None:
    end_process(128 + signum)


def _signals() -> list[signal.Signals]:
    """Return the signals that ask for an end; one that nohup ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return []
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    asked = [signal.SIGINT, signal.SIGTERM]
    return asked if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [*asked, hangup]
