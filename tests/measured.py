"""What a child process costs: processor time, which is the same however busy the machine is."""

from __future__ import annotations

import os
from pathlib import Path


def processor_time(pid: int) -> float:
    """Return the processor time of a running child in seconds, with that of its own children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def processor_time_of_ended() -> float:
    """Return the processor time of all children of this process that have ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system
