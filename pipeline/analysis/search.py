"""The images of a cache that are nearest to given ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.nearest import nearest
from pipeline.analysis.rows import label_texts, take, usable_rows
from pipeline.core.optional import ANALYSIS_EXTRA, optional_part
from pipeline.core.spec import PENULTIMATE
from pipeline.core.text import match_names
from pipeline.core.vectors import unit_rows
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.settings import RunSettings
from pipeline.embedding.text import text_tower_of_spec
from pipeline.errors import AnalysisError
from pipeline.selection.frames import frame
from pipeline.sources.listed import ListedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.cache import Cache

_RECALL_QUERIES = 100
_HNSW_LINKS = 32
_HNSW_BUILD = 80
_HNSW_SEARCH = 128


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes
    ----------
    columns : dict of str to ndarray
        ``query``, ``rank`` (1 is the nearest), ``key``, ``label``, ``cosine``: a value for each query and image found.
    rows : (Q, k) int64
        The rows of the cache found.
    queries : tuple of str
        The Q queries, each once; texts last.
    query_rows : (Q,) int64
        The row of a query that is a key, -1 for an image file or a text.
    recall : float or None
        Of an approximate search: the share of the true k nearest that it found, on a sample of the queries.
    """

    columns: dict[str, NDArray[Any]]
    rows: NDArray[np.int64]
    queries: tuple[str, ...]
    query_rows: NDArray[np.int64]
    recall: float | None = None
    texts: int = 0
    """How many of the queries, the last ones, are texts."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns as a data frame."""
        return frame(self.columns)


