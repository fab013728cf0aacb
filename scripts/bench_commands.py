"""Measure what commands cost from the call to the end: processor-seconds of all their processes, and wall time.

    python scripts/bench_commands.py [--repeats N] [--stdin FILE] COMMAND [COMMAND …]

A COMMAND is one quoted argument, such as ``"pipeline fit-head digits.h5 -o run{n}"``; ``{n}`` is the number of the
repeat. Repeats of several commands alternate. The median is given, the range in parentheses. Processor time hardly
depends on what else runs; wall time does.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path


def cost(command: str, stdin: Path | None) -> tuple[float, float]:
    """Run a command; return its processor-seconds and its seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Path(stdin or os.devnull).open("rb") as file:
        done = subprocess.run(
            shlex.split(command), stdin=file, capture_output=True, env={**os.environ, "PATH": path}, check=False
        )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stdin", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {command: [] for command in arguments.commands}
    for n in range(arguments.repeats):
        for command, costs in found.items():
            costs.append(cost(command.replace("{n}", str(n)), arguments.stdin))
    print("| command | processor-seconds | seconds |\n|---|---|---|")
    for command, costs in found.items():
        processor, wall = zip(*costs, strict=True)
        print(f"| `{command}` | {shown(list(processor))} | {shown(list(wall))} |")


if __name__ == "__main__":
    main()
