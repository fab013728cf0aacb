"""Image files that match a glob, and folders behind an fsspec URL."""

from __future__ import annotations

import errno
import os
import posixpath
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.decoding.formats import SNIFF_BYTES, is_image, named_like_an_image
from pipeline.errors import SourceError
from pipeline.sources.base import (
    MAX_FILE_BYTES,
    Source,
    in_threads,
    key_array,
    labels_from_folders,
    public_names,
)
from pipeline.sources.store import File, LocalStore
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.sources.store import Store


class FilesSource(Source):
    """Image files below a folder; a key is the path relative to it, and the first level gives the class.

    A file whose name has the suffix of an image is an item: where it is none, its row says what it is. On the local
    machine the content of other files decides. Over a network this would cost a request for each: they are left out.

    Parameters
    ----------
    location : str
        What the user named.
    store : Store
    files : sequence of File
        The candidates.
    root : str
        The folder that keys are relative to: what a glob names before its first wildcard.

    Raises
    ------
    SourceError
        There is no image among them.
    """

    kind = "files"

    def __init__(self, location: str, store: Store, files: Sequence[File], root: str) -> None:
        self.location = location
        self._store, self._root = store, root
        shown = public_names([file.path for file in files])
        found = sorted(
            ((os.fsencode(relative(name, public(root))), file) for name, file in zip(shown, files, strict=True)),
            key=itemgetter(0),
        )
        wanted = list(in_threads(lambda pair: _is_image(store, pair[1]), found))
        self.skipped = [
            Skipped(os.fsdecode(key), "not an image") for (key, _), yes in zip(found, wanted, strict=True) if not yes
        ]
        images = [pair for pair, yes in zip(found, wanted, strict=True) if yes]
        if not images:
            some = ", ".join(skip.key for skip in self.skipped[:3]) or "nothing"
            raise SourceError(
                f"expected images at {public(location)}, found {some}: name the folder that holds them, or correct the "
                "pattern"
            )
        keys = [key for key, _ in images]
        paths = [os.fsencode(relative(file.path, root)) for _, file in images]
        labels, names, columns = labels_from_folders(keys)
        self.items = ItemTable(
            keys=key_array(keys),
            labels=labels,
            label_names=names,
            sizes=np.array([file.size for _, file in images], dtype=np.int64),
            mtimes_ns=np.array([file.stamp for _, file in images], dtype=np.int64),
            columns=columns,
        )
        self._versions = np.array([file.version.encode() for _, file in images], dtype=np.bytes_)
        self._paths = self.items.keys if paths == keys else np.array(paths, dtype=np.bytes_)

    def locator(self, i: int) -> tuple[bytes, int, int, bytes]:
        """Return item ``i``'s path relative to the root, including credentials, and its size, stamp and version."""
        return bytes(self._paths[i]), int(self.items.sizes[i]), int(self.items.mtimes_ns[i]), bytes(self._versions[i])

    def reader(self) -> Reader:
        """Return a reader of files."""
        return FilesReader(self._store, self._root)


@dataclass(frozen=True, slots=True)
class FilesReader:
    """Reads files below a folder of a store.

    Parameters
    ----------
    store : Store
    root : str
    """

    store: Store
    root: str

    def __call__(self, locator: tuple[bytes, int, int, bytes]) -> bytes:
        """Return the file's bytes; raises `OSError`."""
        path, size, stamp, version = locator
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"file of {size} bytes, above {MAX_FILE_BYTES}")
        return self.store.read_all(File(posixpath.join(self.root, os.fsdecode(path)), size, stamp, version.decode()))


def relative(path: str, root: str) -> str:
    """Return a path relative to ``root``.

    Examples
    --------
    >>> relative("photos/cat/1.jpg", "photos"), relative("1.jpg", "")
    ('cat/1.jpg', '1.jpg')
    """
    return path[len(root) :].lstrip("/") if root and path.startswith(root) else path


def _is_image(store: Store, file: File) -> bool:
    if named_like_an_image(os.fsencode(public(file.path))):
        return True
    if not isinstance(store, LocalStore):
        return False
    try:
        return is_image(store.head(file, SNIFF_BYTES))
    except OSError:
        return True  # its kind is unknown: its row will give the reason why it cannot be read
