"""Callbacks of a long task: lines for the user, counts for a progress bar, a request to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]
"""Called with a line for the user."""
Progress = Callable[[int, int, int], None]
"""Called with rows ready, rows failed, rows in total."""


def ignore(*values: object) -> None:
    """Do nothing: the default of a callback."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The callbacks of a task, passed as one object.

    Attributes
    ----------
    stop : threading.Event
        When set, the task ends as soon as finished rows are durable.
    say : callable
    progress : callable
    """

    stop: threading.Event = field(default_factory=threading.Event)
    say: Say = ignore
    progress: Progress = ignore
