"""The cache: one HDF5 file of embeddings. The only package that uses HDF5; it never imports torch."""

from __future__ import annotations

from pipeline.cache.concat import ConcatCache, open_cache
from pipeline.cache.lock import write_lock
from pipeline.cache.reader import Cache, is_cache
from pipeline.cache.writer import CacheWriter

__all__ = [
    "Cache",
    "CacheWriter",
    "ConcatCache",
    "is_cache",
    "open_cache",
    "write_lock",
]
