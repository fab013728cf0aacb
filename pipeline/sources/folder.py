"""A folder of images: recursive, in a stable order, sub-folders are classes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.files import file_identity
from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.decoding.formats import SNIFF_BYTES, is_image, named_like_an_image
from pipeline.errors import SourceError
from pipeline.sources.base import FileReader, Source, in_threads, key_array, labels_from_folders, unchanged_since

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.sources.base import Known

UNKNOWN = (-1, -1)
_UNREAD = "folder cannot be read"


class FolderSource(Source):
    """Every image below a folder.

    The first folder level gives the class. Where the first level holds nothing but ``train``, ``val`` and ``test``
    (two of them at least), it gives the split and the second level the class. What is named like an image is an item,
    also where it cannot be opened or is none: it fails later, with its reason, in a row of its own. The content of
    other files decides whether they are images. Hidden files and folders, other files, and folders that cannot be read
    are listed in ``skipped``.

    Parameters
    ----------
    location : str
        The folder.
    known : Known, optional
        Known files of the same size and time are not opened again: a resumed run opens only new files.

    Raises
    ------
    SourceError
        The folder does not exist, or has no image.
    """

    kind = "folder"

    def __init__(self, location: str, known: Known | None = None) -> None:
        self.location = location
        root = os.fsencode(location)
        self._root = root
        found = sorted(_walk(root))
        skipped = [Skipped(os.fsdecode(key), reason, reason.startswith(_UNREAD)) for key, _, reason in found if reason]
        files = [(key, about) for key, about, reason in found if not reason]
        del found
        wanted = _images_among(root, files, known)
        skipped += [
            Skipped(os.fsdecode(key), "not an image") for (key, _), yes in zip(files, wanted, strict=True) if not yes
        ]
        images = [file for file, yes in zip(files, wanted, strict=True) if yes]
        self.skipped = skipped
        if not images:
            raise SourceError(_nothing_found(location, skipped))
        self.items = _table(images)

    def locator(self, i: int) -> bytes:
        """Return the path of item ``i`` relative to the folder."""
        return bytes(self.items.keys[i])

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache."""
        return {**super().describe(), "root": os.fsdecode(os.path.abspath(self._root))}

    def reader(self) -> Reader:
        """Return a reader of files below the folder."""
        return FileReader(os.path.abspath(self._root))


def _walk(root: bytes) -> Iterator[tuple[bytes, tuple[int, int], str]]:
    """Yield (key, (size, mtime in ns), reason to skip or "") of all below ``root``; links are followed, loops not."""
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            here = os.stat(os.path.join(root, folder))
            entries = list(os.scandir(os.path.join(root, folder)))
        except OSError as error:
            if not folder:
                raise SourceError(f"cannot read the folder {os.fsdecode(root)}: {error.strerror}") from None
            yield folder, UNKNOWN, f"{_UNREAD}: {error.strerror}"
            continue
        identity = file_identity(here)
        if identity in above:
            yield folder, UNKNOWN, "link to a folder above it"
            continue
        for entry in entries:
            key = os.path.join(folder, entry.name)
            if entry.name.startswith(b"."):
                yield key, UNKNOWN, "hidden"
            else:
                try:
                    if entry.is_dir():
                        pending.append((key, above | {identity}))
                        continue
                    info = entry.stat()
                except OSError as error:
                    about, reason = UNKNOWN, f"cannot be looked at: {error.strerror}"
                else:
                    about = (info.st_size, info.st_mtime_ns)
                    reason = "" if stat.S_ISREG(info.st_mode) else "not a regular file"
                yield key, about, "" if named_like_an_image(key) else reason


def _images_among(root: bytes, files: list[tuple[bytes, tuple[int, int]]], known: Known | None) -> list[bool]:
    wanted = np.zeros(len(files), dtype=np.bool_)
    if known is not None and files:
        about = np.array([about for _, about in files], dtype=np.int64)
        wanted = unchanged_since(known, (np.array([key for key, _ in files]), about[:, 0], about[:, 1]))
    wanted |= np.array([named_like_an_image(key) for key, _ in files], dtype=np.bool_)
    unseen = np.flatnonzero(~wanted).tolist()
    wanted[unseen] = list(in_threads(lambda i: _looks_like_image(root, files[i][0]), unseen))
    return wanted.tolist()


def _looks_like_image(root: bytes, key: bytes) -> bool:
    try:
        with open(os.path.join(root, key), "rb", buffering=0) as file:
            return is_image(file.read(SNIFF_BYTES))
    except OSError:
        return True  # its kind is unknown: its row will give the reason why it cannot be read


def _table(images: list[tuple[bytes, tuple[int, int]]]) -> ItemTable:
    keys = [key for key, _ in images]
    labels, names, columns = labels_from_folders(keys)
    return ItemTable(
        keys=key_array(keys),
        labels=labels,
        label_names=names,
        sizes=np.array([size for _, (size, _) in images], dtype=np.int64),
        mtimes_ns=np.array([mtime for _, (_, mtime) in images], dtype=np.int64),
        columns=columns,
    )


def _nothing_found(location: str, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"expected images in {location}, found an empty folder: name the folder that holds them"
    some = ", ".join(f"{Path(skip.key).name} ({skip.reason})" for skip in skipped[:3])
    return (
        f"expected images in {location}, found {len(skipped)} other file{'s' * (len(skipped) > 1)}: {some}"
        f"{', …' if len(skipped) > 3 else ''}: name the folder that holds them, or the archives themselves"
    )
