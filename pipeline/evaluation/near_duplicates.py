"""Which rows of a cache show the same picture: by content, and by nearly the same embedding.

Axes: N rows, D features, d reduced features, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.items import not_finite_error
from pipeline.core.vectors import unit_rows
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

DEFAULT_THRESHOLD = 0.98
"""Cosine from which two images count as the same picture; see docs/heads.md for the measurements."""

_REDUCED = 160
_BLOCK_ROWS = 2048
_SAMPLE_ROWS = 8192
_DENSE_SHARE = 0.01
"""Share of candidates in a block from which multiplying the block whole is cheaper than gathering them."""
_ROUNDING = 1e-5
"""What float32 may take off a bound."""


def exact_pairs(content_hash: NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Link rows whose bytes are the same.

    Parameters
    ----------
    content_hash : ndarray of shape (N, 16), uint8
        ``Cache.content_hash``; zeros where nothing was read, and such rows are never duplicates.

    Returns
    -------
    i, j : ndarray of shape (P,), int64
        Every row but the first of its content, as ``j``, with that first row, as ``i < j``.

    Examples
    --------
    >>> hashes = np.array([[1], [2], [1], [0], [0], [1]], dtype=np.uint8)
    >>> [rows.tolist() for rows in exact_pairs(hashes)]
    [[0, 0], [2, 5]]
    """
    content = np.ascontiguousarray(content_hash)
    if not len(content):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    words = content.view(np.dtype((np.void, content.shape[1]))).ravel()
    _, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    leader = first[inverse.ravel()]
    j = np.flatnonzero((leader != np.arange(len(content))) & content.any(axis=1))
    return leader[j].astype(np.int64), j.astype(np.int64)


def near_pairs(
    embeddings: NDArray[np.floating], threshold: float, *, rows: ArrayLike | None = None
) -> tuple[Ints, Ints, Floats]:
    """Find every pair of rows with a cosine of at least ``threshold``: exact, not approximate.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
        Finite; may be a map of a file. A row of zeros is near nothing.
    threshold : float
        In (0, 1]. The pairs found are held in memory, so a low one on many rows is costly.
    rows : array-like of int, optional
        Look at these rows only, in rising order.

    Returns
    -------
    i, j : ndarray of shape (P,), int64
        Rows of ``embeddings``, ``i < j``, in order.
    cosine : ndarray of shape (P,), float32
        Their cosine.

    Raises
    ------
    PipelineError
        Where a row that is looked at holds a value that is not finite.

    Notes
    -----
    A row at unit length is expressed in the eigenvectors of the second moment of a sample; ``d`` coordinates are kept
    and the length of the rest appended as one more. By Cauchy and Schwarz the product of two such rows bounds their
    cosine from above, so most pairs are decided at width d + 1; the others are computed in full. Besides the result
    it needs (d + 2) × 4 bytes a row, and a few blocks.

    Examples
    --------
    >>> i, j, cosine = near_pairs(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]), 0.9)
    >>> i.tolist(), j.tolist(), round(float(cosine[0]), 4)
    ([0], [2], 0.9988)
    """
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    found = [nothing, *_near_blocks(embeddings, threshold, rows)]
    i, j = np.concatenate([block[0] for block in found]), np.concatenate([block[1] for block in found])
    cosine = np.concatenate([block[2] for block in found])
    order = np.lexsort((j, i))
    return i[order], j[order], cosine[order]


