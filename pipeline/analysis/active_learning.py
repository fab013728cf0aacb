"""Which images to label next: those that cover the archive best for their number.

Axes: N rows, B rows chosen, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.analysis.projection import principal_components
from pipeline.analysis.rows import label_texts, take, usable_rows
from pipeline.core.spec import PENULTIMATE
from pipeline.core.vectors import unit_rows
from pipeline.errors import AnalysisError
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

Method = Literal["k-centre", "typicality"]

_MOST_CLUSTERS = 500
_TYPICAL_NEIGHBOURS = 20
_BLOCK = 4096
_REDUCED = 64


@dataclass(frozen=True)
class LabelSuggestions:
    """Images to label next.

    Attributes
    ----------
    table : pandas.DataFrame
        ``rank``, ``key``, ``label`` and ``score`` (k-centre: the cosine distance to the nearest row chosen or
        labelled before it; typicality: the inverse of the mean distance to its neighbours), in the order of choice.
    rows : (B,) int64
        The cache row of each line.
    candidates : int
        Number of candidates.
    """

    table: Any
    rows: NDArray[np.int64]
    candidates: int


def select(
    cache: Cache,
    k: int = 100,
    method: Method = "typicality",
    *,
    layer: str = PENULTIMATE,
    among_all: bool = False,
    seed: int = 0,
) -> LabelSuggestions:
    """Choose ``k`` images to label next.

    Parameters
    ----------
    cache : Cache
        An open cache.
    k : int
        How many, 1 or more; all candidates where there are fewer.
    method : {"k-centre", "typicality"}
        ``typicality`` for the first hundred labels or so, ``k-centre`` when there are many: Hacohen et al. (below)
        found that few labels are spent best on typical images and many on unusual ones.
    layer : str
        Which layer.
    among_all : bool
        Choose among all rows as if none was labelled. Otherwise among rows without a label, far from those with
        one.
    seed : int
        Of the clustering.

    Raises
    ------
    AnalysisError
        Every row has a label already, or ``k`` is below 1.

    References
    ----------
    k-centre: farthest-first traversal, within twice the best radius (Gonzalez, "Clustering to
    minimize the maximum intercluster distance", Theoretical Computer Science 38, 1985), for active learning by Sener
    and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018. Typicality:
    Hacohen, Dekel and Weinshall, "Active learning on a budget: opposite strategies suit high and low budgets", ICML
    2022 (TypiClust).
    """
    if k < 1:
        raise AnalysisError(f"expected k of 1 or more, found {k}: ask for at least one image")
    embeddings = cache.layer(layer)
    rows = usable_rows(cache, embeddings)
    labelled = np.zeros(len(rows), np.bool_) if among_all else np.asarray(cache.labels)[rows] >= 0
    if labelled.all():
        raise AnalysisError(f"every row of {cache.path} that is done has a label: add --all to choose among them")
    candidates = int((~labelled).sum())
    choose = _k_centre if method == "k-centre" else _typical
    at, score = choose(embeddings, rows, labelled, min(k, candidates), seed)
    chosen = rows[at]
    table = {
        "rank": np.arange(1, len(at) + 1),
        "key": cache.keys[chosen],
        "label": label_texts(cache, chosen),
        "score": score.round(6),
    }
    return LabelSuggestions(frame(table), chosen, candidates)


def _k_centre(
    embeddings: NDArray[Any], rows: Ints, labelled: NDArray[np.bool_], k: int, seed: int
) -> tuple[Ints, NDArray[np.float64]]:
    """Repeatedly take the row farthest from all chosen or labelled rows; begin at the most central one."""
    open_ = np.flatnonzero(~labelled)
    points = unit_rows(take(embeddings, rows[open_]))
    distance = np.full(len(open_), np.inf)
    held = rows[labelled]
    for start in range(0, len(held), _BLOCK):
        centres = unit_rows(take(embeddings, held[start : start + _BLOCK]))
        for first in range(0, len(points), _BLOCK):
            part = slice(first, first + _BLOCK)
            distance[part] = np.minimum(distance[part], 1 - (points[part] @ centres.T).max(axis=1))
    if not len(held):
        distance = np.asarray(points @ points.mean(axis=0), dtype=np.float64)  # the most central row comes first
    chosen, score = np.empty(k, np.int64), np.empty(k)
    for n in range(k):
        best = int(distance.argmax())
        chosen[n], score[n] = open_[best], distance[best]
        apart = 1 - points @ points[best]
        distance = np.minimum(distance, apart) if n or len(held) else apart.astype(np.float64)
        distance[best] = -np.inf
    if not len(held):
        score[0] = np.nan  # there is no earlier row
    return chosen, np.where(np.isfinite(score), score.clip(0), score)


def _typical(
    embeddings: NDArray[Any], rows: Ints, labelled: NDArray[np.bool_], k: int, seed: int
) -> tuple[Ints, NDArray[np.float64]]:
    """Cluster, then repeatedly take the most typical row of the largest cluster with the fewest labels."""
    from sklearn.cluster import MiniBatchKMeans

    points = principal_components(embeddings, rows, _REDUCED)
    clusters = min(int(labelled.sum()) + k, _MOST_CLUSTERS, len(rows))
    means = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=2048)
    member = means.fit_predict(points)
    size = np.bincount(member, minlength=clusters)
    covered = np.bincount(member[labelled], minlength=clusters)
    left = np.bincount(member[~labelled], minlength=clusters)
    waiting: dict[int, list[tuple[float, int]]] = {}
    chosen, score = np.empty(k, np.int64), np.empty(k)
    for n in range(k):
        # Fewest labels first, the larger one of equals.
        cluster = min(np.flatnonzero(left).tolist(), key=lambda c: (covered[c], -size[c], c))
        if cluster not in waiting:
            inside = np.flatnonzero(member == cluster)
            typicality = _typicality(points[inside])
            order = np.lexsort((inside, -typicality))
            waiting[cluster] = [(typicality[o], int(inside[o])) for o in order if not labelled[inside[o]]]
        score[n], chosen[n] = waiting[cluster].pop(0)
        covered[cluster] += 1
        left[cluster] -= 1
    return chosen, score


def _typicality(points: Floats) -> NDArray[np.float64]:
    """Return the inverse of each point's mean distance to its nearest neighbours, (n, d) to (n,)."""
    from sklearn.neighbors import NearestNeighbors

    k = min(_TYPICAL_NEIGHBOURS, len(points) - 1)
    if k < 1:
        return np.zeros(len(points))
    distance, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()
    return np.asarray(1 / np.maximum(distance.mean(axis=1), 1e-12))
