"""The k rows with the largest cosine: exact, in blocks, in bounded memory.

Axes: N rows, Q queries, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.rows import rows_of
from pipeline.core.vectors import row_lengths, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_ROWS = 4096
_QUERIES = 1024
_PAIR_VALUES = 1 << 17
"""Values gathered at once when candidates are computed in float64: 1 MB, which stays in the cache."""
_MANY = 8
"""More candidates than this many times k: sorting the block is cheaper than computing them all."""


def nearest(
    embeddings: Any, queries: NDArray[Any], k: int, *, rows: Ints | None = None, skip: Ints | None = None
) -> tuple[Ints, NDArray[np.float32]]:
    """Find the ``k`` rows with the largest cosine to each query.

    Parameters
    ----------
    embeddings : (N, D)
        Finite. An array, or a map of a file.
    queries : (Q, D)
        Finite.
    k : int
        How many; as many as there are rows, at most.
    rows : (n,) int64, optional
        Search only these rows, in ascending order.
    skip : (Q,) int64, optional
        A row to exclude for that query (itself); -1 for none.

    Returns
    -------
    found : (Q, k) int64
        Rows of ``embeddings``, nearest first; of equals the smaller row first; -1 where there are no more.
    cosine : (Q, k) float32
        Computed in float64 and rounded, 0 for a row of zeros; -inf where there are no more.

    Notes
    -----
    A product in float32 selects candidates. Its error is at most (D + 2) · 2⁻²⁴ (Higham, *Accuracy and Stability
    of Numerical Algorithms*, 2002, section 3.1), so all values within twice that of the k-th best are computed
    again in float64. The result is that of comparing every pair in float64, for any block size and linear algebra
    library.

    Examples
    --------
    >>> rows, cosine = nearest(np.eye(3), np.array([[1.0, 1.0, 0.0]]), 2)
    >>> rows.tolist(), cosine.round(3).tolist()
    ([[0, 1]], [[0.7070000171661377, 0.7070000171661377]])
    """
    index = np.arange(len(embeddings)) if rows is None else np.asarray(rows, dtype=np.int64)
    leave = np.full(len(queries), -1, np.int64) if skip is None else np.asarray(skip, dtype=np.int64)
    k = max(min(k, len(index)), 0)
    found = np.full((len(queries), k), -1, np.int64)
    cosine = np.full((len(queries), k), -np.inf, np.float64)
    if k == 0:
        return found, cosine.astype(np.float32)
    blocks = range(0, len(queries), _QUERIES)
    sifters = [unit_rows(np.array(queries[q : q + _QUERIES], dtype=np.float32)) for q in blocks]
    buffer = np.empty(min(len(queries), _QUERIES) * _ROWS, np.float32)  # fresh memory is cleared page by page
    for start in range(0, len(index), _ROWS):
        these = index[start : start + _ROWS]
        block = rows_of(embeddings, these)
        scale = np.float32(1) / row_lengths(block)
        for first, sifter in zip(blocks, sifters, strict=True):
            part = slice(first, first + _QUERIES)
            scores = _cosines(sifter, block, scale, buffer)
            _leave_out(scores, these, leave[part])
            at, column = _candidates(scores, cosine[part, -1], k, slack=4 * (queries.shape[1] + 8) * 2.0**-24)
            exact = _exact_cosines(embeddings, queries, first + at, these[column])
            _merge(found[part], cosine[part], at, these[column], exact)
    return found, cosine.astype(np.float32)


def _cosines(
    queries: NDArray[np.float32], block: NDArray[np.float32], scale: NDArray[np.float32], buffer: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the products of queries (q, D) and rows (n, D), times ``scale`` (n,), in the memory of ``buffer``."""
    scores = buffer[: len(queries) * len(block)].reshape(len(queries), len(block))
    np.matmul(queries, block.T, out=scores)
    scores *= scale
    return scores


def _leave_out(scores: NDArray[np.float32], these: Ints, leave: Ints) -> None:
    """Set the score of the row that each query leaves out to -inf, where it is among ``these``."""
    column = np.searchsorted(these, leave)
    column[column == len(these)] = 0
    queries = np.flatnonzero(these[column] == leave)
    scores[queries, column[queries]] = -np.inf


def _candidates(scores: NDArray[np.float32], least: NDArray[np.float64], k: int, slack: float) -> tuple[Ints, Ints]:
    """Return (query, column) of all candidates for the k best, given the k-th best so far."""
    # Even the lowest bar excludes rows that are left out, whose score is -inf.
    bar = np.maximum(least - slack, np.finfo(np.float32).min).astype(np.float32)
    good = scores >= bar[:, None]
    if np.count_nonzero(good) > _MANY * k:
        many = np.flatnonzero(np.count_nonzero(good, axis=1) > _MANY * k)
        if len(many) and scores.shape[1] > k:
            kth = np.partition(scores[many], -k, axis=1)[:, -k]
            good[many] = scores[many] >= np.maximum(bar[many], kth - np.float32(slack))[:, None]
    at, column = np.divmod(np.flatnonzero(good), scores.shape[1])
    return at, column


def _exact_cosines(embeddings: Any, queries: NDArray[Any], at: Ints, rows: Ints) -> NDArray[np.float64]:
    """Return the cosine of each pair, in float64 rounded to float32, so that equal means equal."""
    out = np.empty(len(at))
    step = max(_PAIR_VALUES // queries.shape[1], 1)
    for start in range(0, len(at), step):
        left = np.asarray(queries[at[start : start + step]], dtype=np.float64)
        right = np.asarray(embeddings[rows[start : start + step]], dtype=np.float64)
        norm = np.sqrt(np.einsum("pd,pd->p", left, left) * np.einsum("pd,pd->p", right, right))
        product = np.einsum("pd,pd->p", left, right)
        out[start : start + step] = np.divide(product, norm, out=np.zeros(len(left)), where=norm > 0)
    return out.astype(np.float32).astype(np.float64)


def _merge(found: Ints, cosine: NDArray[np.float64], at: Ints, rows: Ints, exact: NDArray[np.float64]) -> None:
    """Put candidates (sorted by query) into the lists of the best, in place."""
    if not len(at):
        return
    k = found.shape[1]
    touched = np.unique(at)
    held = np.repeat(touched, k)
    query = np.concatenate([held, at])
    row = np.concatenate([found[touched].ravel(), rows])
    value = np.concatenate([cosine[touched].ravel(), exact])
    order = np.lexsort((row, -value, query))
    query, row, value = query[order], row[order], value[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    best = rank < k
    found[query[best], rank[best]] = row[best]
    cosine[query[best], rank[best]] = value[best]
