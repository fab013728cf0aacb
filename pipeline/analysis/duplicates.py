"""The images of a cache that show the same picture: copied, resized, recompressed, cropped.

Axes: N rows, D features, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.pixels import pixel_similarity, small_copies
from pipeline.analysis.projection import principal_components
from pipeline.analysis.rows import label_texts, usable_rows
from pipeline.core.columns import as_names
from pipeline.core.spec import PENULTIMATE
from pipeline.core.vectors import unit_rows
from pipeline.errors import AnalysisError, near_names
from pipeline.evaluation.near_duplicates import exact_pairs, groups_of, near_pairs
from pipeline.evaluation.splits import named_split
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache

    Ints = NDArray[np.int64]

PIXEL_THRESHOLD = 0.992
COSINE_THRESHOLD = 0.98
_CANDIDATE_COSINE = 0.45
_WHITENED = 256
_BLOCK = 4096
_ALL_PAIRS_ROWS = 1500
"""Up to this number of rows every pair is compared: too few rows to whiten well, and few enough pairs."""
_ROWS_PER_COMPONENT = 5


@dataclass(frozen=True)
class Duplicates:
    """The duplicates that were found.

    Attributes
    ----------
    table : pandas.DataFrame
        ``group`` (numbered from 1), ``key``, ``label``, ``similarity`` (to the most similar image of the same
        group) and ``how`` (``exact`` or ``near``); images without a duplicate are left out.
    rows : (M,) int64
        The cache row of each line.
    pairs : (P, 2) int64
        Rows of the cache of every near pair.
    exact, near : int
        Pairs of either kind; of images with the same bytes each is paired with the first.
    by_pixels : bool
        Whether near pairs were compared by pixels; otherwise by the cosine of their embeddings.
    unread : int
        Images that could not be compared by pixels: missing, or no longer readable.
    across : str or None
        The column in which the images of every group differ, where only these groups were kept.
    leak : str or None
        How many test and validation images are among the training images too, where that column is the split.
    """

    table: Any
    rows: Ints
    pairs: Ints
    exact: int
    near: int
    by_pixels: bool
    unread: int
    across: str | None = None
    leak: str | None = None


_BY_EMBEDDINGS = (
    "the source images cannot be read: near duplicates are judged by embeddings alone, which also pair look-alikes"
)


def find_duplicates(
    cache: Cache,
    *,
    threshold: float | None = None,
    layer: str = PENULTIMATE,
    use_pixels: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Duplicates:
    """Find images that show the same picture, and group them.

    Parameters
    ----------
    cache : Cache
        An open cache.
    threshold : float, optional
        Similarity from which two images are the same picture: the correlation of their pixels, by default 0.992, or,
        without pixels, the cosine of their embeddings, by default 0.98.
    layer : str
        Which layer.
    use_pixels : bool
        Whether near pairs are compared by the source images, where these exist.
    say : callable
        Called with each line for the user.

    Raises
    ------
    AnalysisError
        No row is done.

    Notes
    -----
    Equal content hashes are exact duplicates. Pairs whose whitened embeddings (the 256 largest principal components,
    each scaled to variance 1) have a cosine of 0.45 may be near duplicates; `pipeline.analysis.pixels.pixel_similarity`
    then aligns small copies of the two. docs/analysis.md has the figures, also for embeddings alone.
    """
    embeddings = cache.layer(layer)
    rows = usable_rows(cache, embeddings)
    first, duplicate = exact_pairs(np.asarray(cache.content_hash)[rows])
    # Byte-identical images share one embedding: compare one representative of each.
    representatives = np.setdiff1d(np.arange(len(rows)), duplicate)
    by_pixels, unread = False, 0
    if use_pixels:
        copies, there = small_copies(cache, rows[representatives])
        by_pixels = bool(there.any())
        if not by_pixels:
            say(_BY_EMBEDDINGS)
    if by_pixels:
        unread = int((~there).sum())
        seen = representatives[there]
        bar = PIXEL_THRESHOLD if threshold is None else threshold
        i, j, similarity = _near_by_pixels(embeddings, rows[seen], copies[there], bar)
        i, j = seen[i], seen[j]
    else:
        bar = COSINE_THRESHOLD if threshold is None else threshold
        at, other, similarity = near_pairs(embeddings, bar, rows=rows[representatives])
        i, j = np.searchsorted(rows, at), np.searchsorted(rows, other)
    table, lines = _grouped(cache, rows, (first, duplicate), (i, j, similarity))
    return Duplicates(table, lines, rows[np.stack([i, j], axis=1)], len(first), len(i), by_pixels, unread)


def values_of(cache: Cache, column: str) -> NDArray[np.object_]:
    """Return a column of the cache as texts (N,), a split in its plain names; ``""`` where there is none.

    Raises
    ------
    AnalysisError
        The cache has no such column.
    """
    if column == "label":
        return label_texts(cache, np.arange(len(cache)))
    if column not in cache.columns:
        raise AnalysisError(f"{cache.path} has no column {column!r}: {near_names(column, ['label', *cache.columns])}")
    values = np.asarray(cache.columns[column])
    return np.asarray(named_split(values) if column == "split" else as_names(values), dtype=object)


def duplicates_across(found: Duplicates, cache: Cache, column: str) -> Duplicates:
    """Keep the groups whose images differ in a column, such as the split.

    Parameters
    ----------
    found : Duplicates
    cache : Cache
        The cache that was searched.
    column : str
        A column of the cache, or ``"label"``. Images without a value do not count as different.

    Raises
    ------
    AnalysisError
        The cache has no such column.
    """
    values = values_of(cache, column)
    its, group = values[found.rows], found.table["group"].to_numpy()
    differing = {
        group_and_value for group_and_value in zip(group.tolist(), its.tolist(), strict=True) if group_and_value[1]
    }
    numbers, count = np.unique([number for number, _ in differing], return_counts=True)
    kept = np.isin(group, numbers[count > 1])
    table = found.table[kept].reset_index(drop=True)
    table["group"] = np.unique(table["group"], return_inverse=True)[1].ravel() + 1
    if column != "label":
        table[column if column not in table else f"{column} (column)"] = its[kept]
    pairs = found.pairs[np.isin(found.pairs[:, 0], found.rows[kept])]
    same = table["how"] == "exact"
    exact = int(same.sum()) - len(set(table["group"][same]))
    leak = _leak(values, its, group) if column == "split" else None
    return replace(
        found, table=table, rows=found.rows[kept], pairs=pairs, exact=exact, near=len(pairs), across=column, leak=leak
    )


def _leak(split: NDArray[np.object_], its: NDArray[np.object_], group: Ints) -> str:
    """Say how many held-out images are training images too, given the split and the group of every duplicate."""
    trained_on = np.isin(group, group[its == "train"])
    parts = []
    for name in ("test", "val"):
        count = int((split == name).sum())
        if count:
            shared = int((trained_on & (its == name)).sum())
            parts.append(
                f"{shared} of {count} {name} images ({shared / count:.2%}) show the picture of a training image"
            )
    return ", ".join(parts) or "no image is of the test or val split"


def _near_by_pixels(
    embeddings: NDArray[Any], rows: Ints, copies: NDArray[np.uint8], threshold: float
) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Return the pairs of images with similar pixels, as positions in ``rows``, and their similarity."""
    i, j = _candidates(embeddings, rows)
    similarity = pixel_similarity(copies, i, j, threshold)
    near = similarity >= threshold
    return i[near], j[near], similarity[near]


