"""A CSV or Parquet table with a ``path`` column, and ``label``, ``split``, ``group`` and more if there are any."""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.core.names import other_forms
from pipeline.errors import SourceError, few_names, first_line
from pipeline.sources.arrow_table import choose_columns, frame_of
from pipeline.sources.base import FileReader, Source, encode_labels, in_threads, key_array, public_names
from pipeline.sources.columns import NAMES, column_values, empty_cells, label_texts, without_unfit
from pipeline.sources.files import relative
from pipeline.sources.retries import Patience
from pipeline.sources.store import IN_PROCESS, File, open_store
from pipeline.sources.text_table import read_text_table
from pipeline.sources.urls import is_url, public

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    import pandas as pd
    from numpy.typing import NDArray

PARQUET_MAGIC = b"PAR1"
UNSEEN, MISSING = (-1, -1), (-1, -2)
TEXT_COLUMNS = ("key", "path", "label", "split", "group")


class TableSource(Source):
    """The images that a table names, in its order.

    Paths are relative to the table's folder, or absolute, or URLs. The key is the column ``key`` where there is one,
    else the path as written, a URL without its credentials. URLs are not inspected in advance: a row whose image is
    missing there fails. An empty cell is a missing value. ``label`` is a class name even where it looks like a number;
    further columns keep their type. A list of Parquet becomes text, its elements joined by ``|``. See
    `pipeline.sources.columns.without_unfit` for what is left out.

    Parameters
    ----------
    location : str
        The table: Parquet by its first bytes, otherwise text with a header, see `pipeline.sources.text_table`.
    allow_missing : bool
        Keep rows whose file does not exist (they become failed rows) instead of refusing the table.

    Raises
    ------
    SourceError
        Not a table, no ``path`` column, an empty path or key, a repeated one, or files that do not exist.
    """

    kind = "table"

    def __init__(self, location: str, *, allow_missing: bool = False) -> None:
        self.location, shown = location, public(location)
        frame, unread = read_table(location)
        _check_paths(frame, unread, shown)
        written = frame["path"].astype(str).tolist()
        self._remote = is_url(location)
        self._folder = os.fsencode(
            posixpath.dirname(location.partition("?")[0])
            if self._remote
            else os.path.abspath(os.path.dirname(location))
        )
        self._has_keys = "key" in frame
        keys = key_array(
            [os.fsencode(key) for key in (_keys(frame, shown) if self._has_keys else self._names(written))]
        )
        paths = [os.fsencode(path) for path in written]
        self._paths = np.array(paths, dtype=np.bytes_)
        _check_stores(written)
        sizes, mtimes = self._stat(paths, allow_missing=allow_missing)
        labels, names = encode_labels(label_texts(frame["label"])) if "label" in frame else no_labels(len(frame))
        frame, unfit = without_unfit(frame.drop(columns=["path", "label", "key"], errors="ignore"))
        self.skipped = [*unread, *unfit]
        self.items = ItemTable(
            keys=keys,
            labels=labels,
            label_names=names,
            sizes=sizes,
            mtimes_ns=mtimes,
            columns={str(name): column_values(frame[name], text=name in NAMES) for name in frame.columns},
        )

    def _names(self, written: list[str]) -> list[str]:
        """Return the paths as keys, without credentials."""
        if not self._remote:
            return public_names(written)
        folder = os.fsdecode(self._folder)
        whole = public_names([path if is_url(path) else posixpath.join(folder, path) for path in written])
        return [
            name if is_url(path) else relative(name, public(folder)) for name, path in zip(whole, written, strict=True)
        ]

    def locator(self, i: int) -> bytes:
        """Return the path of item ``i`` as the table gives it, including credentials."""
        return bytes(self._paths[i])

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache; by keys of its own only the table itself finds them."""
        if self._remote or self._has_keys:
            return super().describe()
        return {**super().describe(), "root": os.fsdecode(self._folder)}

    def reader(self) -> Reader:
        """Return a reader of files relative to the table's folder."""
        return PathReader(self._folder)

    @property
    def in_process(self) -> bool:
        """Whether only this process can read some of the files."""
        schemes = tuple(f"{name}://".encode() for name in IN_PROCESS)
        return self._folder.startswith(schemes) or any(path.startswith(schemes) for path in self._paths.tolist())

    def _stat(self, paths: list[bytes], *, allow_missing: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        def look(path: bytes) -> tuple[int, int]:
            if self._remote or is_url(os.fsdecode(path)):
                return UNSEEN
            for one in (path, *map(os.fsencode, other_forms(os.fsdecode(path)))):
                with contextlib.suppress(OSError, ValueError):
                    info = os.stat(os.path.join(self._folder, one))
                    return info.st_size, info.st_mtime_ns
            return MISSING

        found = np.array(list(in_threads(look, paths)), dtype=np.int64).reshape(-1, 2)
        missing = np.flatnonzero(found[:, 1] == MISSING[1])
        if len(missing) and not allow_missing:
            first = os.fsdecode(paths[missing[0]])
            raise SourceError(
                f"row {missing[0] + 1} of {public(self.location)} names {first}, which does not exist in the table's "
                f"folder {os.fsdecode(self._folder)} ({len(missing)} of {len(paths)} rows): correct the paths, put the "
                "table where they start, or pass --allow-missing to make them failed rows"
            )
        found = np.maximum(found, -1)
        return found[:, 0].copy(), found[:, 1].copy()


def columns_of(frame: pd.DataFrame, unread: Sequence[Skipped]) -> str:
    """Return the columns of a table for messages, with those that are left out and why."""
    return "; ".join([few_names(list(frame.columns)) or "no others", *(skip.reason for skip in unread[:3])])


def _check_paths(frame: pd.DataFrame, unread: Sequence[Skipped], shown: str) -> None:
    """Refuse a table without paths, or with an empty one."""
    if "path" not in frame.columns:
        raise SourceError(
            f"expected a column 'path' in {shown}, found {columns_of(frame, unread)}: rename the column that "
            "holds the image files"
        )
    if frame.empty:
        raise SourceError(f"expected images in {shown}, found a table without rows: add a row per image")
    _check_filled(frame, "path", shown)


def _keys(frame: pd.DataFrame, shown: str) -> list[str]:
    _check_filled(frame, "key", shown)
    return [str(key) for key in frame["key"]]


def _check_filled(frame: pd.DataFrame, column: str, shown: str) -> None:
    empty = empty_cells(frame[column])
    if len(empty):
        raise SourceError(
            f"expected a {column} in every row of {shown}, row {empty[0] + 1} has none ({len(empty)} such rows): "
            "fill them in or remove them"
        )


def _check_stores(paths: Sequence[str]) -> None:
    """Refuse URLs whose file system needs a package that is missing; without this every row would fail for it."""
    for url in {path.partition("://")[0]: path for path in paths if is_url(path)}.values():
        open_store(url)


@dataclass(frozen=True, slots=True)
class PathReader:
    """Reads files below a folder, and URLs.

    Parameters
    ----------
    root : bytes
        Folder, or URL of one, that relative paths start from.
    """

    root: bytes

    def __call__(self, locator: bytes) -> bytes:
        """Return the file's bytes; raises `OSError`."""
        url = os.fsdecode(locator)
        if is_url(root := os.fsdecode(self.root)) and not is_url(url):
            url = posixpath.join(root, url)
        if not is_url(url):
            read = FileReader(self.root)
            try:
                return read(locator)
            except FileNotFoundError:
                for other in other_forms(url):
                    with contextlib.suppress(OSError):
                        return read(os.fsencode(other))
                raise
        store, path = open_store(url)
        return store.read_all(File(path))


def read_table(location: str, text: Sequence[str] = TEXT_COLUMNS) -> tuple[pd.DataFrame, list[Skipped]]:
    """Read a CSV or Parquet table, at a path or URL, and name the columns that a cache cannot hold.

    Columns in ``text`` are text even where they look like numbers; see `pipeline.sources.text_table` and
    `pipeline.sources.arrow_table`.

    Raises
    ------
    SourceError
        It is not a table, or cannot be read.
    """
    path = public(location)
    try:
        store, place = open_store(location)
        with store.open(store.look(place), Patience()) as file:
            is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
            file.seek(0)
            if is_parquet:
                return _read_parquet(file, path)
            return read_text_table(file, path, text), []
    except OSError as error:
        raise SourceError(f"cannot read the table {path}: {public(error.strerror or first_line(error))}") from None


def _read_parquet(file: BinaryIO, shown: str) -> tuple[pd.DataFrame, list[Skipped]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        chosen = choose_columns(parquet, bytes_of=("key", "path"))
        return frame_of(parquet.read(columns=chosen.names), chosen.class_names), chosen.skipped
    except MemoryError:  # Arrow's own is both
        raise
    except SourceError as error:
        raise SourceError(f"{shown}: {error}") from None
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise SourceError(f"cannot read {shown} as a table: {first_line(error)}: make it again") from None


def no_labels(count: int) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return labels and label names of items without any."""
    return np.full(count, -1, dtype=np.int32), ()
