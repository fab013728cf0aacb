"""Shared by tar and zip archives: which members are images, their keys, and their labels.

A member's name is only a key and never used as a path. Bytes are read into memory, by offset, up to a limit.
"""

from __future__ import annotations

import json
import os
import posixpath
from abc import abstractmethod
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from pipeline.core.items import ItemTable, Skipped
from pipeline.decoding.formats import is_image, named_like_an_image
from pipeline.errors import SourceError, first_line
from pipeline.sources.archive_index import cached_index
from pipeline.sources.base import (
    MAX_MEMBER_BYTES,
    MAX_TEXT,
    Source,
    encode_labels,
    in_threads,
    key_array,
    labels_from_folders,
    public_names,
)
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.sources.archive_index import Columns
    from pipeline.sources.store import File, Store

MAX_NAME_BYTES = 1024
MAX_SIDECAR_BYTES = 1 << 16
SIDECARS = (b".cls", b".json")
"""Members that hold the label of the images whose name they share up to the first dot (WebDataset)."""

IMAGE = 0
REASONS = (
    "",
    "not an image",
    "hidden",
    "not a regular file",
    f"name of more than {MAX_NAME_BYTES} bytes",
    f"above {MAX_MEMBER_BYTES >> 20} MB",
    "superseded by a later member of the same name",
    "encrypted",
    "packed by a method other than deflate",
    "here the archive is cut off",
)
NOT_AN_IMAGE, HIDDEN, NOT_A_FILE, LONG_NAME, TOO_LARGE, SUPERSEDED, ENCRYPTED, PACKED, CUT_OFF = range(1, len(REASONS))


class Listing:
    """Collects the members of one archive.

    Parameters
    ----------
    numbers : tuple of str
        Names of the integers that a reader needs to find a member; ``size`` (unpacked) is one of them.
    """

    def __init__(self, numbers: tuple[str, ...]) -> None:
        self._numbers = {name: array("q") for name in numbers}
        self._names: list[bytes] = []
        self._reasons = array("B")
        self._sidecar_labels: dict[bytes, dict[str, str]] = {}

    def add(self, name: bytes, reason: int = IMAGE, **numbers: int) -> None:
        """Add a member, with the reason when it is skipped."""
        name = _normal(name)
        if len(name) > MAX_NAME_BYTES:
            name, reason = name[:MAX_NAME_BYTES], LONG_NAME
        elif reason == IMAGE and any(part[:1] == b"." and part.strip(b".") for part in name.split(b"/")):
            reason = HIDDEN
        self._names.append(name)
        self._reasons.append(reason)
        for column, values in self._numbers.items():
            values.append(numbers.get(column, -1))

    def add_sidecar(self, name: bytes, data: bytes) -> None:
        """Take a label from the bytes of a ``.cls`` or ``.json`` member; one without a label is skipped as well."""
        sample = _sample(_normal(name))
        before = self._sidecar_labels.get(sample, {})
        if name.lower().endswith(b".cls"):
            sidecar_labels, merged = (found := _cls(data)), before | found
        else:
            sidecar_labels, merged = (found := _json(data)), found | before
        if sidecar_labels:
            self._sidecar_labels[sample] = merged
        else:
            self.add(name, NOT_AN_IMAGE)

    def columns(self) -> Columns:
        """Return all as arrays of equal length: ``name``, ``reason``, the numbers, and the sidecar labels."""
        names = np.array(self._names, dtype=np.bytes_) if self._names else np.zeros(0, "S1")
        reasons = np.array(self._reasons, dtype=np.uint8)
        images = np.flatnonzero(reasons == IMAGE)
        last = len(images) - 1 - np.unique(names[images][::-1], return_index=True)[1]
        earlier = np.ones(len(images), dtype=np.bool_)
        earlier[last] = False
        reasons[images[earlier]] = SUPERSEDED  # unpacking would leave the last one
        columns: Columns = {"name": names, "reason": reasons}
        columns |= {name: np.array(values, dtype=np.int64) for name, values in self._numbers.items()}
        for what in ("label", "split", "group") if self._sidecar_labels else ():
            codes, texts = encode_labels(
                [self._sidecar_labels.get(_sample(name), {}).get(what) for name in self._names]
            )
            if texts:
                columns[what] = codes
                columns[f"{what}_names"] = np.array([text.encode() for text in texts], dtype=np.bytes_)
        return columns


