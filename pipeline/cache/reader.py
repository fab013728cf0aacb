"""Reading a cache: one object with the arrays of the file, mapped and not copied. Does not import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import format as fmt
from pipeline.cache.failures import read_reasons
from pipeline.cache.structure import JSON_ATTRIBUTES, structural_faults
from pipeline.core.files import file_identity
from pipeline.core.items import ItemTable
from pipeline.core.maps import map_file
from pipeline.core.shards import ShardRecord
from pipeline.core.spec import FORMAT, PENULTIMATE, stated
from pipeline.errors import CacheError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from pipeline.cache.format import Extent

_NAMED = 5
"""Faults that an error names."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What h5py raises of a file that it cannot read."""


class LazyArrays(Mapping[str, "NDArray[Any]"]):
    """Arrays by name, each made at its first use and kept."""

    def __init__(self, names: Iterable[str], make: Callable[[str], NDArray[Any]]) -> None:
        self._made: dict[str, NDArray[Any] | None] = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> NDArray[Any]:
        found = self._made[name]
        if found is None:
            found = self._made[name] = self._make(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return f"<arrays, each read when asked for: {', '.join(self._made) or 'none'}>"


class Cache:
    """A cache of embeddings, open for reading; also while it is being written.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    CacheError
        It is missing, not a cache, damaged in structure, or of a newer format.

    Attributes
    ----------
    path : Path
    fingerprint : str
    spec, versions, self_check, source : dict
        See `docs/format.md`.
    shard : ShardRecord or None
        Which part of an item list this is, where it is one.

    Notes
    -----
    Row arrays are maps of the file, not HDF5 reads: HDF5 would buffer rows of a file that is still growing.
    """

    image_reader: Callable[[int], bytes] | None = None
    """Row → bytes, once `pipeline.sources.reopen.image_bytes` has opened the source."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._absolute = self.path.absolute()  # the process may change its folder before this is pickled
        fmt.check_is_file(self.path)
        attributes, self._extents, self._bytes = _mapped(self.path)
        if faults := structural_faults(attributes, self._extents):
            raise fmt.damaged(self.path, "; ".join(faults[:_NAMED]))
        parsed = {name: json.loads(attributes[name]) for name in JSON_ATTRIBUTES}
        self.fingerprint = str(attributes["fingerprint"])
        self.spec: dict[str, Any] = stated(parsed["spec"], f"the spec of {self.path}")
        self.versions: dict[str, str] = parsed["versions"]
        self.self_check: dict[str, Any] = parsed["self_check"]
        self.source: dict[str, str] = stated(parsed["source"], f"the source of {self.path}")
        record = attributes.get("shard")
        self.shard: ShardRecord | None = None if record is None else ShardRecord.from_json(record)

    def __len__(self) -> int:
        return self._extents[fmt.EMBEDDINGS].shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, not the rows: another process, such as a data loader's, maps the file itself."""
        return _reopen, (str(self._absolute), self._map(fmt.STATIC_SHA256).tobytes())

    def __repr__(self) -> str:
        return f"<Cache {self.path}: {len(self)} × {self.width}, {self.spec.get('backbone')}>"

    @property
    def width(self) -> int:
        """Embedding width D of the penultimate layer."""
        return self._extents[fmt.EMBEDDINGS].shape[1]

    @property
    def widths(self) -> dict[str, int]:
        """Embedding width of every layer by name."""
        return {name: rows.shape[1] for name, rows in self.layers.items()}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the embeddings."""
        return self._extents[fmt.EMBEDDINGS].dtype

    @cached_property
    def embeddings(self) -> NDArray[Any]:
        """(N, D) map of the penultimate layer; the contents of rows that are not done are undefined."""
        return self._map(fmt.EMBEDDINGS)

    @cached_property
    def layers(self) -> Mapping[str, NDArray[Any]]:
        """(N, D) map of every layer by name, ``penultimate`` first."""
        prefix = fmt.LAYERS + "/"
        others = {name.removeprefix(prefix): self._map(name) for name in self._extents if name.startswith(prefix)}
        return {PENULTIMATE: self.embeddings, **others}

    def layer(self, name: str) -> NDArray[Any]:
        """Return the (N, D) map of a layer.

        Raises
        ------
        CacheError
            The cache has no such layer.
        """
        if name not in self.layers:
            raise CacheError(f"{self.path} has no layer {name!r}: {near_names(name, self.layers)}")
        return self.layers[name]

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """(N,) map: 0 to do, 1 done, 2 and up failed (see `pipeline.core.items.Status`)."""
        return self._map(fmt.STATUS)

    @cached_property
    def crc32(self) -> NDArray[np.uint32]:
        """(N,) map of the rows' checksums."""
        return self._map(fmt.CRC)

    @cached_property
    def ledger_crc32(self) -> NDArray[np.uint32]:
        """(N,) map of the checksums of status, checksum and content hash."""
        return self._map(fmt.LEDGER_CRC)

    @cached_property
    def content_hash(self) -> NDArray[np.uint8]:
        """(N, 16) map: BLAKE2b of the bytes handed to the decoder; zeros where none were read."""
        return self._map(fmt.CONTENT_HASH)

    @cached_property
    def items(self) -> ItemTable:
        """The item list, its keys as bytes.

        Raises
        ------
        CacheError
            A label has no name, or two classes have the same one.
        """
        labels, names = self._map(fmt.LABELS), tuple(texts(self._map(fmt.LABEL_NAMES)).tolist())
        # A label of -2 would be taken for the last class but one.
        if len(labels) and not -1 <= labels.min() <= labels.max() < len(names):
            raise fmt.damaged(self.path, f"it has labels from {labels.min()} to {labels.max()} of {len(names)} classes")
        if len(set(names)) < len(names):
            raise fmt.damaged(self.path, "two of its classes have the same name")
        return ItemTable(
            keys=self._map(fmt.KEYS),
            labels=labels,
            label_names=names,
            sizes=self._map(fmt.SIZES),
            mtimes_ns=self._map(fmt.MTIMES),
            columns=LazyArrays(
                (
                    fmt.original_column_name(name.removeprefix(fmt.COLUMNS + "/"))
                    for name in self._extents
                    if name.startswith(fmt.COLUMNS + "/")
                ),
                self.column,
            ),
        )

    @cached_property
    def keys(self) -> NDArray[np.str_]:
        """(N,) keys as text; bytes that are not UTF-8 come as surrogate escapes."""
        return texts(self.items.keys)

    def keys_of(self, rows: slice | NDArray[np.int64]) -> NDArray[np.str_]:
        """Return the keys of some rows, as `keys`, without decoding the others."""
        return texts(self.items.keys[rows])

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) index into ``label_names``; -1 for none."""
        return self.items.labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names."""
        return self.items.label_names

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """(N,) array of every further column by name."""
        return self.items.columns

    def column(self, name: str, rows: slice | NDArray[np.int64] = slice(None)) -> NDArray[Any]:
        """Return a further column, or some rows of it: only these are decoded to text."""
        values = self._map(f"{fmt.COLUMNS}/{fmt.column_name(name)}")[rows]
        if values.dtype.kind == "S":
            return texts(values)
        return values.view(np.bool_) if values.dtype == np.uint8 else values

    def reasons(self) -> dict[int, str]:
        """Return why rows failed, by row, from the file beside the cache; rows since fixed are left out."""
        by_key = read_reasons(self.path)
        keys = self.items.keys
        failed = np.flatnonzero(self.status > 1).tolist() if by_key else []
        return {row: by_key[key] for row in failed if (key := os.fsdecode(bytes(keys[row]))) in by_key}

    def part_of(self, row: int) -> tuple[Cache, int]:
        """Return the cache that holds a row's image, and the row's number there: of a single file, itself."""
        return self, row

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def extent(self, name: str) -> Extent:
        """Return where a dataset lies in the file."""
        return self._extents[name]

    def _map(self, name: str) -> NDArray[Any]:
        extent = self._extents[name]
        if extent.nbytes == 0:
            return np.zeros(extent.shape, extent.dtype)
        return self._bytes[extent.offset : extent.offset + extent.nbytes].view(extent.dtype).reshape(extent.shape)


