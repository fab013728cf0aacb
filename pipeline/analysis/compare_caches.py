"""Comparison of embeddings of the same images: by different backbones, or layers of one.

Axes: N common rows, D features, Q sampled rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.nearest import nearest
from pipeline.analysis.rows import take, usable_rows
from pipeline.errors import AnalysisError, near_names
from pipeline.evaluation.bootstrap import bootstrap_intervals, weighted_means
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_BLOCK = 4096
_CLASSIFIER_NEIGHBOURS = 15


@dataclass(frozen=True)
class CacheComparison:
    """How embeddings of the same images relate.

    Attributes
    ----------
    separation : pandas.DataFrame
        For each embedding: ``embedding``, ``width``, ``accuracy`` (of 15 nearest neighbours, each row left out of its
        own vote) with ``low`` and ``high``, ``difference`` to the first with ``difference_low`` and
        ``difference_high``, on the same resampled rows (95 % bootstrap). Empty where no common row has a label.
    pairs : pandas.DataFrame
        For each pair: ``first``, ``second``, ``cka``, ``overlap`` (mean share of common neighbours) with ``low`` and
        ``high``.
    rows, asked : int
        Common rows, and the number of sampled rows whose neighbours were searched.
    """

    separation: Any
    pairs: Any
    rows: int
    asked: int


def compare_caches(
    caches: Sequence[Any],
    *,
    layers: Sequence[str] = (),
    k: int = 10,
    most_asked: int = 2000,
    replicates: int = 1000,
    seed: int = 0,
) -> CacheComparison:
    """Compare embeddings on the images that all caches have.

    Parameters
    ----------
    caches : sequence of Cache
        One with several layers, or several.
    layers : sequence of str
        Only these layers; a cache that lacks one goes without it. All layers where none is named.
    k : int
        Neighbours whose overlap is counted, 1 or more.
    most_asked : int
        Randomly drawn rows whose neighbours are searched among all common rows.
    replicates : int
        Bootstrap resamples.
    seed : int
        Of sample and bootstrap.

    Raises
    ------
    AnalysisError
        Fewer than two embeddings, or than 3 common rows; a layer that no cache has; or ``k`` is below 1.

    References
    ----------
    CKA: linear centred kernel alignment, Kornblith, Norouzi, Lee and Hinton, "Similarity of
    neural network representations revisited", ICML 2019. It is 1 for embeddings equal up to rotation and scale.
    """
    if k < 1:
        raise AnalysisError(f"expected k of 1 or more, found {k}: compare at least one neighbour")
    named = _named(caches, layers)
    keys, rows = _common_rows(caches, named)
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.permutation(len(keys))[:most_asked])
    labels = _common_labels(caches, rows)
    k = min(k, len(keys) - 1)
    neighbours, hits = _neighbours(named, rows, asked, labels, k)
    bootstrap = functools.partial(bootstrap_intervals, seed=seed, replicates=replicates)
    separation = _separation_table(named, hits, labels[asked] >= 0, bootstrap)
    pairs = _pair_table(named, rows, neighbours, k, bootstrap)
    return CacheComparison(frame(separation), frame(pairs), len(keys), len(asked))


def _neighbours(
    named: Sequence[tuple[str, int, NDArray[Any]]], rows: Sequence[Ints], asked: Ints, labels: Ints, k: int
) -> tuple[list[Ints], list[NDArray[np.float64]]]:
    """Return for each embedding the neighbours of the rows asked, and whether these vote for the right label."""
    votes = min(_CLASSIFIER_NEIGHBOURS, len(labels) - 1)
    neighbours, hits = [], []
    for _, which, embeddings in named:
        view = _View(embeddings, rows[which])
        found, cosine = nearest(view, view[asked], max(k, votes), skip=asked)
        neighbours.append(found[:, :k])
        hits.append(_right(found[:, :votes], cosine[:, :votes], labels, asked))
    return neighbours, hits


def _separation_table(
    named: Sequence[tuple[str, int, NDArray[Any]]],
    hits: Sequence[NDArray[np.float64]],
    labelled: NDArray[np.bool_],
    bootstrap: Callable[..., dict[str, Any]],
) -> dict[str, list[Any]]:
    """Return a line for each embedding; none where no row has a label."""
    lines = []
    if labelled.any():
        right = [hit[labelled] for hit in hits]

        def measure(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            share = [weighted_means(weights, hit) for hit in right]
            figures = {f"accuracy {n}": value for n, value in enumerate(share)}
            return figures | {f"difference {n}": value - share[0] for n, value in enumerate(share)}

        intervals = bootstrap(measure, int(labelled.sum()))
        for n, (name, _, embeddings) in enumerate(named):
            accuracy, difference = intervals[f"accuracy {n}"], intervals[f"difference {n}"]
            figures = (accuracy.value, accuracy.low, accuracy.high, difference.value, difference.low, difference.high)
            lines.append((name, embeddings.shape[1], *figures))
    names = ("embedding", "width", "accuracy", "low", "high", "difference", "difference_low", "difference_high")
    return _columns(names, lines)


def _pair_table(
    named: Sequence[tuple[str, int, NDArray[Any]]],
    rows: Sequence[Ints],
    neighbours: Sequence[Ints],
    k: int,
    bootstrap: Callable[..., dict[str, Any]],
) -> dict[str, list[Any]]:
    """Return a line for each pair of embeddings."""
    lines = []
    for a, b in combinations(range(len(named)), 2):
        shared = np.array([len(np.intersect1d(x, y)) / k for x, y in zip(neighbours[a], neighbours[b], strict=True)])
        overlap = bootstrap(functools.partial(_mean_overlap, shared), len(shared))["overlap"]
        cka = linear_cka(named[a][2], rows[named[a][1]], named[b][2], rows[named[b][1]])
        lines.append((named[a][0], named[b][0], cka, overlap.value, overlap.low, overlap.high))
    return _columns(("first", "second", "cka", "overlap", "low", "high"), lines)


def _columns(names: Sequence[str], lines: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [line[n] for line in lines] for n, name in enumerate(names)}


def linear_cka(left: NDArray[Any], left_rows: Ints, right: NDArray[Any], right_rows: Ints) -> float:
    """Return the linear CKA of two embeddings of the same images; nan where one of them is constant.

    Parameters
    ----------
    left, right : (N, D) and (M, E)
        Maps of two layers.
    left_rows, right_rows : (n,) int64
        Row of each image in either.

    Notes
    -----
    ``‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)`` in Frobenius norms, on centred columns, summed over blocks of rows.
    """
    parts = range(0, len(left_rows), _BLOCK)
    means = [
        sum(take_any(values, rows[p : p + _BLOCK]).sum(axis=0, dtype=np.float64) for p in parts) / len(rows)
        for values, rows in ((left, left_rows), (right, right_rows))
    ]
    shapes = ((right, left), (left, left), (right, right))
    products = [np.zeros((a.shape[1], b.shape[1])) for a, b in shapes]
    for p in parts:
        x = take_any(left, left_rows[p : p + _BLOCK]) - means[0].astype(np.float32)
        y = take_any(right, right_rows[p : p + _BLOCK]) - means[1].astype(np.float32)
        for product, (a, b) in zip(products, ((y, x), (x, x), (y, y)), strict=True):
            product += a.T @ b
    cross, own_x, own_y = (float(np.linalg.norm(product)) for product in products)
    return cross**2 / (own_x * own_y) if own_x * own_y > 0 else float("nan")


def _mean_overlap(shared: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {"overlap": weighted_means(weights, shared)}


def take_any(embeddings: NDArray[Any], rows: Ints) -> NDArray[np.float32]:
    """Copy rows in any order as float32."""
    return take(embeddings, rows) if (np.diff(rows) == 1).all() else np.asarray(embeddings[rows], dtype=np.float32)


class _View:
    """Some rows of a map, renumbered, read on request."""

    def __init__(self, embeddings: NDArray[Any], rows: Ints) -> None:
        self._embeddings, self._rows = embeddings, rows
        self.shape = (len(rows), embeddings.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return self._embeddings[self._rows[rows]]  # type: ignore[no-any-return]


def _named(caches: Sequence[Any], layers: Sequence[str]) -> list[tuple[str, int, NDArray[Any]]]:
    """Return (name, number of its cache, map) of every embedding."""
    known = list(dict.fromkeys(name for cache in caches for name in cache.layers))
    if unknown := [name for name in layers if name not in known]:
        raise AnalysisError(f"no cache to compare has a layer {unknown[0]!r}: {near_names(unknown[0], known)}")
    out = []
    for number, cache in enumerate(caches):
        for name in layers or cache.layers:
            if name in cache.layers:
                out.append((f"{cache.path}:{name}", number, cache.layer(name)))
    if len(out) < 2:
        raise AnalysisError(
            f"expected at least 2 embeddings to compare, found {len(out)}: "
            "name several caches, or one with several layers"
        )
    return out


def _common_rows(
    caches: Sequence[Any], named: Sequence[tuple[str, int, NDArray[Any]]]
) -> tuple[list[bytes], list[Ints]]:
    """Return the keys that are done in every cache, in the first one's order, and their rows in each."""
    tables = []
    for number, cache in enumerate(caches):
        rows = np.arange(len(cache))
        for _, which, embeddings in named:
            if which == number:
                rows = np.intersect1d(rows, usable_rows(cache, embeddings))
        tables.append(dict(zip(cache.keys[rows].tolist(), rows.tolist(), strict=True)))
    keys = [key for key in tables[0] if all(key in table for table in tables[1:])]
    if len(keys) < 3:
        raise AnalysisError(
            f"expected at least 3 images that all caches have under the same key, found {len(keys)}: "
            "extract them from the same folder or table"
        )
    return keys, [np.array([table[key] for key in keys], dtype=np.int64) for table in tables]


def _common_labels(caches: Sequence[Any], rows: Sequence[Ints]) -> Ints:
    """Return the first cache's labels of the common rows that has any; -1 for none."""
    for cache, its_rows in zip(caches, rows, strict=True):
        labels = np.asarray(cache.labels, dtype=np.int64)[its_rows]
        if (labels >= 0).any():
            return labels
    return np.full(len(rows[0]), -1, np.int64)


def _right(found: Ints, cosine: NDArray[np.float32], labels: Ints, asked: Ints) -> NDArray[np.float64]:
    """Return 1 for each row whose neighbours vote for its label; of classes with as many votes the nearer one wins."""
    votes = labels[found]
    classes = int(labels.max()) + 1
    tally = np.zeros((len(asked), max(classes, 1)))
    at, place = np.nonzero((votes >= 0) & (found >= 0))
    np.add.at(tally, (at, votes[at, place]), 1 + 1e-6 * cosine[at, place])
    return np.asarray(tally.argmax(axis=1) == labels[asked], dtype=np.float64)
