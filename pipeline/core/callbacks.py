"""What a long task calls while it runs: lines for people, counts for a progress bar, a request to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]
"""Receives a line for people."""
Progress = Callable[[int, int, int], None]
"""Receives rows ready, rows failed, rows in all."""


def ignore(*values: object) -> None:
    """Do nothing: the default of a callback."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The callbacks of a task, passed on as one.

    Attributes
    ----------
    stop : threading.Event
        When set, the task ends as soon as what is finished is safe.
    say : callable
    progress : callable
    """

    stop: threading.Event = field(default_factory=threading.Event)
    say: Say = ignore
    progress: Progress = ignore
