"""A map of the images: each embedding as a point of the plane.

Axes: N rows, D features, d reduced features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.analysis.rows import label_texts, take, usable_rows
from pipeline.core.optional import ANALYSIS_EXTRA, optional_part
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import AnalysisError
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache

    Floats = NDArray[np.float32]

Method = Literal["pca", "umap", "tsne"]

REDUCED = 50
"""Principal components that UMAP and t-SNE start from."""
_BLOCK = 2048
_MANY_ROWS = 20_000


@dataclass(frozen=True)
class Projection:
    """A map.

    Attributes
    ----------
    table : pandas.DataFrame
        ``key``, ``label``, ``x``, ``y``.
    rows : (N,) int64
        The cache row of each line.
    method : str
    """

    table: Any
    rows: NDArray[np.int64]
    method: str


def map_cache(
    cache: Cache,
    method: Method = "umap",
    *,
    layer: str = PENULTIMATE,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    n_epochs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Projection:
    """Compute two coordinates for every image that is done.

    Parameters
    ----------
    cache : Cache
        An open cache.
    method : {"pca", "umap", "tsne"}
        ``pca``: the two directions of largest variance; distances are meaningful, but most structure is hidden.
        ``umap`` (McInnes, Healy and Melville, arXiv:1802.03426, 2018) and ``tsne`` (van der Maaten and Hinton, JMLR
        9, 2008) keep neighbours together; distances between groups, and their sizes, mean little. Both start from 50
        principal components.
    layer : str
        Which layer.
    n_neighbors, min_dist, n_epochs
        UMAP's own; 200 epochs above 10 000 rows, 500 below.
    seed : int
        The same seed gives the same map on one machine.
    say : callable
        Called with each line for the user.

    Raises
    ------
    AnalysisError
        umap-learn is missing, or there are fewer than 3 rows.
    """
    embeddings = cache.layer(layer)
    if method == "umap":
        _umap()  # before the work
    rows = usable_rows(cache, embeddings, least=3)
    components = principal_components(embeddings, rows, 2 if method == "pca" else REDUCED)
    if method == "pca":
        places = components
    elif method == "umap":
        places = _by_umap(components, n_neighbors, min_dist, n_epochs, seed)
    else:
        if len(rows) > _MANY_ROWS:
            say(f"t-SNE of {len(rows)} rows takes scikit-learn many minutes; --method umap is several times quicker")
        places = _by_tsne(components, seed)
    table = {"key": cache.keys[rows], "label": label_texts(cache, rows), "x": places[:, 0], "y": places[:, 1]}
    return Projection(frame(table), rows, method)


def principal_components(embeddings: NDArray[Any], rows: NDArray[np.int64], count: int) -> Floats:
    """Project rows on the directions of largest variance.

    Parameters
    ----------
    embeddings : (N, D)
        May be a map of a file: it is read twice, in blocks.
    rows : (n,) int64
    count : int
        How many; fewer where there are fewer rows or features.

    Returns
    -------
    (n, count) float32
        Columns by falling variance; the entry of each direction that is largest in absolute value is positive.
    """
    width = embeddings.shape[1]
    mean, moment = np.zeros(width), np.zeros((width, width))
    for start in range(0, len(rows), _BLOCK):
        mean += take(embeddings, rows[start : start + _BLOCK]).sum(axis=0, dtype=np.float64) / len(rows)
    for start in range(0, len(rows), _BLOCK):
        block = take(embeddings, rows[start : start + _BLOCK]) - mean.astype(np.float32)
        moment += block.T @ block
    _, vectors = np.linalg.eigh(moment)
    basis = vectors[:, ::-1][:, : max(min(count, width, len(rows)), 1)]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    out = np.zeros((len(rows), max(basis.shape[1], 2)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = take(embeddings, rows[start : start + _BLOCK]) - mean.astype(np.float32)
        out[start : start + _BLOCK, : basis.shape[1]] = block @ basis.astype(np.float32)
    return out


def _umap() -> Any:
    with optional_part("--method umap needs umap-learn", f"{ANALYSIS_EXTRA}, or take --method pca", AnalysisError):
        import umap
    return umap


def _by_umap(components: Floats, n_neighbors: int, min_dist: float, n_epochs: int | None, seed: int) -> Floats:
    import warnings

    from sklearn.neighbors import NearestNeighbors

    k = min(n_neighbors, len(components) - 1)
    # Exact neighbours cost seconds at 50 columns, less than UMAP's own approximate ones, and do not depend on the seed.
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(components)
    distance, neighbours = search.kneighbors(components)
    start = _start(components, 10.0)
    # UMAP divides by the range of each axis: without one, as of rows that are all equal, its map would be all NaN.
    flat = np.ptp(start, axis=0) == 0
    start[:, flat] = np.random.default_rng(seed).normal(size=(len(start), int(flat.sum())))
    reducer = _umap().UMAP(
        n_neighbors=k,
        min_dist=min_dist,
        n_epochs=n_epochs,
        random_state=seed,
        init=start,
        precomputed_knn=(neighbours, distance, None),
        force_approximation_algorithm=True,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        # UMAP warns that a seed rules out threads, and that new points cannot be added later.
        warnings.simplefilter("ignore")
        return np.asarray(reducer.fit_transform(components), dtype=np.float32)


def _by_tsne(components: Floats, seed: int) -> Floats:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(components) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=_start(components, 1e-4), random_state=seed, n_jobs=-1)
    return np.asarray(tsne.fit_transform(components), dtype=np.float32)


def _start(components: Floats, spread: float) -> Floats:
    """Return the first two components, scaled: the start of a map decides whether distant parts are comparable.

    Kobak and Linderman, "Initialization is critical for preserving global data structure in both t-SNE and UMAP",
    Nature Biotechnology 39, 2021.
    """
    first = components[:, :2].astype(np.float64)
    return np.asarray(first / max(float(first[:, 0].std()), 1e-12) * spread, dtype=np.float32)
