"""How many processors this process may use."""

from __future__ import annotations

import os


def processor_count() -> int:
    """Return the processors that are ours: under taskset, a container or a batch system fewer than the machine has.

    ``PYTHON_CPU_COUNT`` overrides what the system says, as it does for `os.process_cpu_count`.
    """
    asked = os.environ.get("PYTHON_CPU_COUNT", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
