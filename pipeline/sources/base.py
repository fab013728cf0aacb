"""The interface of a source: an ordered list of items, and a reader of their bytes.

The list is columnar (arrays, not objects), so that ten million items stay within memory. The reader is a small
picklable callable: decode workers get the reader and one locator at a time, never the list.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.core.items import HASH_BYTES, Item, content_hash
from pipeline.errors import SourceError
from pipeline.sources.retries import Patience, PatientReader
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.core.items import ItemTable, Reader, Skipped

Known = tuple["NDArray[np.bytes_]", "NDArray[np.int64]", "NDArray[np.int64]"]
"""Keys, sizes and modification times (ns) of items listed before, such as those of a cache."""

MAX_FILE_BYTES = 1 << 30
"""A larger file is refused unread: no photograph is that large, and /dev/zero has no end."""


MAX_MEMBER_BYTES = 512 << 20
"""A larger member of an archive, packed or unpacked, is refused unread."""

SPLIT_FOLDERS = {
    b"train": "train",
    b"training": "train",
    b"val": "val",
    b"valid": "val",
    b"validation": "val",
    b"test": "test",
    b"testing": "test",
}

MAX_TEXT = 256
"""A cache's columns are of fixed length: longer labels of an archive, and columns of longer texts, are left out."""
LISTING_THREADS = 8
LISTING_CHUNK = 4096
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


