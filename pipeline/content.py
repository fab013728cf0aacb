"""What an image file's bytes are, whatever its name and time: content hashes, as the cache keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import HASH_BYTES, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.core.items import Reader


def hash_items(
    reader: Reader, locator: Callable[[int], Any], *, check: Callable[[], None] = lambda: None
) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    """Return a function that hashes images by row: (n,) int64 → (n, 16) uint8, zeros where one cannot be read.

    Parameters
    ----------
    reader : Reader
    locator : callable
        Row → what the reader takes.
    check : callable
        Called before each image; may raise to stop.
    """
    from pipeline.sources.base import in_threads

    def one(row: int) -> bytes:
        check()
        try:
            return content_hash(reader(locator(row)))
        except OSError:
            return bytes(HASH_BYTES)

    def many(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        hashes = np.zeros((len(rows), HASH_BYTES), dtype=np.uint8)
        for i, found in enumerate(in_threads(lambda i: one(int(rows[i])), range(len(rows)))):
            hashes[i] = np.frombuffer(found, np.uint8)
        return hashes

    return many


def hash_images_of(cache: Cache) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    """Return `hash_items` of the images a cache was made from, as they are now.

    Raises
    ------
    SourceError
        Where they were is not known, or nothing is there.
    """
    from pipeline.sources import image_reader

    return hash_items(image_reader(cache.source, cache.items.keys), lambda row: row)
