"""HDF5 files with a data set of images: pixels (N, H, W) or (N, H, W, 3) uint8, or encoded images of any length.

Besides `pipeline.cache` this is the only place that reads HDF5: images in such a file are a source like others.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.core.spec import FORMAT
from pipeline.errors import SourceError, few_names, first_line
from pipeline.sources.archive import key_prefixes
from pipeline.sources.base import MAX_MEMBER_BYTES, Source, encode_labels, key_array
from pipeline.sources.range_file import RangeFile
from pipeline.sources.retries import Patience
from pipeline.sources.store import LocalStore
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    import h5py
    from numpy.typing import NDArray

    from pipeline.sources.store import File, Store

CHUNK_CACHE = 64 << 20
"""Bytes of unpacked chunks that a worker keeps: a chunk may hold many images."""
NAMES = {
    "key": ("key", "keys"),
    "label": ("label", "labels"),
    "split": ("split", "splits"),
    "group": ("group", "groups"),
}
"""Data sets beside the images, with one value per image, that are used by their names."""
COLOURS, RGB = (1, 2, 3, 4), 3
"""Lengths of a last axis that are colours, not the width of a picture."""


class Hdf5Source(Source):
    """The images in a data set of one or more HDF5 files; every row is an item.

    Pixels reach the decoder as a PNM image (the header ``P5`` or ``P6``, then the pixels as they are). They are
    hashed and prepared like any other image. The key is the value of the data set ``key`` beside the images, or else
    the row's number; ``label``, ``split`` and ``group`` beside them are used too.

    Parameters
    ----------
    location : str
        What the user named.
    store : Store
    files : sequence of File
        The files.
    name : str, optional
        The data set; found by its shape and type otherwise.

    Raises
    ------
    SourceError
        A file cannot be read, or no data set, or more than one, could be the images.
    """

    kind = "hdf5"

    def __init__(self, location: str, store: Store, files: Sequence[File], name: str | None = None) -> None:
        self.location = location
        self._store, self._files = store, tuple(files)
        parts = [_look(store, file, name, location) for file in files]
        self._names = tuple(part.name for part in parts)
        self.skipped = [skip for part in parts for skip in part.skipped]
        counts = [part.count for part in parts]
        if not sum(counts):
            raise SourceError(f"expected images in {public(location)}, found a data set of none: name another file")
        self._ends = np.cumsum(counts, dtype=np.int64)
        prefixes = key_prefixes([file.path for file in files])
        keys = [
            prefix + key
            for prefix, part in zip(prefixes, parts, strict=True)
            for key in part.keys or _numbers(part.count)
        ]
        sidecar_labels = {
            what: [text for part in parts for text in part.sidecar_labels.get(what, [""] * part.count)]
            for what in ("label", "split", "group")
            if any(what in part.sidecar_labels for part in parts)
        }
        labels, names = encode_labels([text or None for text in sidecar_labels.pop("label", [""] * sum(counts))])
        self.items = ItemTable(
            keys=key_array(keys),
            labels=labels,
            label_names=names,
            sizes=np.full(sum(counts), -1, dtype=np.int64),
            mtimes_ns=np.repeat(np.array([file.stamp for file in files], dtype=np.int64), counts),
            columns={what: np.array(texts) for what, texts in sidecar_labels.items()},
        )

    def locator(self, i: int) -> tuple[int, int]:
        """Return file and row of item ``i``."""
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, i - (int(self._ends[number - 1]) if number else 0)

    def reader(self) -> Reader:
        """Return a reader of rows."""
        return Hdf5Reader(self._store, self._files, self._names)


@dataclass(frozen=True, slots=True)
class Hdf5Reader:
    """Reads images row by row.

    Parameters
    ----------
    store : Store
    files : tuple of File
    names : tuple of str
        The data set in each file.
    """

    store: Store
    files: tuple[File, ...]
    names: tuple[str, ...]

    def __call__(self, locator: tuple[int, int]) -> bytes:
        """Return the image's bytes, pixels as PNM; raises `OSError`."""
        number, row = locator
        images, lock, raw = _dataset(self.store, self.files[number], self.names[number])
        try:
            with lock:
                values = np.asarray(images[row])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if raw is not None and raw.error is not None:  # HDF5 loses it
                _dataset.cache_clear()  # what it keeps of the file may be incomplete
                raise raw.error from None
            raise OSError(errno.EIO, f"damaged in the file: {first_line(error)}") from None
        return pnm(values) if images.ndim > 1 else values.tobytes()


def pnm(pixels: NDArray[np.uint8]) -> bytes:
    r"""Return pixels (H, W), (H, W, 1) or (H, W, 3) as a binary PGM or PPM image.

    Examples
    --------
    >>> pnm(np.array([[1, 2]], np.uint8))
    b'P5 2 1 255\n\x01\x02'
    """
    height, width = pixels.shape[:2]
    kind = b"P6" if pixels.shape[2:] == (3,) else b"P5"
    return b"%s %d %d 255\n" % (kind, width, height) + pixels.tobytes()


@functools.lru_cache(8)
def _dataset(store: Store, file: File, name: str) -> tuple[h5py.Dataset, threading.Lock, RangeFile | None]:
    raw: Any = None if isinstance(store, LocalStore) else store.open(file)
    opened = _open(store, file) if raw is None else _h5py_file(raw)
    return opened[name], threading.Lock(), raw if isinstance(raw, RangeFile) else None


def _open(store: Store, file: File, patience: Patience | None = None) -> h5py.File:
    if isinstance(store, LocalStore):
        store.check(file)
        return _h5py_file(file.path, locking=False)
    return _h5py_file(store.open(file, patience))


