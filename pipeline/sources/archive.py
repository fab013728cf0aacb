"""Shared by tar and zip archives: which members are images, their keys, and their labels.

A member's name is only a key and never used as a path. Bytes are read into memory, by offset, up to a limit.
"""

from __future__ import annotations

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
    Source,
    encode_labels,
    in_threads,
    key_array,
    labels_from_folders,
    public_names,
)
from pipeline.sources.sidecars import BAD_LABELS, BESIDE, OF_NONE, TEXT, UNREADABLE, Sidecars, is_class_name, is_sidecar
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.sources.archive_index import Columns
    from pipeline.sources.store import File, Store

PACKERS = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "XZ",
    96: "JPEG",
    98: "PPMd",
    99: "AES",
}
"""Methods of zip archives by number (APPNOTE 4.4.5)."""
MAX_NAME_BYTES = 1024
WORKBOOK = ("[Content_Types].xml", "mimetype")
"""Members by which a spreadsheet is known from other zip archives."""
MAX_LINKS = 16
"""Symbolic links that are followed one after the other."""

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
    "packed by an unknown method, not by deflate",
    "here the archive is cut off",
    "sparse",
    "bytes after the end of the archive",
    *BAD_LABELS,
    OF_NONE,
    BESIDE,
    *(f"packed by {name}, not by deflate" for name in PACKERS.values()),
)
NOT_AN_IMAGE, HIDDEN, NOT_A_FILE, LONG_NAME, TOO_LARGE, SUPERSEDED, ENCRYPTED, PACKED, CUT_OFF, SPARSE, REST = range(
    1, 12
)
UNREADABLE_LABEL, CAPTION = REASONS.index(UNREADABLE), REASONS.index(BESIDE)


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
        self._sidecars = Sidecars()
        self._symbolic: dict[int, bytes] = {}
        self._last: dict[bytes, int] | None = None

    def add(self, name: bytes, reason: int = IMAGE, **numbers: int) -> None:
        """Add a member, with the reason when it is skipped."""
        name = normal(name)
        if len(name) > MAX_NAME_BYTES:
            name, reason = name[:MAX_NAME_BYTES], LONG_NAME
        elif reason == IMAGE and _is_hidden(name):
            reason = HIDDEN
        if self._last is not None and reason == IMAGE:
            self._last[name] = len(self._names)
        self._names.append(name)
        self._reasons.append(reason)
        for column, values in self._numbers.items():
            values.append(numbers.get(column, -1))

    def add_hard_link(self, name: bytes, target: bytes) -> None:
        """Add a member whose bytes are those of an earlier one; archivers store files of several names so."""
        if self._last is None:  # most archives have no such member, and need no dictionary
            images = (i for i, reason in enumerate(self._reasons) if reason == IMAGE)
            self._last = {self._names[i]: i for i in images}
        place = self._last.get(normal(target))
        if place is None:
            self.add(name, NOT_A_FILE)
            self._link_sidecar(len(self._names) - 1, normal(target))
        else:
            self.add(name, IMAGE, **{column: values[place] for column, values in self._numbers.items()})

    def add_symbolic_link(self, name: bytes, target: bytes) -> None:
        """Add a member whose bytes are those of the member that it leads to, if there is one."""
        self.add(name, NOT_A_FILE)
        if not _is_hidden(name) and self._reasons[-1] == NOT_A_FILE:
            folder = posixpath.dirname(self._names[-1])
            self._symbolic[len(self._names) - 1] = posixpath.normpath(posixpath.join(folder, target))

    def add_sidecar(self, name: bytes, data: bytes | None) -> None:
        """Add a member that may hold the label of an image; without ``data`` it is too large to be read."""
        self.add(name, NOT_AN_IMAGE)
        if self._reasons[-1] == NOT_AN_IMAGE:
            self._sidecars.add(len(self._names) - 1, self._names[-1], data)

    def _link_sidecar(self, place: int, target: bytes) -> None:
        """Take a link for a sidecar where it leads to one."""
        name = self._names[place]
        if is_sidecar(name) and self._reasons[place] == NOT_A_FILE and self._sidecars.add_link(place, name, target):
            self._reasons[place] = NOT_AN_IMAGE

    def columns(self) -> Columns:
        """Return all as arrays of equal length: ``name``, ``reason``, the numbers, and the sidecar labels."""
        self._follow_links()
        names = np.array(self._names, dtype=np.bytes_) if self._names else np.zeros(0, "S1")
        reasons = np.array(self._reasons, dtype=np.uint8)
        images = np.flatnonzero(reasons == IMAGE)
        last = len(images) - 1 - np.unique(names[images][::-1], return_index=True)[1]
        earlier = np.ones(len(images), dtype=np.bool_)
        earlier[last] = False
        reasons[images[earlier]] = SUPERSEDED  # unpacking would leave the last one
        found = self._sidecars.of_images({i: self._names[i] for i in images[np.sort(last)].tolist()})
        kept = np.ones(len(names), dtype=np.bool_)
        kept[found.used] = False
        for place, what in found.left_out.items():
            reasons[place] = REASONS.index(what)
        columns: Columns = {"name": names[kept], "reason": reasons[kept]}
        columns |= {name: np.array(values, dtype=np.int64)[kept] for name, values in self._numbers.items()}
        for what, of in found.values.items():
            codes, texts = encode_labels([of.get(i) for i in range(len(names))])
            columns[what] = codes[kept]
            columns[f"{what}_names"] = np.array([text.encode("utf-8", "surrogateescape") for text in texts])
        return columns

    def _follow_links(self) -> None:
        """Give every symbolic link the bytes of the member that it leads to."""
        if not self._symbolic:
            return
        place = {name: i for i, name in enumerate(self._names) if self._reasons[i] == IMAGE or i in self._symbolic}
        for link in self._symbolic:
            end: int | None = link
            for _ in range(MAX_LINKS):
                end = place.get(self._symbolic[end]) if end in self._symbolic else end
            if end is None:
                self._link_sidecar(link, self._symbolic[link])
            elif end not in self._symbolic and self._reasons[end] == IMAGE:
                self._reasons[link] = IMAGE
                for values in self._numbers.values():
                    values[link] = values[end]


