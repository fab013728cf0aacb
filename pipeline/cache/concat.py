"""Several caches read as one, without merging them: every file stays where it is and is mapped, not copied."""

from __future__ import annotations

import glob
import itertools
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import format as fmt
from pipeline.cache.format import Extent
from pipeline.cache.reader import Cache
from pipeline.cache.shard import in_order
from pipeline.core.items import ItemTable
from pipeline.core.spec import check_same_numbers
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

MAGIC = frozenset("*?[")


def open_cache(path: str | bytes | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Cache:
    """Open a cache for reading, or several as one.

    Parameters
    ----------
    path : path, or sequence of paths
        A file, a pattern such as ``"cache-*.h5"``, or several files.

    Returns
    -------
    Cache
        A `ConcatCache` where there are several files.

    Raises
    ------
    CacheError
        One of them is missing or is not a cache, no file fits the pattern, or they do not belong together.
    """
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, (str, os.PathLike)):
        several = [Path(one) for one in path]
        if not several:
            raise CacheError("expected a cache, found an empty list: name at least one file")
        return Cache(several[0]) if len(several) == 1 else ConcatCache([Cache(one) for one in several])
    if MAGIC.isdisjoint(os.fspath(path)) or Path(path).exists():
        return Cache(path)
    # Path.glob takes no absolute pattern.
    found = sorted(glob.glob(os.fspath(path), recursive=True))  # noqa: PTH207
    if not found:
        raise CacheError(f"expected caches at {path}, found nothing that fits: check the pattern")
    return Cache(found[0]) if len(found) == 1 else ConcatCache([Cache(one) for one in found], name=os.fspath(path))


