from __future__ import annotations

import itertools
import math

import pytest

from pipeline.backbones import load_backbone
from pipeline.training.network import FineTuningNetwork
from pipeline.training.schedule import diverged, learning, pick_rate, range_rates, smoothed


@pytest.fixture(scope="module")
def network() -> FineTuningNetwork:
    return FineTuningNetwork(load_backbone("timm/test_efficientnet", "random"), "penultimate", 3)


def test_lp_ft_opens_everything_and_head_only_the_head(network: FineTuningNetwork) -> None:
    assert len(learning(network, "lp-ft", 0, 5)) == len(list(network.parameters()))
    assert {id(p) for p in learning(network, "head-only", 4, 5)} == {id(p) for p in network.head.parameters()}


def test_gradual_opens_from_the_top_and_ends_with_everything(network: FineTuningNetwork) -> None:
    opened = [{id(p) for p in learning(network, "gradual", epoch, 6)} for epoch in range(6)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(opened))
    assert {id(p) for p in network.head.parameters()} <= opened[0]
    assert len(opened[0]) < len(opened[2]) < len(opened[-1]) == len(list(network.parameters()))
    # What is open is the top: no closed parameter lies above an open one.
    depth = network.group_matcher(coarse=True)
    named = dict(network.named_parameters())
    for parameters in opened:
        open_depths = {depth(name) for name, p in named.items() if id(p) in parameters}
        closed = {depth(name) for name, p in named.items() if id(p) not in parameters}
        assert not closed or max(closed) < min(open_depths)


def test_a_range_test_picks_a_rate_well_below_where_the_loss_rises() -> None:
    rates = range_rates()
    losses = [2.0 if rate < 1e-4 else 2.0 - math.log10(rate / 1e-4) if rate < 3e-2 else 50.0 for rate in rates]
    picked = pick_rate(rates, losses)
    assert 1e-4 < picked < 3e-2 / 5
    assert diverged(losses)
    assert not diverged(losses[:20])
    assert diverged([1.0, math.nan])


def test_smoothing_follows_slowly() -> None:
    curve = smoothed([1.0, 1.0, 1.0, 10.0])
    assert 1.0 < curve[-1] < 5.0
