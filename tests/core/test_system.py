"""Limits of memory, tried in processes of their own: they stay for the life of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.core.system import child_environment

START = """
import mmap
from pipeline.core.system import limit_memory, memory_limit_lifted
def fits(mib):
    try:
        return mmap.mmap(-1, mib << 20)
    except (MemoryError, OSError):
        return None
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", START + code], check=True, env=child_environment())


def test_more_than_the_limit_does_not_fit() -> None:
    run("limit_memory(64 << 20); assert fits(32); assert not fits(96)")


def test_a_lifted_limit_comes_back_and_what_was_taken_meanwhile_does_not_count() -> None:
    run(
        "limit_memory(64 << 20)\n"
        "with memory_limit_lifted():\n"
        "    kept = fits(500)\n"
        "assert kept\n"
        "held = fits(40)\n"
        "assert held and not fits(40)\n"
    )


def test_a_lifted_limit_comes_back_after_an_error() -> None:
    run(
        "limit_memory(64 << 20)\n"
        "try:\n"
        "    with memory_limit_lifted():\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    pass\n"
        "assert not fits(96)\n"
    )


def test_without_a_limit_nothing_is_limited() -> None:
    run("with memory_limit_lifted():\n    pass\nlimit_memory(0)\nassert fits(500)")
