"""Kills at random moments: what was acknowledged is there when the session is opened next."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.cache import open_cache
from pipeline.labelling.session import open_session
from pipeline.labelling.state import Labels
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 60
ACTIONS = 80


def script() -> list[dict[str, Any]]:
    """Return actions of every kind, of which the later ones depend on those before."""
    rng = random.Random(5)
    found: list[dict[str, Any]] = []
    for n in range(ACTIONS):
        rows = sorted(rng.sample(range(COUNT), 5))
        label = {"do": "label", "rows": rows, "value": f"class {n % 7}"}
        found.append({"do": "undo"} if n % 5 == 3 else {"do": "redo"} if n % 5 == 4 else label)
    return found


def states(keys: list[str]) -> list[dict[str, Any]]:
    """Return the labels before the first action, and after each."""
    labels = Labels("classification")
    found: list[dict[str, Any]] = [{}]
    for action in script():
        entry = {name: value for name, value in action.items() if name != "rows"}
        if "rows" in action:
            entry["keys"] = [keys[n] for n in action["rows"]]
        labels.apply(labels.check(entry))
        found.append(dict(labels.values))
    return found


def label_until_killed(cache_path: Path, table: Path, done: int) -> None:
    """Do the whole script, and write a byte for each action that a page would now show as done."""
    with open_session(open_cache(cache_path), table) as session:
        for n, action in enumerate(script()):
            session.act(action, seen=n)
            os.write(done, b".")
            if n % 4 == 0:
                session.save()


def killed_after(seconds: float, cache_path: Path, table: Path) -> int:
    """Return how many actions were acknowledged to the outside before a kill."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            label_until_killed(cache_path, table, writing)
        finally:
            os._exit(0)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return len(pipe.read())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill of this kind")
@pytest.mark.parametrize("moments", [3, pytest.param(200, marks=pytest.mark.faults)])
def test_a_kill_loses_the_action_in_progress_at_most(moments: int, tmp_path: Path) -> None:
    cache_path = make_digits(tmp_path / "data", COUNT)
    expected = states(open_cache(cache_path).keys.tolist())
    rng = random.Random(moments)
    for moment in range(moments):
        table = tmp_path / f"labels-{moment}.csv"
        done = killed_after(rng.uniform(0.05, 0.5), cache_path, table)
        with open_session(open_cache(cache_path), table) as session:
            assert session.labels.actions in (done, done + 1)
            assert session.labels.values == expected[session.labels.actions]
            assert session.act({"do": "class", "value": "one more"}, seen=session.labels.actions)
