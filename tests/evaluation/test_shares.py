from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.evaluation.shares import effective_rows, mean_of_classes, share_interval


@pytest.mark.parametrize("rows", [2, 5, 10, 40, 200])
def test_the_interval_covers_the_true_share(rows: int) -> None:
    """Exactly, by counting: no simulation is needed where every outcome can be listed."""
    right = np.arange(rows + 1)
    ends = np.asarray([share_interval(k / rows, rows) for k in right])
    shares = np.linspace(0.5, 0.999, 400)
    covered = [binom.pmf(right, rows, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum() for p in shares]
    assert 0.93 <= np.mean(covered) <= 0.992
    assert min(covered) >= 0.92


def test_ends_hold_the_share_and_meet_their_mirror_image() -> None:
    for share, rows in ((0.0, 3), (1.0, 3), (0.35, 7.5), (0.5, 1)):
        low, high = share_interval(share, rows)
        assert 0 <= low <= share <= high <= 1
        mirrored = share_interval(1 - share, rows)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    assert share_interval(1.0, 10)[0] < 0.75
    assert all(np.isnan(end) for end in share_interval(float("nan"), 10))


def test_grouped_rows_count_as_fewer() -> None:
    rng = np.random.default_rng(0)
    of_group = (rng.random(50) < 0.7).astype(float)
    copies, groups = np.repeat(of_group, 8), np.repeat(np.arange(50), 8)
    assert effective_rows(copies, groups) == pytest.approx(50, rel=0.05)
    independent = (rng.random(400) < 0.7).astype(float)
    assert effective_rows(independent, groups) > 250
    assert effective_rows(np.ones(400), groups) == 50
    assert effective_rows(independent) == 400
    assert mean_of_classes([5, 0, 5]) == 10
