"""Small and large pictures of the images, made when they are asked for; small ones are kept in a file beside the cache.

The file is an SQLite database of JPEGs by content hash: an image that is added, moved or renamed needs no new one, and
the file may be removed at any time.
"""

from __future__ import annotations

import contextlib
import io
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

SUFFIX = ".thumbnails.sqlite"
"""Added to the name of the cache."""
SIDE = 128
LARGE_SIDE = 1600
_QUALITY, _LARGE_QUALITY = 80, 90
_WAIT_SECONDS = 5.0
_TABLE = "CREATE TABLE IF NOT EXISTS thumbnail (hash BLOB PRIMARY KEY, jpeg BLOB NOT NULL) WITHOUT ROWID"


class Thumbnails:
    """Pictures of the rows of a cache; safe to use from several threads.

    Parameters
    ----------
    cache : Cache
        An open cache.
    path : Path
        The file of small pictures. Where it cannot be written, nothing is kept.
    """

    def __init__(self, cache: Any, path: Path) -> None:
        self.cache = cache
        self._lock = threading.Lock()
        self._file = _opened(path)

    def small(self, row: int) -> bytes | None:
        """Return a JPEG of 128 pixels at most, or None where the image is gone or no longer readable."""
        key = bytes(self.cache.content_hash[row])
        kept = self._kept(key)
        if kept is not None:
            return kept
        made = self._made(row, SIDE, _QUALITY)
        if made is not None:
            self._keep(key, made)
        return made

    def large(self, row: int) -> bytes | None:
        """Return a JPEG of 1600 pixels at most, or None where the image is gone or no longer readable.

        The bytes of the image itself are not sent: a browser cannot show every format, and would run what an SVG holds.
        """
        return self._made(row, LARGE_SIDE, _LARGE_QUALITY)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _made(self, row: int, side: int, quality: int) -> bytes | None:
        data = image_bytes(self.cache, row)
        if data is None:
            return None
        try:
            image: Image.Image = decode_image(data, DecodePolicy(), thumbnail=side)
        except DecodeError:
            return None
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality)
        return buffer.getvalue()

    def _kept(self, key: bytes) -> bytes | None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._file is not None:
                found = self._file.execute("SELECT jpeg FROM thumbnail WHERE hash = ?", (key,)).fetchone()
                return None if found is None else bytes(found[0])
        return None

    def _keep(self, key: bytes, jpeg: bytes) -> None:
        # A full disk, or another server that writes: the picture is made again next time.
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._file is not None:
                self._file.execute("INSERT OR IGNORE INTO thumbnail VALUES (?, ?)", (key, jpeg))


def _opened(path: Path) -> sqlite3.Connection | None:
    """Return the database, made anew where it is damaged; None where it cannot be written."""
    for attempt in range(2):
        try:
            # Each picture is a transaction of its own. Unsynced, because a lost file costs nothing but time.
            file = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            file.execute("PRAGMA synchronous = OFF")
            file.execute("PRAGMA journal_mode = MEMORY")
            file.execute(_TABLE)
            file.execute("SELECT jpeg FROM thumbnail LIMIT 1")
            return file
        except sqlite3.OperationalError:  # it cannot be written, or another process is writing
            return None
        except sqlite3.DatabaseError:
            if attempt:
                return None
            with contextlib.suppress(OSError):
                path.unlink()
    return None