def _h5py_file(place: str | BinaryIO, **how: bool) -> h5py.File:
    import h5py

    # The default number of hash slots serves a cache of 1 MiB; of a larger one most would stay unused.
    return h5py.File(place, "r", rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=10007, **how)


@dataclass(frozen=True, slots=True)
class _Part:
    """The contents of one file: the data set's name and length, keys if any, and texts beside the images."""

    name: str
    count: int
    keys: list[bytes]
    sidecar_labels: dict[str, list[str]]
    skipped: list[Skipped]


def _look(store: Store, file: File, asked: str | None, location: str) -> _Part:
    try:
        with _open(store, file, Patience()) as opened:
            if opened.attrs.get("format") == FORMAT.encode():
                raise SourceError(
                    f"expected images in {public(location)}, found a cache of embeddings: name what it was made from"
                )
            name = _choose(opened, asked, location)
            images = opened[name]
            beside = images.parent
            sidecar_labels = {
                what: _texts(beside[found])
                for what, names in NAMES.items()
                if (found := next((n for n in names if _goes_with(beside.get(n), images)), None))
            }
            keys = [os.fsencode(text) for text in sidecar_labels.pop("key", [])]
            if missing := keys.count(b""):
                raise SourceError(
                    f"expected a key in every row of {public(file.path)}, found {missing} without: fill them in, or "
                    "rename the data set"
                )
            if cut := next((text for texts in sidecar_labels.values() for text in texts if "\0" in text), None):
                raise SourceError(
                    f"expected names beside the images in {public(file.path)}, found {cut!r}, which holds a zero byte: "
                    "write names there"
                )
            skipped = _unfit_beside(images)
            return _Part(name, len(images), keys, sidecar_labels, skipped)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SourceError(
            f"cannot read the HDF5 file {public(file.path)}: {public(first_line(error))}: make it again"
        ) from None


def _unfit_beside(images: h5py.Dataset) -> list[Skipped]:
    """Name the data sets beside the images that are named like labels and hold something else, such as one-hot rows."""
    beside = images.parent
    return [
        Skipped(n, f"data set {n!r}: {beside[n].shape} {beside[n].dtype}, not one value for each image")
        for names in NAMES.values()
        for n in names
        if hasattr(beside.get(n), "shape") and not _goes_with(beside[n], images)
    ]


def _choose(opened: h5py.File, asked: str | None, location: str) -> str:
    there: dict[str, str] = {}
    others: dict[str, str] = {}

    def visit(name: str, member: Any) -> None:
        if hasattr(member, "shape"):
            shown = f"{name} {member.shape} {member.dtype}"
            if _holds_images(member):
                there[name] = shown
            else:
                others[name] = shown + (", one picture" if _is_one_picture(member) else "")

    opened.visititems(visit)
    if asked is not None and hasattr(opened.get(asked), "shape"):
        visit(asked.strip("/"), opened[asked])  # it may be a link, or another name of what was visited
    if asked is not None and asked.strip("/") in there:
        return asked.strip("/")
    if asked is None and len(there) == 1:
        return next(iter(there))
    wanted = f"the data set {asked!r}" if asked else "one data set"
    if asked is not None and asked.strip("/") in others:
        found = others[asked.strip("/")]
    else:
        found = few_names(list(there.values())) or f"none among {few_names(list(others.values())) or 'nothing'}"
    raise SourceError(
        f"expected {wanted} of images, (N, H, W[, 3]) uint8 or encoded, in {public(location)}, found {found}: name it, "
        "as in FILE.h5#NAME, or store one picture as (1, H, W, 3) or in an image file"
    )


def _is_one_picture(dataset: h5py.Dataset) -> bool:
    """Return whether the axes are those of one picture: colours last, colours first, or as its attributes say."""
    if dataset.ndim != 3:
        return False
    if dataset.attrs.get("CLASS") in ("IMAGE", b"IMAGE") or dataset.shape[1] > dataset.shape[2] in COLOURS:
        return True
    beside = (n for names in NAMES.values() for n in names if _goes_with(dataset.parent.get(n), dataset))
    return dataset.shape[0] == RGB and next(beside, None) is None


def _holds_images(dataset: h5py.Dataset) -> bool:
    import h5py

    if dataset.ndim == 1:
        return bool(h5py.check_vlen_dtype(dataset.dtype) == np.uint8)
    pixels = (dataset.ndim == 3 and not _is_one_picture(dataset)) or (dataset.ndim == 4 and dataset.shape[3] in (1, 3))
    return (
        pixels
        and dataset.dtype == np.uint8
        and 0 not in dataset.shape[1:]
        and int(np.prod(dataset.shape[1:], dtype=object)) <= MAX_MEMBER_BYTES
    )


def _goes_with(beside: Any, images: h5py.Dataset) -> bool:
    """Return whether a data set has one value for each image; lists and references, as MATLAB's texts are, are none."""
    import h5py

    if not hasattr(beside, "shape") or not (
        beside.dtype.kind in "Siufb" or h5py.check_string_dtype(beside.dtype) is not None
    ):
        return False
    return beside.shape in (images.shape[:1], (images.shape[0], 1))


def _texts(dataset: h5py.Dataset) -> list[str]:
    """Return values as text, those of an enumeration by their names."""
    import h5py

    values = dataset[:].reshape(-1)
    names = h5py.check_enum_dtype(dataset.dtype) or {}
    if names and dataset.dtype.kind != "b":
        by_number = {number: name for name, number in names.items()}
        return [by_number.get(value, str(value)) for value in values.tolist()]
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else str(value) for value in values]
    return [
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        for value in values.tolist()
    ]


def _numbers(count: int) -> list[bytes]:
    return [b"%08d" % row for row in range(count)]
