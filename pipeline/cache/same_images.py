"""Caches of the same images from several networks: opened together, their rows matched by key and content.

Axes: N rows, D features.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.concat import open_cache
from pipeline.core.items import Status
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.cache.reader import Cache


class AlignedRows:
    """Rows of an array in the order of another cache; they are read when they are asked for.

    Parameters
    ----------
    array : array of shape (N, D)
        Such as the map of a file.
    order : ndarray of shape (N,), int64
        The row of the array that each row of the other cache belongs to.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
    """

    def __init__(self, array: Any, order: NDArray[np.int64]) -> None:
        self._array, self._order = array, order
        self.shape, self.dtype = (len(order), array.shape[1]), array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self._array[self._order[rows]])


def open_networks(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Cache]:
    """Open a cache, or several: those of one network as one cache, those of several networks side by side.

    Parameters
    ----------
    paths : path, or sequence of paths
        Each a file or a pattern, as `pipeline.cache.open_cache` takes it.

    Returns
    -------
    list of Cache
        One for each network; where there are several, all hold the images of the first.

    Raises
    ------
    CacheError
        One is missing or no cache, or some but not all are of one network.
    """
    if isinstance(paths, (str, os.PathLike)):
        return [open_cache(paths)]
    caches = [open_cache(path) for path in paths]
    prints = [cache.fingerprint for cache in caches]
    if len(set(prints)) <= 1:
        return [open_cache(paths)]
    for number, found in enumerate(prints):
        if found in prints[:number]:
            raise CacheError(
                f"expected caches of several networks, found the same numbers in {caches[prints.index(found)].path} "
                f"and {caches[number].path}: leave one out, or name the parts of one network by a pattern"
            )
    return caches


def rows_of_same_images(first: Cache, other: Cache) -> NDArray[np.int64]:
    """Return the row of ``other`` that holds the image of each row of ``first`` (N,), by key.

    Raises
    ------
    CacheError
        They hold other keys, or other bytes under the same key.
    """
    keys, theirs = np.asarray(first.items.keys), np.asarray(other.items.keys)
    sorter = np.argsort(theirs, kind="stable")
    at = np.minimum(np.searchsorted(theirs, keys, sorter=sorter), max(len(theirs) - 1, 0))
    order = sorter[at] if len(theirs) else np.zeros(len(keys), dtype=np.int64)
    known = theirs[order] == keys if len(theirs) else np.zeros(len(keys), dtype=np.bool_)
    if not known.all() or len(keys) != len(theirs):
        used = np.zeros(len(theirs), dtype=np.bool_)
        used[order[known]] = True
        alone = [*keys[~known][:1], *theirs[~used][:1]]
        count = int((~known).sum() + (~used).sum())
        raise CacheError(
            f"{first.path} and {other.path}: expected the same images, found {count} keys in one of them "
            f"alone, such as {os.fsdecode(bytes(alone[0]))!r}: extract both from the same source"
        )
    mine, its = np.asarray(first.content_hash), np.asarray(other.content_hash)[order]
    differ = np.flatnonzero((mine != its).any(axis=1) & mine.any(axis=1) & its.any(axis=1))
    if len(differ):
        raise CacheError(
            f"{first.path} and {other.path}: expected the same images, found other bytes under {len(differ)} of "
            f"{len(keys)} keys, such as {os.fsdecode(bytes(keys[differ[0]]))!r}: extract both from the same files"
        )
    return order.astype(np.int64)


def common_status(first: Cache, others: Sequence[tuple[Cache, NDArray[np.int64]]]) -> NDArray[np.uint8]:
    """Return the status of each row of ``first`` (N,): done where it is so in all caches, else that of another one.

    Parameters
    ----------
    first : Cache
    others : sequence of (Cache, ndarray of shape (N,))
        The other caches with their rows, from `rows_of_same_images`.
    """
    status = np.array(first.status)
    for other, order in others:
        status = np.where(status == Status.DONE, np.asarray(other.status)[order], status)
    return status