def reason_for(head: bytes) -> int:
    """Return `IMAGE` for bytes that begin like an image, otherwise the reason."""
    return IMAGE if is_image(head) else NOT_AN_IMAGE


def reason_packed(method: int) -> int:
    """Return the reason for a member of a zip that is packed by another method than deflate."""
    return REASONS.index(f"packed by {PACKERS[method]}, not by deflate") if method in PACKERS else PACKED


def normal(name: bytes) -> bytes:
    """Return a member's name without the ``./`` before it."""
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return name


def unpacked_name(name: bytes) -> bytes:
    """Return a name without the parts that name no folder of the unpacked archive; classes are not called by them.

    Examples
    --------
    >>> unpacked_name(b"/abs/1.png"), unpacked_name(b"../up//1.png"), unpacked_name(b"cat/1.png")
    (b'abs/1.png', b'up/1.png', b'cat/1.png')
    """
    if b"/" not in name or not (name[:1] in b"/." or b"//" in name or b"/." in name):
        return name
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b".", b".."))


def _is_hidden(name: bytes) -> bool:
    """Return whether a name is hidden, or of the resource forks that macOS packs beside the files."""
    parts = name.split(b"/")
    return parts[0] == b"__MACOSX" or any(part[:1] == b"." and part.strip(b".") for part in parts)


class ArchiveSource(Source):
    """The images in one or more archives of a kind, in the order of archives and members.

    One archive: a key is the member's name. Several: the archive's name, relative to the folder they share, a slash,
    and the member's. Labels come from ``.cls``, ``.json`` and ``.txt`` members where there are any
    (`pipeline.sources.sidecars`), else from folders inside the archive, as `pipeline.sources.FolderSource` takes them
    of the unpacked archive: folders that hold everything are looked through. Of members of the same name the last
    counts, as unpacking would have it. A link is the member that it leads to.

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
        for what in (TEXT if texts_are_labels(indexes) else "label", "split", "group")
        if any(what in index for index in indexes)
    }
    columns: dict[str, NDArray[Any]] = {}
    texts = sidecar_labels.pop("label", None) or sidecar_labels.pop(TEXT, None)
    if texts is not None:
        labels, label_names = encode_labels([text or None for text in texts])
    else:
        labels, label_names, columns = labels_from_folders(
            below_shared_folders([unpacked_name(name) for name in np.concatenate(names).tolist()])
        )
    return labels, label_names, {**columns, **{what: np.array(texts) for what, texts in sidecar_labels.items()}}


def texts_are_labels(indexes: Sequence[Columns]) -> bool:
    """Return whether the ``.txt`` members beside the images are class names: all of them are short, and no other is."""
    if any("label" in index for index in indexes):
        return False
    texts = [name.decode("utf-8", "surrogateescape") for index in indexes for name in index.get(f"{TEXT}_names", ())]
    return bool(texts) and all(map(is_class_name, texts))


def below_shared_folders(names: Sequence[bytes]) -> Sequence[bytes]:
    """Return names without the folders that hold everything, as long as there are further folders below.

    Examples
    --------
    >>> below_shared_folders([b"a/train/x/1", b"a/test/y/2"]), below_shared_folders([b"x/1", b"x/2"])
    ([b'train/x/1', b'test/y/2'], [b'x/1', b'x/2'])
    """
    while names:
        top, slash, _ = names[0].partition(b"/")
        rest = [name[len(top) + 1 :] for name in names if name.startswith(top + b"/")]
        if not slash or len(rest) < len(names) or not any(b"/" in name for name in rest):
            break
        names = rest
    return names


class SkippedMembers(Sequence[Skipped]):
    """Skipped members, made into objects only when they are accessed."""

    def __init__(self, prefixes: Sequence[bytes], indexes: Sequence[Columns]) -> None:
        used = [IMAGE, CAPTION] if texts_are_labels(indexes) else [IMAGE]
        self._parts = [
            (prefix, index["name"][rows], index["reason"][rows])
            for prefix, index in zip(prefixes, indexes, strict=True)
            if len(rows := np.flatnonzero(~np.isin(index["reason"], used)))
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
    names = [*(name.decode("utf-8", "surrogateescape") for name in index[f"{what}_names"].tolist()), ""]
    return [names[code] for code in index[what][rows].tolist()]  # -1 is the empty one at the end


def _nothing_found(location: str, skipped: Sequence[Skipped]) -> str:
    some = ", ".join(f"{skip.key[-80:]} ({skip.reason})" for skip in skipped[:3])
    found = f"{len(skipped)} other members: {some}" if skipped else "an empty archive"
    if skipped and any(skip.key in WORKBOOK for skip in skipped[:10]):
        return f"expected images in {public(location)}, found a workbook: save its sheet as CSV in UTF-8"
    return f"expected images in {public(location)}, found {found}: name the archive that holds them"