class ConcatCache(Cache):
    """Caches of one fingerprint, concatenated: shards of a job array in the order of the whole list.

    Embeddings and layers are `ConcatenatedRows`, which read rows from the files on request. Small arrays (status,
    keys, labels) are concatenated at their first use.

    Parameters
    ----------
    parts : sequence of Cache
        At least one. Shards may be incomplete here; other caches must share no key.
    name : str, optional
        Their name in messages.

    Attributes
    ----------
    parts : tuple of Cache
        The files.
    starts : (len(parts) + 1,) int64
        First row of every part, and the number of rows.

    Raises
    ------
    FingerprintError
        They hold different numbers; the message names the fields.
    CacheError
        They are shards of different lists, or hold the same image twice.
    """

    def __init__(self, parts: Sequence[Cache], name: str | None = None) -> None:
        shards = in_order(parts, complete=False)
        self.parts = tuple(parts if shards is None else shards)
        first = self.parts[0]
        check_all_same_numbers(self.parts)
        self.path = Path(name or _listed([str(part.path) for part in self.parts]))
        self.fingerprint, self.spec, self.versions = first.fingerprint, first.spec, first.versions
        self.self_check, self.source, self.shard = first.self_check, common_source(self.parts), None
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self._extents = {
            dataset: Extent(-1, (int(self.starts[-1]), *extent.shape[1:]), extent.dtype)
            for dataset, extent in first._extents.items()
            if fmt.is_mutable(dataset)
        }
        if shards is None:
            self._refuse_doubles()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the parts, each of which pickles itself: the arrays of this object are concatenated again."""
        return ConcatCache, (list(self.parts), str(self.path))

    @property
    def nbytes(self) -> int:
        """Size of the files."""
        return sum(part.nbytes for part in self.parts)

    @cached_property
    def items(self) -> ItemTable:
        """The item lists one after the other, with label names and columns united."""
        return ItemTable.concat([part.items for part in self.parts])

    def column(self, name: str, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[Any]:
        """Return a further column, or some rows of it."""
        return self.items.columns[name][rows]

    def reasons(self) -> dict[int, str]:
        """Return why rows failed, by row; see `Cache.reasons`."""
        return {
            int(start) + row: reason
            for start, part in zip(self.starts, self.parts, strict=False)
            for row, reason in part.reasons().items()
        }

    def part_of(self, row: int) -> tuple[Cache, int]:
        """Return the cache that holds a row's image, and the row's number there: itself where all have one source."""
        if all(part.source == self.source for part in self.parts):
            return self, row
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part], row - int(self.starts[part])

    def _map(self, name: str) -> Any:
        maps = [part._map(name) for part in self.parts]
        large = name == fmt.EMBEDDINGS or name.startswith(fmt.LAYERS + "/")
        return ConcatenatedRows(maps) if large else np.concatenate(maps)

    def _refuse_doubles(self) -> None:
        keys = np.sort(self.items.keys)
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise CacheError(
                f"{os.fsdecode(bytes(twice[0]))!r} is in two of the caches {self.path} ({len(np.unique(twice))} such "
                "images): put them together with pipeline merge, which takes one row of each image"
            )


class ConcatenatedRows:
    """Concatenated (N, D) arrays, read when indexed, with the part of the ndarray interface that reading needs.

    Rows are taken by a number, a slice, an array of numbers or a mask, further axes as NumPy does, all of it
    with `np.asarray`; what comes back are ordinary arrays.

    Parameters
    ----------
    parts : sequence of (n, D) array
        At least one; of one type and width.

    Examples
    --------
    >>> rows = ConcatenatedRows([np.array([[0, 1], [2, 3]]), np.array([[4, 5]])])
    >>> rows.shape, rows[[2, 0], 1].tolist(), np.asarray(rows[1:]).tolist()
    ((3, 2), [5, 1], [[2, 3], [4, 5]])
    """

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype: np.dtype[Any] = parts[0].dtype
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return itertools.chain.from_iterable(self._parts)

    def __repr__(self) -> str:
        return f"<ConcatenatedRows of {len(self._parts)} arrays: {self.shape} {self.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows of several files cannot become one array without a copy")
        whole = np.concatenate(self._parts)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        rows, others = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(rows, slice):
            found = self._slice(rows)
            return found[:, *others] if others else found
        if rows is None or rows is Ellipsis:
            return np.asarray(self)[index]
        wanted = np.asarray(rows)
        if wanted.dtype == np.bool_:
            if wanted.shape != self.shape[:1]:
                raise IndexError(f"expected a mask of {len(self)} rows, found one of shape {wanted.shape}")
            wanted = np.flatnonzero(wanted)
        wanted = wanted if wanted.size else wanted.astype(np.int64)
        found = self._take(wanted.reshape(-1))
        return found[np.arange(wanted.size).reshape(wanted.shape), *others]

    def _slice(self, rows: slice) -> NDArray[Any]:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self._take(np.arange(start, stop, step))
        pieces = [
            part[max(start - first, 0) : stop - first]
            for first, part in zip(self._starts.tolist(), self._parts, strict=False)
            if first < stop and first + len(part) > start
        ]
        if not pieces:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _take(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.dtype.kind not in "iu":
            raise IndexError(f"expected row numbers, found {rows.dtype}")
        rows = rows.astype(np.int64)
        if len(rows) and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        rows = np.where(rows < 0, rows + len(self), rows)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number in np.unique(owner).tolist():
            here = owner == number
            found[here] = self._parts[number][rows[here] - self._starts[number]]
        return found


def check_all_same_numbers(caches: Sequence[Cache]) -> None:
    """Refuse caches of different fingerprints.

    Raises
    ------
    FingerprintError
        Names the fields that differ.
    """
    first = caches[0]
    for cache in caches[1:]:
        check_same_numbers(
            cache.spec, first.spec, where=str(cache.path), hint=f"extract both as {first.path} was, then try again"
        )


def common_source(caches: Sequence[Cache]) -> dict[str, str]:
    """Return where the images of several caches are: ``root`` only where it is the same for all."""
    first = caches[0].source
    if all(cache.source == first for cache in caches):
        return first
    roots = {cache.source.get("root") for cache in caches}
    # An attribute has room for some names only.
    joined = {"kind": "merge", "location": _listed([str(cache.path) for cache in caches])}
    root = roots.pop()
    return joined if roots or root is None else {**joined, "root": root}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} caches)" if len(names) > 3 else "")
