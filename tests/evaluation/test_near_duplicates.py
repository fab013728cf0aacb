from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation import near_duplicates
from pipeline.evaluation.near_duplicates import duplicate_groups, exact_pairs, groups_of, near_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_hand(X: NDArray[Any], threshold: float) -> set[tuple[int, int]]:
    """Every pair, in float64; with those that rounding may put on either side as a set of their own."""
    norm = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    unit = X / np.where(norm > 0, norm, 1)
    i, j = np.nonzero(np.triu(unit @ unit.T >= threshold, 1))
    return set(zip(i.tolist(), j.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 80),
    width=st.integers(1, 40),
    reduced=st.integers(1, 40),
    block=st.integers(1, 30),
    dense=st.sampled_from([0.0, 0.2, 1.0]),
    threshold=st.sampled_from([0.2, 0.8, 0.95, 1.0]),
    shift=st.floats(0, 5),
    half=st.booleans(),
)
def test_the_pairs_are_those_of_the_whole_product(
    seed: int, n: int, width: int, reduced: int, block: int, dense: float, threshold: float, shift: float, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    X: NDArray[np.floating[Any]] = rng.normal(size=(n, width)) + shift
    X = X.astype(np.float16 if half else np.float32)
    twins = rng.integers(0, n, n // 3)
    X[rng.permutation(n)[: len(twins)]] = X[twins]
    X[rng.integers(0, n)] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_REDUCED", reduced)
        patch.setattr(near_duplicates, "_BLOCK_ROWS", block)
        patch.setattr(near_duplicates, "_DENSE_SHARE", dense)
        i, j, cosine = near_pairs(X, threshold)
    found = set(zip(i.tolist(), j.tolist(), strict=True))
    assert len(found) == len(i)
    assert by_hand(X, threshold + 1e-5) <= found <= by_hand(X, threshold - 1e-5)
    assert (np.diff(i) >= 0).all()
    assert (cosine >= threshold - 1e-5).all()
    assert (cosine <= 1).all()


def test_what_is_not_finite_is_named() -> None:
    X = np.ones((20, 4), np.float32)
    X[13, 2] = np.nan
    with pytest.raises(PipelineError, match="row 13 of the cache holds values that are not finite"):
        near_pairs(X, 0.9)


def test_only_the_rows_asked_for_are_looked_at() -> None:
    X = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    X[5] = np.nan
    i, j, _ = near_pairs(X, 0.99, rows=[0, 2, 4, 6, 7, 8])
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 2), (6, 7), (6, 8), (7, 8)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_groups_are_what_chains_reach(pairs: list[tuple[int, int]]) -> None:
    group = list(range(20))
    for _ in range(20):
        for i, j in pairs:
            group[i] = group[j] = min(group[i], group[j])
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    assert groups_of(20, table[:, 0], table[:, 1]).tolist() == group


def hashes(contents: list[str]) -> NDArray[np.uint8]:
    digests = b"".join(hashlib.blake2b(c.encode(), digest_size=16).digest() for c in contents)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def test_rows_that_were_never_read_are_nobodys_twin() -> None:
    content = hashes(["a", "b", "a", "c"]).copy()
    content[[1, 3]] = 0
    i, j = exact_pairs(content)
    assert (i.tolist(), j.tolist()) == ([0], [2])


def test_groups_join_equal_bytes_and_near_embeddings() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 32)).astype(np.float32)
    X[100] = X[7] + 0.01 * rng.normal(size=32)
    X[200] = X[250]
    # Row 250 has the bytes of row 9, though not its embedding: the two chains meet.
    group = duplicate_groups(X, hashes([str(9 if n == 250 else n) for n in range(300)]), 0.98)
    assert group[100] == group[7] == 7
    assert group[250] == group[9] == 9
    assert len(np.unique(group)) == 298
    some = np.arange(0, 300, 10)
    assert duplicate_groups(X, hashes([str(n) for n in range(300)]), 0.98, rows=some).tolist() == [
        200 if n == 250 else n for n in some
    ]


def test_a_thousand_blank_images_do_not_keep_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", 64)
    seen: list[int] = []

    def counted(n: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
        seen.append(len(i))
        return groups_of(n, i, j)

    monkeypatch.setattr(near_duplicates, "groups_of", counted)
    X = np.ones((1000, 8), np.float32) + np.random.default_rng(0).normal(scale=1e-3, size=(1000, 8)).astype(np.float32)
    assert (duplicate_groups(X, hashes([str(n) for n in range(1000)])) == 0).all()
    assert max(seen) < 10_000