def groups_of(n: int, i: Ints, j: Ints) -> Ints:
    """Join pairs into groups.

    Parameters
    ----------
    n : int
        N.
    i, j : ndarray of shape (P,), int
        Pairs of rows.

    Returns
    -------
    ndarray of shape (N,), int64
        Smallest row number of each row's group: its own where it has no duplicate.

    Examples
    --------
    >>> groups_of(5, np.array([1, 3]), np.array([3, 4])).tolist()
    [0, 1, 2, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not n:
        return np.zeros(0, np.int64)
    # SciPy 1.11.1 takes only 32-bit indices: with others it prints an error and returns uninitialised groups.
    links = coo_array((np.ones(len(i), np.int8), (i.astype(np.int32), j.astype(np.int32))), shape=(n, n))
    _, part = connected_components(links, directed=False)
    _, first = np.unique(part, return_index=True)
    return np.asarray(first[part], dtype=np.int64)


def duplicate_groups(
    embeddings: NDArray[np.floating],
    content_hash: NDArray[np.uint8],
    threshold: float = DEFAULT_THRESHOLD,
    *,
    rows: ArrayLike | None = None,
) -> Ints:
    """Group rows that show the same picture, by chains of equal bytes and near embeddings.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
        As in ``near_pairs``.
    content_hash : ndarray of shape (N, 16), uint8
        As in ``exact_pairs``.
    threshold : float
        As in ``near_pairs``.
    rows : array-like of int, optional
        Look at these rows only, in rising order.

    Returns
    -------
    ndarray of shape (N,) or (len(rows),), int64
        Smallest row number of each row's group.
    """
    index = np.arange(len(embeddings)) if rows is None else np.asarray(rows, dtype=np.int64)
    first, copy = exact_pairs(content_hash[index])
    # Byte-identical images share one embedding: compare one representative of each.
    representatives = np.setdiff1d(np.arange(len(index)), copy)
    i, j = first, copy
    for near_i, near_j, _ in _near_blocks(embeddings, threshold, index[representatives]):
        # A star for each group found so far, so that memory stays O(N) however many pairs there are.
        i = np.concatenate([i, np.searchsorted(index, near_i)])
        j = np.concatenate([j, np.searchsorted(index, near_j)])
        if len(i) > 4 * len(index):
            group = groups_of(len(index), i, j)
            j = np.flatnonzero(group != np.arange(len(index)))
            i = group[j]
    return np.asarray(index[groups_of(len(index), i, j)])


def _near_blocks(
    embeddings: NDArray[np.floating], threshold: float, rows: ArrayLike | None
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield the near pairs block by block of the upper triangle."""
    index = np.arange(len(embeddings)) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(index) < 2:
        return
    bounds = _bounding_rows(embeddings, index)
    starts = range(0, len(index), _BLOCK_ROWS)
    for start in starts:
        left: Floats | None = None
        for other in starts[start // _BLOCK_ROWS :]:
            bound = bounds[start : start + _BLOCK_ROWS] @ bounds[other : other + _BLOCK_ROWS].T
            candidate = bound >= threshold - _ROUNDING
            if start == other:
                candidate &= np.tri(*candidate.shape, dtype=np.bool_).T
                np.fill_diagonal(candidate, False)
            at = np.flatnonzero(candidate)
            if not len(at):
                continue
            if left is None:
                left = _directions(embeddings, index[start : start + _BLOCK_ROWS])
            right = left if start == other else _directions(embeddings, index[other : other + _BLOCK_ROWS])
            i, j = np.divmod(at, candidate.shape[1])
            if len(at) > _DENSE_SHARE * candidate.size:
                cosine = (left @ right.T)[i, j]
            else:
                cosine = np.concatenate(
                    [
                        np.einsum("pd,pd->p", left[i[s : s + _BLOCK_ROWS]], right[j[s : s + _BLOCK_ROWS]])
                        for s in range(0, len(at), _BLOCK_ROWS)
                    ]
                )
            near = cosine >= threshold - np.float32(1e-6)
            if near.any():
                yield index[start + i[near]], index[other + j[near]], np.minimum(cosine[near], np.float32(1))


def _directions(embeddings: NDArray[np.floating], index: Ints) -> Floats:
    block = np.asarray(embeddings[index], dtype=np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise not_finite_error(PipelineError, index[~finite][0])
    return unit_rows(block)


def _bounding_rows(embeddings: NDArray[np.floating], index: Ints) -> Floats:
    """Return rows (N, d + 1) whose products are at least the cosines of the rows they stand for."""
    sample = _directions(embeddings, index[:: max(len(index) // _SAMPLE_ROWS, 1)][:_SAMPLE_ROWS])
    _, vectors = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :_REDUCED], dtype=np.float32)
    out = np.empty((len(index), basis.shape[1] + 1), dtype=np.float32)
    for start in range(0, len(index), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        unit = _directions(embeddings, index[rows])
        kept = unit @ basis
        out[rows, :-1] = kept
        rest = (unit.astype(np.float64) ** 2).sum(axis=1) - (kept.astype(np.float64) ** 2).sum(axis=1)
        out[rows, -1] = np.sqrt(np.maximum(rest, 0.0) + 1e-6)
    return out
