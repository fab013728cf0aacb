"""The images of a cache as a source, for verification, training, galleries and searches."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.core.items import content_hash
from pipeline.errors import CacheError, SourceError
from pipeline.sources.base import FileReader, Source
from pipeline.sources.opening import open_source
from pipeline.sources.table import PathReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.core.items import ItemTable, Reader


class HasImages(Protocol):
    """The part of an open cache that concerns its images.

    Attributes
    ----------
    path : path
        Of its file.
    source : mapping
        What `Source.describe` gave.
    items : ItemTable
    content_hash : (N, 16) uint8
    image_reader : callable or None
        Row → bytes; set by `image_bytes` when it first opens the source.
    """

    path: Path
    source: dict[str, str]
    image_reader: Callable[[int], bytes] | None

    @property
    def items(self) -> ItemTable:
        """The item list."""

    @property
    def content_hash(self) -> NDArray[np.uint8]:
        """The hash of each image's bytes."""

    def part_of(self, row: int) -> tuple[HasImages, int]:
        """Return the cache that holds a row, and the row's number there."""


_opening = threading.RLock()
MOST_FOLDERS_UP = 4
FIRST_IMAGES = 8


class ReopenedSource(Source):
    """The images that a cache was made from, as they are now; item i is row i.

    Parameters
    ----------
    described : mapping
        What `Source.describe` gave.
    items : ItemTable
        Of the cache.
    near : path, optional
        The folder of the cache, for images that were moved with it; see `where_now`.

    Raises
    ------
    SourceError
        The source cannot be opened any more.
    """

    kind = "cache"

    def __init__(
        self, described: Mapping[str, str], items: ItemTable, near: str | os.PathLike[str] | None = None
    ) -> None:
        is_table = described["kind"] == "table"
        described = where_now(described, items, near)
        self.location = described["location"]
        self.items = items
        self._reader, self._locator = _reader_and_locator(described, items.keys, is_table=is_table)

    def locator(self, i: int) -> Any:
        """Return what the reader needs to find row ``i``.

        Raises
        ------
        SourceError
            The archive no longer has this image.
        """
        try:
            return self._locator(i)
        except FileNotFoundError as error:
            raise SourceError(f"{error}: bring the cache up to date with pipeline extract --check-content") from None

    def reader(self) -> Reader:
        """Return the reader of the images."""
        return self._reader


def reopen_source(
    described: Mapping[str, str], items: ItemTable, near: str | os.PathLike[str] | None = None
) -> ReopenedSource:
    """Return the images that a cache was made from; see `ReopenedSource`."""
    return ReopenedSource(described, items, near)


def where_now(described: Mapping[str, str], items: ItemTable, near: str | os.PathLike[str] | None) -> Mapping[str, str]:
    """Return the description of a source, with its place as it is now where it was moved together with its cache.

    Only a place that is gone is looked for: at the end of its path, below the cache's folder and the folders above it,
    where the first images have the sizes of the item list. That they are the same images is the caller's to check.
    """
    name = "root" if "root" in described else "address"
    place = described.get(name, "")
    if near is None or not os.path.isabs(place) or os.path.exists(place):
        return described
    parts = [part for part in place.split(os.sep) if part]
    folder = os.path.abspath(near)
    for _ in range(MOST_FOLDERS_UP):
        for first in range(len(parts)):
            candidate = os.path.join(folder, *parts[first:])
            if _fits(candidate, items) if name == "root" else os.path.isfile(candidate):
                return {**described, name: candidate, "location": candidate}
        folder = os.path.dirname(folder)
    return described


def _fits(root: str, items: ItemTable) -> bool:
    """Return whether a folder holds the first images of an item list, by their sizes."""
    try:
        return len(items) > 0 and all(
            os.stat(os.path.join(os.fsencode(root), bytes(key))).st_size == size
            for key, size in zip(items.keys[:FIRST_IMAGES], items.sizes[:FIRST_IMAGES].tolist(), strict=True)
        )
    except (OSError, ValueError):
        return False


def image_bytes(cache: HasImages, row: int) -> bytes | None:
    """Return the bytes of a row's image as it is now, or None where the image or its source is gone."""
    part, row = cache.part_of(row)
    with _opening:  # concurrent threads must not each open the source
        if part.image_reader is None:
            part.image_reader = _image_reader(part)
        read = part.image_reader
    try:
        return read(row)
    except (OSError, SourceError):
        return None


def _image_reader(cache: HasImages) -> Callable[[int], bytes]:
    try:
        source = reopen_source(cache.source, cache.items, os.path.dirname(cache.path))
    except (SourceError, CacheError) as error:  # also of a cache that does not say where its images were
        gone = SourceError(str(error))

        def raise_gone(row: int) -> bytes:  # so that a missing source is tried only once
            raise gone

        return raise_gone
    reader = source.reader()
    if source.location == cache.source["location"]:
        return lambda row: reader(source.locator(row))

    def read_moved(row: int) -> bytes:
        data = reader(source.locator(row))
        if content_hash(data) != bytes(cache.content_hash[row]):
            raise SourceError(f"another image stands at {os.fsdecode(bytes(cache.items.keys[row]))}")
        return data

    return read_moved


def _reader_and_locator(
    described: Mapping[str, str], keys: NDArray[np.bytes_], *, is_table: bool
) -> tuple[Reader, Callable[[int], Any]]:
    """Return the reader of a cache's images, and from row to locator.

    The locator raises `FileNotFoundError` where the archive holds no such image any more.
    """
    if "root" in described:
        root = os.fsencode(described["root"])
        reader = PathReader(root) if is_table else FileReader(root)
        return reader, lambda row: bytes(keys[row])
    if "address" not in described:
        raise SourceError(
            f"expected a source that can be opened again, found {described['location']}: extract it again"
        )
    source = open_source(described["address"])
    order = np.argsort(source.items.keys, kind="stable")
    ordered = source.items.keys[order]

    def locator(row: int) -> Any:
        place = int(np.searchsorted(ordered, keys[row]))
        if place == len(ordered) or ordered[place] != keys[row]:
            raise FileNotFoundError(f"no {os.fsdecode(bytes(keys[row]))} in {source.location}")
        return source.locator(int(order[place]))

    return source.reader(), locator
