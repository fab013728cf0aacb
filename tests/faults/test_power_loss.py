"""Power cuts at every write, sync and rename, with other row widths and batch sizes than the default run has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.cache import open_cache
from tests.cache import synthetic
from tests.cache.test_writer import fill_with_failures, lose_power

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(("width", "layers"), [(1, ()), (300, (7,)), (1280, ()), (1500, (1500,))])
@pytest.mark.parametrize("failures", [False, True])
def test_power_cuts(
    width: int, layers: tuple[int, ...], failures: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = synthetic.make_spec(width, layers=layers)
    path = synthetic.make_cache(tmp_path / "c.h5", 40, spec)
    points = 0

    def act() -> None:
        fill_with_failures(path) if failures else synthetic.fill(path, batch=3, commit_every=2)

    tried, wrong = lose_power(path, tmp_path, monkeypatch, act, states=8, seed=width)
    points = tried // 8
    print(f"\nwidth {width}, layers {layers}, failures {failures}: {points} points, {tried} states")
    assert wrong == []
    assert points >= 60


def test_after_a_power_cut_the_run_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cache.disk import Disk

    whole = synthetic.make_full(tmp_path / "whole.h5", 24, synthetic.make_spec(300))
    path = synthetic.make_cache(tmp_path / "c.h5", 24, synthetic.make_spec(300))
    random, states = np.random.default_rng(5), list[bytes]()
    with monkeypatch.context() as patch:
        disk = Disk(patch, [path])
        disk.after = lambda disk: states.extend(state[path] for state in disk.states(random, 6))
        synthetic.fill(path)
        disk.close()
    cut = tmp_path / "cut.h5"
    for state in states:
        cut.write_bytes(state)
        before = np.flatnonzero(open_cache(cut).status)
        synthetic.fill(cut)
        assert len(before) <= 24
        assert cut.read_bytes() == whole.read_bytes()
    print(f"\n{len(states)} states completed to the same bytes")
