"""The file itself: its structure, and how an empty one is laid out. `docs/format.md` specifies it.

All metadata is written once, here; afterwards only the *mutable* datasets change, by plain writes at fixed offsets.
HDF5's own structures are therefore never half written, and any reader can open the file at any moment.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from pipeline.core.items import HASH_BYTES
from pipeline.core.spec import FORMAT, canonical_json, fingerprint
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from pipeline.core.items import ItemTable
    from pipeline.core.shards import ShardRecord

FORMAT_VERSION = 1
ALIGNMENT = 4096
MAX_ROW_BYTES = 1 << 28
EMBEDDINGS = "embeddings"
LAYERS = "layers"
COLUMNS = "columns"
STATUS = "status"
CRC = "crc32"
LEDGER_CRC = "ledger_crc32"
CONTENT_HASH = "content_hash"
STATIC_SHA256 = "static_sha256"
KEYS = "keys"
LABELS = "labels"
LABEL_NAMES = "label_names"
SIZES = "source_size"
MTIMES = "source_mtime_ns"


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of a contiguous dataset's bytes in the file.

    Attributes
    ----------
    offset : int
        Bytes from the start of the file.
    shape : tuple of int
    dtype : np.dtype
        Little-endian.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def create(
    path: Path,
    items: ItemTable,
    *,
    widths: Mapping[str, int],
    dtype: DTypeLike,
    attributes: Mapping[str, str | int],
) -> None:
    """Lay out a complete file whose rows are all still to do, reserve its space, and make it durable.

    Parameters
    ----------
    path : Path
        Must not exist; the caller renames it into place.
    items : ItemTable
        The items of the rows.
    widths : mapping of str to int
        Embedding width of each layer; the first is the one that goes to `/embeddings`.
    dtype : data type
        float32 or float16.
    attributes : mapping of str to str or int
        Of the file, beside ``format`` and ``format_version``.

    Raises
    ------
    CacheError
        A full disk, a folder that cannot be written, a row above `MAX_ROW_BYTES`.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    too_wide = [name for name, width in widths.items() if width * kind.itemsize > MAX_ROW_BYTES]
    if too_wide:
        raise CacheError(
            f"a row of layer {too_wide[0]} would take {widths[too_wide[0]] * kind.itemsize} bytes: pool it"
        )
    try:
        with path.open("x+b", buffering=0) as raw:
            target = _Target(raw.fileno())
            _lay_out_hdf5(target, items, widths, kind, attributes)
            target.raise_any()
            # A full disk is an error now, not hours later. This also gives the file its final length.
            _allocate(raw.fileno(), os.fstat(raw.fileno()).st_size)
            extents = read_extents(path)
            os.pwrite(raw.fileno(), static_sha256(path, extents), extents[STATIC_SHA256].offset)
            os.fsync(raw.fileno())
    except OSError as error:
        raise CacheError(
            f"cannot write {path.parent}: {_os_reason(error)}: free space, or choose another output"
        ) from None


def write_hdf5(path: Path, fill: Callable[[h5py.File], object]) -> None:
    """Write a new HDF5 file of any content: a full disk is an `OSError`, of which HDF5 by itself crashes.

    Parameters
    ----------
    path : Path
        Must not exist.
    fill : callable
        Called with the open file.
    """
    with path.open("x+b", buffering=0) as raw:
        target = _Target(raw.fileno())
        try:
            with h5py.File(target, "w") as file:
                fill(file)
        finally:
            target.raise_any()


