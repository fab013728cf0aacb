"""Parquet files with a column of encoded images: plain binary, or Hugging Face's ``struct<bytes, path>``."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from pipeline.core.columns import concatenated
from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.errors import SourceError, few_names, first_line
from pipeline.sources.archive import key_prefixes
from pipeline.sources.arrow_table import choose_columns, frame_of
from pipeline.sources.base import MAX_MEMBER_BYTES, Source, encode_labels, in_threads, key_array
from pipeline.sources.columns import NAMES, column_values, empty_cells, label_texts, without_unfit
from pipeline.sources.retries import Patience
from pipeline.sources.store import LocalStore
from pipeline.sources.table import no_labels
from pipeline.sources.urls import public

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.sources.store import File, Store

BATCH_ROWS = 64
"""Most rows that are read together: a row group may be larger than memory."""
BATCH_BYTES = 16 << 20
"""Approximate unpacked bytes that are read together: fewer rows than `BATCH_ROWS` for large images."""
BATCHES_KEPT = 4
KEPT_BYTES = BATCHES_KEPT * BATCH_BYTES
"""Bytes of batches kept per file, except for a single batch that is larger."""
FILES_KEPT = 2
"""Number of files whose batches a process keeps: at the end of a file, threads read from two."""
KEY_COLUMNS = ("key", "__key__")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value of a partition whose rows have none."""