def _mapped(path: Path) -> tuple[dict[str, Any], dict[str, Extent], NDArray[np.uint8]]:
    """Return the attributes of a file, where its datasets lie, and a map of the very file that these belong to.

    All arrays come from this one map: an update may put another file in the place of this one at any moment, whose
    rows would be taken for those of the list that was read before.
    """
    while True:
        try:
            with path.open("rb") as file:
                with fmt.open_hdf5(path) as opened:
                    attributes = {name: _plain(value) for name, value in opened.attrs.items()}
                fmt.check_format(path, attributes)
                extents = fmt.read_extents(path)
                mapped = map_file(file)
                if file_identity(path.stat()) == file_identity(os.fstat(file.fileno())):
                    return attributes, extents, mapped
        except PermissionError as error:
            raise CacheError(f"cannot read {path} ({error.strerror}): change its permissions") from None
        except _UNREADABLE as error:
            raise fmt.not_a_cache(path, error) from None


def is_cache(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file says that it is a cache; of a file of another kind only the first bytes are read."""
    try:
        return _begins_as_hdf5(path) and _says_cache(Path(path))
    except _UNREADABLE:
        return False


def may_be_damaged(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file that cannot be opened as a cache may have been one: HDF5 cannot read it, or it says so."""
    try:
        return _begins_as_hdf5(path) and _says_cache(Path(path))
    except _UNREADABLE:
        return True


def _begins_as_hdf5(path: str | os.PathLike[str]) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError:
        return False


def _says_cache(path: Path) -> bool:
    with fmt.open_hdf5(path) as opened:
        return bool(_plain(opened.attrs.get("format")) == FORMAT)


def _reopen(path: str, static_sha256: bytes) -> Cache:
    cache = Cache(path)
    if cache._map(fmt.STATIC_SHA256).tobytes() != static_sha256:
        raise CacheError(f"expected the cache that was open at {path}, found another in its place: open it again")
    return cache


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def texts(values: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Decode the file's text; bytes that are not UTF-8 come as surrogate escapes."""
    return np.char.decode(values, "utf-8", "surrogateescape") if len(values) else values.astype(np.str_)