def search(
    cache: Cache,
    queries: Sequence[str] = (),
    *,
    texts: Sequence[str] = (),
    k: int = 10,
    layer: str = PENULTIMATE,
    approximate: bool = False,
    weights: str | None = None,
    run: RunSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Find the ``k`` images with the largest cosine to each query.

    Parameters
    ----------
    cache : Cache
        An open cache.
    queries : sequence of str
        Keys of the cache, or paths of images, which are embedded as the cache's own were. A key takes precedence
        over a file. A key does not find itself.
    texts : sequence of str
        Texts to search for, in a cache of a dual encoder.
    k, layer : int, str
        How many, and which layer of the cache.
    approximate : bool
        Through an HNSW graph (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
        hierarchical navigable small world graphs", IEEE TPAMI 42, 2020) of faiss: it pays only for very many
        queries.
    weights, run : str, RunSettings, optional
        The weights file, when the cache was made with one, and how to run the network on image files.
    say : callable
        Called with each line for the user.

    Raises
    ------
    AnalysisError
        A query is neither a key nor an image; faiss is missing.
    PipelineError
        The cache's backbone is not available here.
    """
    queries, texts = tuple(dict.fromkeys(queries)), tuple(dict.fromkeys(texts))
    embeddings = cache.layer(layer)
    rows = usable_rows(cache, embeddings)
    query_rows = _rows_of(cache, queries, rows)
    vectors = np.zeros((len(queries), embeddings.shape[1]), np.float32)
    known, images = np.flatnonzero(query_rows >= 0), np.flatnonzero(query_rows < 0)
    vectors[known] = take(embeddings, query_rows[known])
    if len(images):
        files = [queries[n] for n in images.tolist()]
        vectors[images] = embed_images(cache, files, layer, weights=weights, run=run, say=say)
    if texts:
        vectors = np.concatenate([vectors, embed_texts(cache, texts, layer, weights=weights, run=run)])
        query_rows = np.concatenate([query_rows, np.full(len(texts), -1)])
        queries += texts
    if approximate:
        found, cosine, recall = _nearest_by_graph(embeddings, vectors, k, rows, query_rows)
    else:
        found, cosine, recall = *nearest(embeddings, vectors, k, rows=rows, skip=query_rows), None
    return Search(_columns(cache, queries, found, cosine), found, queries, query_rows, recall, len(texts))


def _columns(
    cache: Cache, queries: Sequence[str], found: NDArray[np.int64], cosine: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Return a line for each query and neighbour; places without a neighbour are left out."""
    width = found.shape[1]
    flat = found.ravel()
    there = flat >= 0
    return {
        "query": np.repeat(np.asarray(queries, dtype=object), width)[there],
        "rank": np.tile(np.arange(1, width + 1), len(queries))[there],
        "key": cache.keys[flat[there]],
        "label": label_texts(cache, flat[there]),
        "cosine": cosine.ravel()[there].round(6),
    }


def _rows_of(cache: Cache, queries: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of each query that is a key, or a key as lists show it, -1 for each that is a file."""
    wanted = set(queries)
    row_of = {key: row for row, key in zip(rows.tolist(), cache.keys[rows].tolist(), strict=True) if key in wanted}
    out = np.array([row_of.get(query, -1) for query in queries], dtype=np.int64)
    left = [n for n, row in enumerate(out.tolist()) if row < 0 and not Path(queries[n]).is_file()]
    if left:
        found = match_names([queries[n] for n in left], cache.keys[rows].tolist())
        out[left] = np.where(found < 0, -1, rows[found])
    for query, row in zip(queries, out, strict=True):
        if row < 0 and not Path(query).is_file():
            raise AnalysisError(
                f"expected a key of {cache.path} with a row that is done, or an image file, found neither: {query!r}: "
                "pipeline export lists the keys"
            )
    return out


def embed_images(
    cache: Cache,
    paths: Sequence[str],
    layer: str = PENULTIMATE,
    *,
    weights: str | None = None,
    run: RunSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> NDArray[np.float32]:
    """Embed image files as the cache's own images were: same backbone, preprocessing, decoding, precision and type.

    Returns
    -------
    (n, D) float32

    Raises
    ------
    AnalysisError
        An image cannot be read; the message says which and why.
    """
    source = ListedSource.of_files([os.fsencode(Path(path).absolute()) for path in paths])
    embedder = Embedder.of_spec(cache.spec, (layer,), run or RunSettings(), weights=weights)
    embedder.open_for(source, say=say)
    out = np.zeros((len(paths), cache.layers[layer].shape[1]), np.float32)
    try:
        for batch, embeddings, reasons in embedder.embed(source, np.arange(len(source))):
            for row, reason in zip(batch.rows.tolist(), reasons, strict=True):
                if reason:
                    raise AnalysisError(f"cannot search for {paths[row]}: {reason}: give another image")
            out[batch.rows] = embeddings
    finally:
        embedder.close()
    return out


def embed_texts(
    cache: Cache,
    texts: Sequence[str],
    layer: str = PENULTIMATE,
    *,
    weights: str | None = None,
    run: RunSettings | None = None,
) -> NDArray[np.float32]:
    """Return the text features (n, D) of the dual encoder that made the cache.

    Raises
    ------
    PipelineError
        See `pipeline.embedding.text.text_tower_of_spec`.
    """
    trust = run is not None and run.trust_remote_code
    return text_tower_of_spec(cache.spec, layer, weights, trust_remote_code=trust).embed(texts)


def _nearest_by_graph(
    embeddings: NDArray[Any], vectors: NDArray[np.float32], k: int, rows: NDArray[np.int64], skip: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """Return rows, cosines and recall of a search through faiss."""
    way_out = f"{ANALYSIS_EXTRA}, or leave out --approximate"
    with optional_part("an approximate search needs faiss", way_out, AnalysisError):
        import faiss
    graph = faiss.IndexHNSWFlat(embeddings.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _HNSW_BUILD
    for start in range(0, len(rows), 8192):
        graph.add(unit_rows(take(embeddings, rows[start : start + 8192])))
    graph.hnsw.efSearch = max(_HNSW_SEARCH, 2 * k)
    k = min(k, len(rows))
    cosine, at = graph.search(unit_rows(vectors.copy()), min(k + 1, len(rows)))
    found = np.where(at >= 0, rows[at], -1)
    # The query itself leaves the list; a stable sort keeps the order of the others.
    own = (found == skip[:, None]) & (skip >= 0)[:, None]
    order = np.argsort(own | (found < 0), axis=1, kind="stable")[:, :k]
    found, cosine = np.take_along_axis(found, order, 1), np.take_along_axis(cosine, order, 1)
    found = np.where(np.take_along_axis(own, order, 1), -1, found)
    sample = np.unique(np.linspace(0, len(vectors) - 1, _RECALL_QUERIES).astype(np.int64))
    exact, _ = nearest(embeddings, vectors[sample], k, rows=rows, skip=skip[sample])
    hits = sum(len(np.intersect1d(a, b[b >= 0])) for a, b in zip(found[sample], exact, strict=True))
    return found, cosine, hits / max(int((exact >= 0).sum()), 1)