class _Target:
    """The file that HDF5 writes through: keeps an error for later, since HDF5 crashes when it closes on a full disk."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        self._error: OSError | None = None

    def raise_any(self) -> None:
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        data = os.pread(self._fd, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    read = None  # h5py asks whether it is there, and calls readinto

    def write(self, data: bytes | memoryview) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self._error is None:
                left = left[os.pwrite(self._fd, left, self._position + size - len(left)) :]
        except OSError as error:
            self._error = error
        self._position += size
        return size

    def truncate(self, size: int) -> int:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        """Do nothing: the sync at the end makes the file durable."""


def _lay_out_hdf5(
    target: _Target,
    items: ItemTable,
    widths: Mapping[str, int],
    kind: np.dtype[Any],
    attributes: Mapping[str, str | int],
) -> None:
    count = len(items)
    with h5py.File(
        target,
        "w",
        libver=("earliest", "v110"),
        alignment_threshold=1,
        alignment_interval=ALIGNMENT,
        track_order=False,
    ) as file:
        for name, value in {"format": FORMAT, "format_version": FORMAT_VERSION, **attributes}.items():
            _write_attribute(file, name, value)
        main, *others = widths
        _reserve(file, EMBEDDINGS, (count, widths[main]), kind)
        if others:
            layers = file.create_group(LAYERS)
            for name in others:
                _reserve(layers, name, (count, widths[name]), kind)
        _reserve(file, STATUS, (count,), np.dtype("u1"))
        _reserve(file, CRC, (count,), np.dtype("<u4"))
        _reserve(file, LEDGER_CRC, (count,), np.dtype("<u4"))
        _reserve(file, CONTENT_HASH, (count, HASH_BYTES), np.dtype("u1"))
        _write(file, KEYS, items.keys)
        _write(file, LABELS, items.labels.astype("<i4"))
        names = [name.encode("utf-8", "surrogateescape") for name in items.label_names]
        _write(file, LABEL_NAMES, np.array(names, dtype=np.bytes_))
        _write(file, SIZES, items.sizes.astype("<i8"))
        _write(file, MTIMES, items.mtimes_ns.astype("<i8"))
        columns = file.create_group(COLUMNS)
        for name, values in items.columns.items():
            _write(columns, column_name(name), _fixed_length(values))
        _reserve(file, STATIC_SHA256, (32,), np.dtype("u1"))


def column_name(name: str) -> str:
    """Return the name of a column inside the file: percent-encoded, since '/' would make a group.

    Examples
    --------
    >>> column_name("width/px")
    'width%2Fpx'
    """
    encoded = quote(name, safe=" ()[]{}<>,;:!?*+=@#$&'\"^_|~-", errors="surrogateescape")
    return encoded.replace(".", "%2E") if set(encoded) == {"."} else encoded


def original_column_name(name: str) -> str:
    """Return the name that `column_name` encoded."""
    return unquote(name, errors="surrogateescape")


def read_extents(path: Path) -> dict[str, Extent]:
    """Return where every dataset lies, by its path in the file.

    Raises
    ------
    CacheError
        A dataset is not contiguous, reaches past the end of the file, or the file is no HDF5.
    """
    extents: dict[str, Extent] = {}
    length = path.stat().st_size
    try:
        with open_hdf5(path) as file:
            for name, dataset in _datasets(file):
                offset = dataset.id.get_offset()
                extent = Extent(-1 if offset is None else int(offset), dataset.shape, dataset.dtype)
                if offset is None and extent.nbytes == 0:
                    extent = Extent(0, dataset.shape, dataset.dtype)
                if dataset.chunks is not None or extent.offset < 0:
                    raise CacheError(
                        f"expected {name} of {path} in one piece, found it chunked: it is not one of our caches"
                    )
                if extent.offset + extent.nbytes > length:
                    raise CacheError(
                        f"expected {extent.offset + extent.nbytes} bytes or more in {path}, found {length}: it was cut "
                        "off; restore it from a copy, or extract again"
                    )
                extents[name] = extent
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise not_a_cache(path, error) from None
    return extents


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, without HDF5's own lock: the project has its own writer lock, which never blocks readers."""
    return h5py.File(path, "r", locking=False)


def not_a_cache(path: Path, error: Exception | str) -> CacheError:
    """Return the error for a file that is something else."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return CacheError(f"expected a cache at {path}, found something else ({reason}): check the path")


def damaged(path: Path, what: str) -> CacheError:
    """Return the error for a cache whose content is not as it was written."""
    return CacheError(f"{path} is damaged: {what}: restore it from a copy, or extract again into a new file")


def check_is_file(path: Path) -> None:
    """Refuse a path where no file is.

    Raises
    ------
    CacheError
        Nothing is there, or a folder, a device or a pipe.
    """
    if path.is_dir():
        raise CacheError(f"expected a cache at {path}, found a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise CacheError(f"expected a cache at {path}, found something that is no file: check the path")
    if not path.is_file():
        raise CacheError(f"expected a cache at {path}, found nothing: run pipeline extract first, or check the path")


def check_format(path: Path, attributes: Mapping[str, Any]) -> None:
    """Refuse a file of another kind, or of a version of the format that this program does not know.

    Raises
    ------
    CacheError
        Names the version that was expected, and the one found.
    """
    if attributes.get("format") != FORMAT:
        raise not_a_cache(path, "an HDF5 file of another kind")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise CacheError(
            f"expected format version {FORMAT_VERSION} in {path}, found {attributes.get('format_version')}: use "
            "the version of this program that wrote it, or a newer one"
        )


def file_attributes(
    spec: Mapping[str, Any],
    *,
    versions: Mapping[str, str],
    self_check: Mapping[str, Any],
    source: Mapping[str, str],
    shard: ShardRecord | None = None,
) -> dict[str, str]:
    """Return the attributes of a cache file, for `create`.

    Parameters
    ----------
    spec : mapping
        All that produced the numbers.
    versions, self_check, source : mapping
        See `docs/format.md`.
    shard : ShardRecord, optional
        Which part of an item list the file holds.
    """
    attributes = {
        "spec": canonical_json(spec),
        "fingerprint": fingerprint(spec),
        "versions": canonical_json(versions),
        "self_check": canonical_json(self_check),
        "source": canonical_json(source),
    }
    return attributes if shard is None else {**attributes, "shard": shard.to_json()}


def is_mutable(name: str) -> bool:
    """Return whether a dataset changes after creation."""
    return name in (EMBEDDINGS, STATUS, CRC, LEDGER_CRC, CONTENT_HASH) or name.startswith(LAYERS + "/")


def static_sha256(path: Path, extents: Mapping[str, Extent]) -> bytes:
    """Hash everything that never changes after creation: HDF5's metadata, item list, attributes, gaps."""
    holes = sorted(
        (extent.offset, extent.offset + extent.nbytes)
        for name, extent in extents.items()
        if is_mutable(name) or name == STATIC_SHA256
    )
    digest, position = hashlib.sha256(), 0
    with path.open("rb") as raw:
        for start, stop in [*holes, (path.stat().st_size, 0)]:
            raw.seek(position)
            while position < start:
                block = raw.read(min(1 << 20, start - position))
                if not block:
                    break
                digest.update(block)
                position += len(block)
            position = max(position, stop)
    return digest.digest()