class ParquetSource(Source):
    """The images in a column of one or more Parquet files; every row is an item.

    A key is the column ``key`` where there is one, else the path that the image column holds where every row has its
    own, else the row's number; with several files the file's name goes before it. Folders such as ``label=cat`` that
    differ between the files are columns, where the files have none of that name. ``label`` (by name where Hugging
    Face's metadata give names), ``split``, ``group`` and further columns are kept in their types, as
    `pipeline.sources.arrow_table` and `pipeline.sources.columns` state; what is left out is named.

    Parameters
    ----------
    location : str
        What the user named.
    store : Store
    files : sequence of File
    column : str, optional
        The image column; found by its type otherwise.

    Raises
    ------
    SourceError
        A file cannot be read, or no column, or more than one, could be the images.
    """

    kind = "parquet"

    def __init__(self, location: str, store: Store, files: Sequence[File], column: str | None = None) -> None:
        self.location = location
        self._store, self._files = store, tuple(files)
        parts = list(in_threads(lambda file: _look(store, file, column, location), files))
        self._column = parts[0].column
        differing = next((part for part in parts if part.column != self._column), None)
        if differing is not None:
            raise SourceError(
                f"expected the image column {self._column!r} in every file of {public(location)}, found "
                f"{differing.column!r} in one: name files of the same columns"
            )
        groups = [(number, group, rows) for number, part in enumerate(parts) for group, rows in enumerate(part.groups)]
        self._groups = np.array([(number, group) for number, group, _ in groups], dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
        total = int(self._ends[-1]) if len(self._ends) else 0
        if not total:
            raise SourceError(f"expected images in {public(location)}, found no rows: name another file")
        prefixes = key_prefixes([file.path for file in files])
        for prefix, part in zip(prefixes, parts, strict=True):
            _add_columns(part.frame, partition_values(os.fsdecode(prefix)))
        skips = {skip.key: skip for part in parts for skip in part.skipped}
        self.skipped = list(skips.values())
        if any("label" in part.frame for part in parts):
            texts = [
                label_texts(part.frame["label"]) if "label" in part.frame else [None] * len(part.frame)
                for part in parts
            ]
            labels, names = encode_labels([text for part in texts for text in part])
        else:
            labels, names = no_labels(total)
        columns = [name for part in parts for name in part.frame.columns if name != "label" and name not in skips]
        counts = [sum(part.groups) for part in parts]
        self.items = ItemTable(
            keys=key_array([prefix + key for prefix, part in zip(prefixes, parts, strict=True) for key in part.keys]),
            labels=labels,
            label_names=names,
            sizes=np.full(total, -1, dtype=np.int64),
            mtimes_ns=np.repeat(np.array([file.stamp for file in files], dtype=np.int64), counts),
            columns={
                str(name): concatenated(
                    [
                        column_values(part.frame[name], text=name in NAMES) if name in part.frame else None
                        for part in parts
                    ],
                    counts,
                )
                for name in dict.fromkeys(columns)
            },
        )

    def locator(self, i: int) -> tuple[int, int, int]:
        """Return file, row group, and row in the group of item ``i``."""
        at = int(np.searchsorted(self._ends, i, side="right"))
        number, group = self._groups[at].tolist()
        return number, group, i - (int(self._ends[at - 1]) if at else 0)

    def reader(self) -> Reader:
        """Return a reader of rows."""
        return ParquetReader(self._store, self._files, self._column)


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads images row by row; goes through a row group in small batches, and keeps the latest.

    Parameters
    ----------
    store : Store
    files : tuple of File
    column : str
    """

    store: Store
    files: tuple[File, ...]
    column: str

    def __call__(self, locator: tuple[int, int, int]) -> bytes:
        """Return the image's bytes; raises `OSError`."""
        number, group, row = locator
        import pyarrow as pa

        batches = _batches(self.store, self.files[number], self.column)
        try:
            value = batches.row(group, row)
        except MemoryError:  # Arrow's own is both
            raise
        except pa.ArrowException as error:
            raise OSError(errno.EIO, f"damaged in the file: {first_line(error)}") from None
        if value is None:
            raise OSError(errno.ENODATA, "the row holds no bytes")
        if len(value) > MAX_MEMBER_BYTES:
            raise OSError(errno.EFBIG, f"image of {len(value)} bytes, above {MAX_MEMBER_BYTES}")
        return value


class _Batches:
    """The image column of one file; threads may share it."""

    def __init__(self, store: Store, file: File, column: str) -> None:
        self._parquet = _open(store, file)
        self._path = column + ".bytes" if _is_struct(self._parquet, column) else column
        self._lock = threading.Lock()
        self._rows: dict[int, int] = {}
        self._kept: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._under_way: tuple[int, int, Iterator[pa.RecordBatch]] | None = None

    def row(self, group: int, row: int) -> bytes | None:
        """Return the bytes in a row of a group."""
        with self._lock:
            if (rows := self._rows.get(group, 0)) == 0:
                rows = self._rows[group] = self._rows_together(group)
            number, place = divmod(row, rows)
            values = self._kept.get((group, number))
            if values is None:
                values = self._fetch(group, number, rows)
        value: bytes | None = values[place].as_py()
        return value

    def _rows_together(self, group: int) -> int:
        """Return how many rows of a group are read together, by the mean size of their images."""
        about = self._parquet.metadata.row_group(group)
        size = sum(
            column.total_uncompressed_size
            for column in map(about.column, range(about.num_columns))
            if column.path_in_schema == self._path
        )
        return max(1, min(BATCH_ROWS, int(BATCH_BYTES * about.num_rows // max(size, 1))))

    def _fetch(self, group: int, number: int, rows: int) -> pa.Array:
        """Advance to a batch from the last one, or from the start of its group."""
        if self._under_way is None or self._under_way[0] != group or self._under_way[1] > number:
            batches = self._parquet.iter_batches(rows, row_groups=[group], columns=[self._path], use_threads=False)
            self._under_way = group, 0, batches
        _, at, batches = self._under_way
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                self._under_way = None  # another attempt begins the group again
                raise
            if batch is None:
                self._under_way = None
                raise OSError(errno.EIO, "the row group ends before it")
            values = batch.column(0)
            if hasattr(values, "field") and values.type.num_fields:  # of the struct, only the bytes were read
                values = values.field(0) if values.null_count == 0 else _bytes_of(values)
            self._kept[group, at] = values
            while len(self._kept) > 1 and self._is_full():
                self._kept.popitem(last=False)
            at += 1
            self._under_way = group, at, batches
            if at > number:
                return values

    def _is_full(self) -> bool:
        return len(self._kept) > BATCHES_KEPT or sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES


@functools.lru_cache(FILES_KEPT)
def _batches(store: Store, file: File, column: str) -> _Batches:
    return _Batches(store, file, column)


def _bytes_of(values: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.struct_field(values, 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """The metadata of one file: rows per group, image column, keys, further columns, and columns left out."""

    groups: list[int]
    column: str
    keys: list[bytes]
    frame: pd.DataFrame
    skipped: list[Skipped]


def _open(store: Store, file: File, patience: Patience | None = None) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # A buffered stream reads a column page by page; without it a row group is read at once.
    if isinstance(store, LocalStore):
        store.check(file)
        place: str | BinaryIO = file.path
    else:
        place = store.open(file, patience)
    return pq.ParquetFile(place, buffer_size=1 << 20, pre_buffer=False)


def _look(store: Store, file: File, column: str | None, location: str) -> _Part:
    import pyarrow as pa

    try:
        parquet = _open(store, file, Patience())
        chosen = _image_column(parquet.schema_arrow, column, location)
        groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        columns = choose_columns(parquet, bytes_of=KEY_COLUMNS, ignore=(chosen,))
        frame = frame_of(parquet.read(columns=columns.names), columns.class_names)
        keys = _keys(parquet, frame, chosen)
    except MemoryError:
        raise
    except SourceError as error:
        raise SourceError(f"{public(file.path)}: {error}") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SourceError(
            f"cannot read the Parquet file {public(file.path)}: {public(first_line(error))}: make it again"
        ) from None
    frame, unfit = without_unfit(frame.drop(columns=list(KEY_COLUMNS), errors="ignore"))
    return _Part(groups, chosen, keys, frame, [*columns.skipped, *unfit])


def _keys(parquet: pq.ParquetFile, frame: pd.DataFrame, column: str) -> list[bytes]:
    for name in KEY_COLUMNS:
        if name in frame:
            if missing := len(empty_cells(frame[name])):
                raise SourceError(
                    f"expected a {name} in every row, found {missing} without: fill them in or remove them"
                )
            return [os.fsencode(str(value)) for value in frame[name]]
    count = parquet.metadata.num_rows
    if _is_struct(parquet, column) and any(field.name == "path" for field in parquet.schema_arrow.field(column).type):
        read = parquet.read(columns=[f"{column}.path"]).column(0).combine_chunks()
        paths = [value and value.get("path") for value in read.to_pylist()]
        if all(paths) and len(set(paths)) == count:
            return [os.fsencode(path) for path in paths]
    return [b"%08d" % row for row in range(count)]


def partition_values(prefix: str) -> dict[str, str | None]:
    """Return the columns that folders of a partitioned table name, as Spark, Hive and Arrow write them.

    Examples
    --------
    >>> partition_values("split=test/label=sea%20otter/0.parquet/"), partition_values("cat/a=b.parquet/")
    ({'split': 'test', 'label': 'sea otter'}, {})
    """
    folders = [folder.partition("=") for folder in prefix.split("/")[:-2]]
    found = {unquote(name): unquote(value) for name, sign, value in folders if sign and name}
    return {name: None if value == NO_PARTITION else value for name, value in found.items() if name not in KEY_COLUMNS}


def _add_columns(frame: pd.DataFrame, values: dict[str, str | None]) -> None:
    """Add a column for each value that a table has no column of."""
    import pandas as pd

    for name, value in values.items():
        if name not in frame:
            frame[name] = pd.Series([value] * len(frame), index=frame.index, dtype=object)


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that could be images, by type."""
    import pyarrow as pa

    def binary(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")

    return [
        field.name
        for field in schema
        if binary(field.type)
        or (pa.types.is_struct(field.type) and any(f.name == "bytes" and binary(f.type) for f in field.type))
    ]


def _image_column(schema: pa.Schema, asked: str | None, location: str) -> str:
    there = image_columns(schema)
    if asked is not None and asked in there:
        return asked
    named = [name for name in there if name.lower() in ("image", "img")]
    if asked is None and (len(named) == 1 or len(there) == 1):
        return named[0] if len(named) == 1 else there[0]
    wanted = f"the column {asked!r} of image bytes" if asked else "one column of image bytes"
    found = few_names(there) or f"none among {few_names(schema.names)}"
    raise SourceError(f"expected {wanted} in {public(location)}, found {found}: name it, as in FILE.parquet#COLUMN")


def _is_struct(parquet: pq.ParquetFile, column: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(parquet.schema_arrow.field(column).type))
