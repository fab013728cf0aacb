from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis import nearest as module
from pipeline.analysis.nearest import nearest


def by_hand(X: Any, queries: Any, k: int, rows: Any, skip: Any) -> tuple[Any, Any]:
    """Every cosine in float64, rounded to float32, sorted; of equals the smaller row."""
    X, queries = X.astype(np.float64), queries.astype(np.float64)
    norm = np.sqrt(np.outer((queries**2).sum(1), (X**2).sum(1)))
    cosine = np.where(norm > 0, queries @ X.T / np.where(norm > 0, norm, 1), 0).astype(np.float32)
    found, values = [], []
    for q in range(len(queries)):
        among = [row for row in rows.tolist() if row != skip[q]]
        best = sorted(among, key=lambda row: (-cosine[q, row], row))[:k]
        missing = min(k, len(rows)) - len(best)
        found.append(best + [-1] * missing)
        values.append([*cosine[q, best].tolist(), *[-np.inf] * missing])
    return np.array(found), np.array(values, np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 70),
    width=st.integers(1, 20),
    k=st.integers(1, 12),
    block=st.integers(1, 40),
    asked=st.integers(1, 9),
    levels=st.sampled_from([2, 3, 1000]),
    many=st.sampled_from([0, 8]),
    half=st.booleans(),
)
def test_it_is_what_comparing_every_pair_gives(
    seed: int, n: int, width: int, k: int, block: int, asked: int, levels: int, many: int, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Few levels make rows of zeros, equal rows and equal cosines.
    X = rng.integers(0, levels, (n, width)).astype(np.float16 if half else np.float32)
    rows = np.flatnonzero(rng.random(n) < 0.8)
    rows = rows if len(rows) else np.arange(n)
    own = rng.integers(0, n, asked)
    skip = np.where(rng.random(asked) < 0.5, own, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", block)
        patch.setattr(module, "_QUERIES", 1 + block % 4)
        patch.setattr(module, "_MANY", many)
        patch.setattr(module, "_PAIR_VALUES", 1 + block)
        found, cosine = nearest(X, X[own], k, rows=rows, skip=skip)
    expected, values = by_hand(X, X[own], k, rows, skip)
    assert np.array_equal(found, expected)
    assert np.allclose(cosine, values, atol=1e-6)