def row_crcs(rows: NDArray[np.int64], pieces: Sequence[NDArray[Any]]) -> NDArray[np.uint32]:
    """Return the checksum of each row: CRC-32 of its bytes in all pieces, seeded with the row number.

    Parameters
    ----------
    rows : (n,) int64
        Row numbers.
    pieces : sequence of (n, …) array
        What belongs to the rows, e.g. an array per layer, in the file's order.

    Examples
    --------
    >>> import zlib
    >>> int(row_crcs(np.array([7]), [np.array([[1, 2]], np.uint8)])[0]) == zlib.crc32(bytes([1, 2]), 7)
    True
    """
    crcs = (rows & 0xFFFFFFFF).tolist()
    for piece in pieces if crcs else ():
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        width = len(data) // len(crcs)
        crcs = [zlib.crc32(data[i * width : (i + 1) * width], crc) for i, crc in enumerate(crcs)]
    return np.array(crcs, dtype="<u4")


def ledger_crcs(
    rows: NDArray[np.int64], statuses: NDArray[np.uint8], crcs: NDArray[np.uint32], hashes: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Return the checksum of each row's status, checksum and content hash, seeded with the row number."""
    lines = np.concatenate(
        [
            statuses.reshape(-1, 1),
            crcs.astype("<u4").reshape(-1, 1).view(np.uint8),
            hashes.reshape(-1, HASH_BYTES),
        ],
        axis=1,
    )
    return row_crcs(rows, [lines])


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    for name, member in file.items():
        if isinstance(member, h5py.Dataset):
            yield name, member
        elif isinstance(member, h5py.Group):
            yield from (
                (f"{name}/{inner}", dataset) for inner, dataset in member.items() if isinstance(dataset, h5py.Dataset)
            )


def _reserve(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5d.DatasetID:
    """Create a contiguous dataset that is allocated at once and never filled."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.CONTIGUOUS)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # the same content gives the same bytes
    if dtype.kind == "S":
        kind = h5t.py_create(h5py.string_dtype("utf-8", dtype.itemsize), logical=True)
    else:
        kind = h5t.py_create(dtype, logical=True)
    return h5d.create(group.id, name.encode("utf-8", "surrogateescape"), kind, h5s.create_simple(shape), dcpl=plan)


def _write(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind == "S" and values.dtype.itemsize == 0:
        values = values.astype("S1")
    dataset = _reserve(group, name, values.shape, values.dtype)
    if len(values):
        dataset.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(values), mtype=dataset.get_type())


def _write_attribute(file: h5py.File, name: str, value: str | int) -> None:
    if isinstance(value, int):
        file.attrs.create(name, value, dtype="<i8")
    else:
        encoded = value.encode()
        file.attrs.create(name, np.bytes_(encoded), dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def _fixed_length(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "U":
        return np.char.encode(values, "utf-8", "surrogateescape") if len(values) else values.astype("S1")
    if values.dtype.kind == "b":
        return values.astype("u1")
    return values.astype(values.dtype.newbyteorder("<"))


def _allocate(fd: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, length)
    else:  # macOS: the space is not reserved, see docs/format.md
        os.ftruncate(fd, length)


def _os_reason(error: OSError) -> str:
    return error.strerror or str(error).splitlines()[0]