def is_sidecar(name: bytes) -> bool:
    """Return whether a member's name is that of a sidecar label."""
    base = name.rpartition(b"/")[2].lower()
    return b"." + base.partition(b".")[2] in SIDECARS and not base.startswith(b".")


def reason_for(head: bytes) -> int:
    """Return `IMAGE` for bytes that begin like an image, otherwise the reason."""
    return IMAGE if is_image(head) else NOT_AN_IMAGE


def _normal(name: bytes) -> bytes:
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return name


def _sample(name: bytes) -> bytes:
    """Return a name up to the first dot after its folder."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _cls(data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace").strip()
    return {"label": text} if 0 < len(text) <= MAX_TEXT else {}


def _json(data: bytes) -> dict[str, str]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: str(value).encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs
        for name in ("label", "split", "group")
        if isinstance(value := found.get(name), (str, int)) and 0 < len(str(value)) <= MAX_TEXT
    }


class ArchiveSource(Source):
    """The images in one or more archives of a kind, in the order of archives and members.

    One archive: a key is the member's name. Several: the archive's name, relative to the folder they share, a slash,
    and the member's. Labels come from ``.cls`` and ``.json`` members where there are any, else from folders inside the
    archive, as `pipeline.sources.FolderSource` takes them. Of members of the same name the last counts, as unpacking
    would have it.

    Parameters
    ----------
    location : str
        What the user named.
    store : Store
    files : sequence of File
        The archives.

    Attributes
    ----------
    numbers : tuple of str
        Finds a member in its archive.
    unreadable : tuple of exception types
        The errors that `_list` raises for a damaged archive.

    Raises
    ------
    SourceError
        An archive cannot be read, or there is no image in any.
    """

    numbers: ClassVar[tuple[str, ...]]
    unreadable: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, location: str, store: Store, files: Sequence[File]) -> None:
        self.location = location
        indexes = list(in_threads(lambda file: self._index(store, file), files))
        self._store, self._files = store, tuple(files)
        wanted = [np.flatnonzero(index["reason"] == IMAGE) for index in indexes]
        names = [index["name"][rows] for index, rows in zip(indexes, wanted, strict=True)]
        prefixes = key_prefixes([file.path for file in files])
        self.skipped = SkippedMembers(prefixes, indexes)
        counts = [len(rows) for rows in wanted]
        if not sum(counts):
            raise SourceError(_nothing_found(location, self.skipped))
        keys = [np.char.add(prefix, part) if prefix else part for prefix, part in zip(prefixes, names, strict=True)]
        self._file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._numbers = np.concatenate(
            [
                np.stack([index[name][rows] for name in self.numbers], axis=1)
                for index, rows in zip(indexes, wanted, strict=True)
            ]
        )
        labels, label_names, columns = _labels_and_columns(indexes, wanted, names)
        self.items = ItemTable(
            keys=key_array(np.concatenate(keys)),
            labels=labels,
            label_names=label_names,
            sizes=self._numbers[:, self.numbers.index("size")].copy(),
            mtimes_ns=np.array([file.stamp for file in files], dtype=np.int64)[self._file],
            columns=columns,
        )

    def _index(self, store: Store, file: File) -> Columns:
        needed = ("name", "reason", *self.numbers)
        return cached_index(self.kind, store, file, lambda: self._list_members(store, file), needed=needed)

    def _list_members(self, store: Store, file: File) -> Columns:
        listing = Listing(self.numbers)
        try:
            self._list(store, file, listing)
        except self.unreadable as error:
            what = f"{self.kind} archive {public(file.path)}"
            raise SourceError(f"cannot read the {what}: {public(first_line(error))}: fetch or make it again") from None
        return listing.columns()

    @staticmethod
    @abstractmethod
    def _list(store: Store, file: File, listing: Listing) -> None:
        """Add the members of an archive to the listing."""

    def locator(self, i: int) -> tuple[int, ...]:
        """Return the number of item ``i``'s archive, and what finds the member in it."""
        return (int(self._file[i]), *self._numbers[i].tolist())


