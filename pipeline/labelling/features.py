"""What a session computes with: the embeddings of a cache, reduced to a few hundred directions and kept in memory.

Axes: N rows of the cache, n rows that are done, D features, d directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.rows import take
from pipeline.core.items import Status, not_finite_error
from pipeline.labelling.journal import LabelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

DIRECTIONS = 256
"""Principal components that are kept: enough for a head on hundreds of labels; the run is fitted on all features."""
_SAMPLE = 10_000
_BLOCK = 4096
_EXTRA, _PASSES = 32, 6


@dataclass(frozen=True)
class Features:
    """The rows of a cache that can be labelled.

    Attributes
    ----------
    rows : (n,) int64
        Rows of the cache that are done.
    points : (n, d) float32
        Their embeddings: centred, on the directions of largest variance, scaled to a mean squared length of 1.
    """

    rows: Ints
    points: Floats


def read_features(cache: Any, layer: str, *, seed: int = 0) -> Features:
    """Read a layer of a cache and reduce it.

    Parameters
    ----------
    cache : Cache
        An open cache.
    layer : str
        Which layer.
    seed : int
        Of the sample of rows from which the directions are found.

    Raises
    ------
    LabelError
        Fewer than two rows are done.
    CacheError
        The cache has no such layer.
    """
    embeddings = cache.layer(layer)
    rows = np.flatnonzero(np.asarray(cache.status) == Status.DONE)
    if len(rows) < 2:
        raise LabelError(
            f"expected at least 2 rows that are done in {cache.path}, found {len(rows)}: finish pipeline extract first"
        )
    sample = np.sort(np.random.default_rng(seed).permutation(rows)[:_SAMPLE])
    mean, basis = _directions(_finite(take(embeddings, sample), sample, cache), seed)
    points = np.empty((len(rows), basis.shape[1]), np.float32)
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        points[start : start + len(some)] = (_finite(take(embeddings, some), some, cache) - mean) @ basis
    size = float(np.einsum("nd,nd->", points, points, dtype=np.float64)) / len(points)
    points /= np.float32(np.sqrt(size) if size > 0 else 1.0)
    return Features(rows, points)


def _finite(block: Floats, rows: Ints, cache: Any) -> Floats:
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise not_finite_error(LabelError, int(rows[~finite][0]), cache.path)
    return block


def _directions(sample: Floats, seed: int) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the directions of largest variance (D, d), by subspace iteration on the covariance.

    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53, 2011. The complete decomposition
    takes ten times as long.
    """
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = sample - mean
    width = centred.shape[1]
    count = min(DIRECTIONS, width, len(sample))
    covariance = centred.T @ centred
    start = np.random.default_rng(seed).standard_normal((width, min(count + _EXTRA, width)), dtype=np.float32)
    basis = np.linalg.qr(covariance @ start)[0]
    for _ in range(_PASSES):
        basis = np.linalg.qr(covariance @ basis)[0]
    _, turn = np.linalg.eigh(basis.T @ covariance @ basis)
    basis = basis @ turn[:, ::-1][:, :count]
    return mean, np.asarray(basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(count)]), dtype=np.float32)
