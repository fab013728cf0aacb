"""What the fault sweeps run in a process of its own: fill a cache, or bring one up to date. Without torch, for speed.

Prints, after each commit, how many rows it takes to be safe from then on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.replace import publish
from pipeline.cache.update import open_update
from pipeline.errors import PipelineError
from tests.cache import synthetic
from tests.cache.broken import RowsSwapped, StatusFirst

SPEC = synthetic.make_spec(300, layers=(7,))
ROWS = 40
OLD = synthetic.make_items([f"{i:03d}.png" for i in range(ROWS)])
NEW = synthetic.make_items([f"{i:03d}.png" for i in range(20, ROWS + 20)])
FAILS = 5
"""This row fails in every run."""
WRITERS = {"": CacheWriter, "status first": StatusFirst, "rows swapped": RowsSwapped}
"""The writer, and broken ones that the sweeps must catch."""


def prepare(name: str, path: Path) -> None:
    """Make what a scenario starts from."""
    if name == "update":
        fill(path)


def fill(path: Path, writer: str = "") -> None:
    """Lay out a cache, or go on with one."""
    if not path.exists():
        synthetic.make_cache(path, OLD, SPEC)
    _complete(path, writer)


def update(path: Path) -> None:
    """Bring a full cache of `OLD` to `NEW`, or go on with that."""
    keys = [bytes(key) for key in NEW.keys]
    target, _, _ = open_update(
        path,
        NEW,
        lambda rows: synthetic.right_hashes([keys[row] for row in rows]),
        dtype="float32",
        attributes=synthetic.attributes_of(SPEC),
    )
    _complete(target)
    if target != path:
        publish(target, path)


def _complete(path: Path, kind: str = "") -> None:
    todo = np.flatnonzero(open_cache(path).status == 0)
    writer = WRITERS[kind](path)
    try:
        for number, start in enumerate(range(0, len(todo), 4)):
            rows = todo[start : start + 4]
            good = rows[rows != FAILS]
            synthetic.write_rows(writer, good)
            if len(good) < len(rows):
                writer.fail(FAILS, 4)
            if number % 2:
                writer.commit()
                print(int((open_cache(path).status != 0).sum()), flush=True)
    finally:
        writer.close()


def main() -> None:
    """Run the scenario that the command line names; a PipelineError is exit code 1."""
    try:
        {"fill": fill, "update": update}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