def _labels_and_columns(
    indexes: Sequence[Columns], wanted: Sequence[NDArray[np.int64]], names: Sequence[NDArray[np.bytes_]]
) -> tuple[NDArray[np.int32], tuple[str, ...], dict[str, NDArray[Any]]]:
    """Return labels, label names and columns: those of sidecars where there are any, else those of the folders."""
    sidecar_labels = {
        what: [text for index, rows in zip(indexes, wanted, strict=True) for text in _texts(index, what, rows)]
        for what in ("label", "split", "group")
        if any(what in index for index in indexes)
    }
    columns: dict[str, NDArray[Any]] = {}
    if "label" in sidecar_labels:
        labels, label_names = encode_labels([text or None for text in sidecar_labels.pop("label")])
    else:
        labels, label_names, columns = labels_from_folders(np.concatenate(names))
    return labels, label_names, {**columns, **{what: np.array(texts) for what, texts in sidecar_labels.items()}}


class SkippedMembers(Sequence[Skipped]):
    """Skipped members, made into objects only when they are accessed."""

    def __init__(self, prefixes: Sequence[bytes], indexes: Sequence[Columns]) -> None:
        self._parts = [
            (prefix, index["name"][rows], index["reason"][rows])
            for prefix, index in zip(prefixes, indexes, strict=True)
            if len(rows := np.flatnonzero(index["reason"] != IMAGE))
        ]
        self._ends = np.cumsum([len(names) for _, names, _ in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, i: int) -> Skipped: ...
    @overload
    def __getitem__(self, i: slice) -> list[Skipped]: ...
    def __getitem__(self, i: int | slice) -> Skipped | list[Skipped]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = int(np.searchsorted(self._ends, i, side="right"))
        prefix, names, reasons = self._parts[part]
        at = i - (int(self._ends[part - 1]) if part else 0)
        name, reason = bytes(names[at]), int(reasons[at])
        # One of a name that is hidden, or that a later member has as well, is left out on purpose. Of a long name the
        # suffix is not kept.
        is_lost = reason in (CUT_OFF, LONG_NAME) or (reason not in (HIDDEN, SUPERSEDED) and named_like_an_image(name))
        return Skipped(os.fsdecode(prefix + name), REASONS[reason], is_lost)


def key_prefixes(paths: Sequence[str]) -> list[bytes]:
    """Return the prefixes of the members' names, which make keys of several archives differ; without credentials.

    Raises
    ------
    SourceError
        URLs differ in their query only.

    Examples
    --------
    >>> key_prefixes(["/data/a.tar"]), key_prefixes(["/data/x/a.tar", "/data/y/a.tar"])
    ([b''], [b'x/a.tar/', b'y/a.tar/'])
    """
    if len(paths) == 1:
        return [b""]
    names = public_names(paths)
    shared = posixpath.commonpath([posixpath.dirname(name) or "." for name in names]) if names else ""
    return [os.fsencode(posixpath.relpath(name, shared or "/")) + b"/" for name in names]


def _texts(index: Columns, what: str, rows: NDArray[np.int64]) -> list[str]:
    """Return the sidecar values of some members, empty where there are none."""
    if what not in index:
        return [""] * len(rows)
    names = [*(name.decode("utf-8", "replace") for name in index[f"{what}_names"].tolist()), ""]
    return [names[code] for code in index[what][rows].tolist()]  # -1 is the empty one at the end


def _nothing_found(location: str, skipped: Sequence[Skipped]) -> str:
    some = ", ".join(f"{skip.key[-80:]} ({skip.reason})" for skip in skipped[:3])
    found = f"{len(skipped)} other members: {some}" if skipped else "an empty archive"
    return f"expected images in {public(location)}, found {found}: name the archive that holds them"