class Source(ABC):
    """An ordered list of items and how to get their bytes.

    Attributes
    ----------
    kind : str
        ``"folder"``, ``"table"``, …
    location : str
        What the user named.
    address : str
        What `pipeline.sources.open_source` takes from any folder to open it again, without credentials.
    items : ItemTable
        The list.
    skipped : sequence of Skipped
        Files that were found and left out.
    patience : Patience
        How long reads are repeated that a store could not serve.
    """

    kind: str
    location: str
    address: str = ""
    patience = Patience()
    items: ItemTable
    skipped: Sequence[Skipped] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Item:
        label = int(self.items.labels[i])
        columns = self.items.columns
        return Item(
            key=os.fsdecode(self.items.keys[i]),
            label=self.items.label_names[label] if label >= 0 else None,
            split=str(columns["split"][i]) or None if "split" in columns else None,
            group=str(columns["group"][i]) or None if "group" in columns else None,
        )

    @abstractmethod
    def locator(self, i: int) -> Any:
        """Return what the reader needs to find item ``i`` (picklable, small)."""

    @abstractmethod
    def reader(self) -> Reader:
        """Return the picklable callable that turns a locator into bytes."""

    def patient_reader(self) -> Reader:
        """Return the reader with its reads repeated, for whoever needs every image."""
        return PatientReader(self.reader(), self.patience)

    def content_hashes(
        self, *, check: Callable[[], None] = lambda: None
    ) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
        """Return a function that hashes images by row: (n,) int64 → (n, 16) uint8, zeros where one cannot be read.

        Parameters
        ----------
        check : callable
            Called before each image; may raise to stop.
        """
        reader = self.patient_reader()

        def hash_row(row: int) -> bytes:
            check()
            try:
                return content_hash(reader(self.locator(row)))
            except (OSError, SourceError):
                return bytes(HASH_BYTES)

        def hash_rows(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
            hashes = np.zeros((len(rows), HASH_BYTES), dtype=np.uint8)
            for i, found in enumerate(in_threads(hash_row, rows.tolist())):
                hashes[i] = np.frombuffer(found, np.uint8)
            return hashes

        return hash_rows

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache, without credentials.

        ``location`` is for display; ``root``, the folder that keys are relative to, or else ``address`` is for
        `pipeline.sources.reopen_source`.
        """
        described = {"kind": self.kind, "location": public(self.location)}
        return {**described, "address": self.address} if self.address else described


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads regular files below a folder; never blocks on a FIFO or a device.

    Parameters
    ----------
    root : bytes
        Folder that relative paths start from.
    """

    root: bytes

    def __call__(self, locator: bytes) -> bytes:
        """Return the file's bytes.

        Raises
        ------
        OSError
            Missing, unreadable, not a regular file, or larger than `MAX_FILE_BYTES`.
        """
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        fd = os.open(os.path.join(self.root, locator), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if info.st_size > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"file of {info.st_size} bytes, above {MAX_FILE_BYTES}")
            return file.read()


def in_threads(function: Callable[[_Given], _Found], items: Sequence[_Given]) -> Iterator[_Found]:
    """Yield the function's values in order; for calls that wait for the disk. Few run at a time."""
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        for start in range(0, len(items), LISTING_CHUNK):
            yield from threads.map(function, items[start : start + LISTING_CHUNK])


def key_array(keys: Sequence[bytes] | NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Pack keys into a fixed-length array, refusing duplicates.

    Raises
    ------
    SourceError
        A key occurs twice: rows could not be distinguished. Or it holds a zero byte.
    """
    if isinstance(keys, Sequence) and (cut := next((key for key in keys if b"\0" in key), None)) is not None:
        raise SourceError(f"expected keys without zero bytes, which end a text, found {os.fsdecode(cut)!r}: rename it")
    array = np.array(keys, dtype=np.bytes_)
    if len(array) > 1:
        ordered = np.sort(array)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise SourceError(
                f"every image needs a key of its own, but {os.fsdecode(twice[0])!r} occurs more than once "
                f"({len(np.unique(twice))} such keys): remove the duplicate rows"
            )
    return array


def public_names(paths: Sequence[str]) -> list[str]:
    """Return paths as keys: URLs without their credentials.

    Raises
    ------
    SourceError
        Different URLs are equal without them: rows could not be distinguished.
    """
    names = [public(path) if "://" in path else path for path in paths]
    if len(set(names)) < len(set(paths)):
        first: dict[str, str] = {}
        twice = next(name for path, name in zip(paths, names, strict=True) if first.setdefault(name, path) != path)
        raise SourceError(
            f"expected URLs that differ before their query, which is kept in no key, found {twice} with several: name "
            "images or archives by paths of their own"
        )
    return names


def unchanged_since(known: Known, now: Known) -> NDArray[np.bool_]:
    """Return which files of ``now`` are among ``known``, of the same size and time."""
    if not len(known[0]) or not len(now[0]):
        return np.zeros(len(now[0]), dtype=np.bool_)
    order = np.argsort(known[0], kind="stable")
    rows = order[np.minimum(np.searchsorted(known[0], now[0], sorter=order), len(order) - 1)]
    same: NDArray[np.bool_] = np.all([then[rows] == here for then, here in zip(known, now, strict=True)], axis=0)
    return same


def labels_from_folders(
    keys: Sequence[bytes] | NDArray[np.bytes_],
) -> tuple[NDArray[np.int32], tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return labels, label names and columns by the folders in keys.

    The first folder level is the class. Where it holds nothing but ``train``, ``val`` and ``test`` (two of them at
    least), it is the split and the second level the class.

    Examples
    --------
    >>> labels_from_folders([b"cat/1.png", b"2.png"])
    (array([ 0, -1], dtype=int32), ('cat',), {})
    """
    # Of millions of keys no list of parts is stored, and equal names share one object.
    text = functools.cache(os.fsdecode)
    tops = {key.split(b"/", 1)[0].lower() if b"/" in key else None for key in keys}
    columns = {}
    depth = 0
    if len(tops) > 1 and tops <= SPLIT_FOLDERS.keys():
        depth = 1
        columns["split"] = np.array([SPLIT_FOLDERS[key.split(b"/", 1)[0].lower()] for key in keys])
    labels, names = encode_labels(
        [text(bytes(parts[depth])) if len(parts := key.split(b"/", 2)) > depth + 1 else None for key in keys]
    )
    return labels, names, columns


def encode_labels(labels: Sequence[str | None]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Turn class names into indices of the sorted names; None becomes -1.

    Names that are the same text in two Unicode forms (é as one letter, or as e and an accent) are one class.

    Examples
    --------
    >>> encode_labels(["cat", None, "ant"])
    (array([ 1, -1,  0], dtype=int32), ('ant', 'cat'))
    """
    form = _one_form({label for label in labels if label is not None})
    names = tuple(sorted(set(form.values())))
    place = {name: i for i, name in enumerate(names)}
    index: dict[str | None, int] = {label: place[name] for label, name in form.items()}
    index[None] = -1
    return np.array([index[label] for label in labels], dtype=np.int32), names


def _one_form(names: set[str]) -> dict[str, str]:
    """Return the name to use for each: its composed form where both forms occur, else itself."""
    composed: dict[str, list[str]] = {}
    for name in names:
        composed.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return {name: same[0] if len(same) == 1 else form for form, same in composed.items() for name in same}