def _candidates(embeddings: NDArray[Any], rows: Ints) -> tuple[Ints, Ints]:
    """Return the candidate pairs, as positions in ``rows``."""
    if len(rows) <= _ALL_PAIRS_ROWS:
        i, j = np.triu_indices(len(rows), 1)
        return i.astype(np.int64), j.astype(np.int64)
    whitened = principal_components(embeddings, rows, min(_WHITENED, len(rows) // _ROWS_PER_COMPONENT))
    spread = whitened.std(axis=0)
    whitened /= np.maximum(spread, 1e-4 * spread.max() + 1e-12)
    unit_rows(whitened)
    # Whitened rows spread evenly over all directions: no bound would save products, so all are computed.
    found = []
    for a in range(0, len(whitened), _BLOCK):
        for b in range(a, len(whitened), _BLOCK):
            product = whitened[a : a + _BLOCK] @ whitened[b : b + _BLOCK].T
            i, j = np.divmod(np.flatnonzero(product >= _CANDIDATE_COSINE), product.shape[1])
            found.append(np.stack([i + a, j + b])[:, i + a < j + b])
    i, j = np.concatenate(found, axis=1)
    return i, j


def _grouped(
    cache: Cache, rows: Ints, exact: tuple[Ints, Ints], near: tuple[Ints, Ints, NDArray[np.float32]]
) -> tuple[Any, Ints]:
    """Return the table, group by group, and the cache row of each line."""
    i, j, similarity = near
    group = groups_of(len(rows), np.concatenate([exact[0], i]), np.concatenate([exact[1], j]))
    best = np.zeros(len(rows), np.float32)
    np.maximum.at(best, np.concatenate([i, j]), np.concatenate([similarity, similarity]))
    same = np.zeros(len(rows), np.bool_)
    same[np.concatenate(exact)] = True
    best[same] = 1
    members = np.flatnonzero(np.bincount(group, minlength=len(rows))[group] > 1)
    members = members[np.lexsort((members, group[members]))]
    _, number = np.unique(group[members], return_inverse=True)
    lines = rows[members]
    table = {
        "group": number.ravel() + 1,
        "key": cache.keys[lines],
        "label": label_texts(cache, lines),
        "similarity": best[members].round(6),
        "how": np.where(same[members], "exact", "near"),
    }
    return frame(table), lines
