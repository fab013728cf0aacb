"""A CSV or Parquet table with a ``path`` column, and ``label``, ``split``, ``group`` and more if there are any."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import ItemTable, Reader, Skipped
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.errors import SourceError, first_line
from pipeline.sources.base import MAX_TEXT, FileReader, Source, encode_labels, in_threads, key_array, public_names
from pipeline.sources.files import relative
from pipeline.sources.store import IN_PROCESS, open_store
from pipeline.sources.urls import is_url, public

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

PARQUET_MAGIC = b"PAR1"
UNSEEN, MISSING = (-1, -1), (-1, -2)
TEXT_COLUMNS = ("key", "path", "label", "split", "group")


class TableSource(Source):
    """The images that a table names, in its order.

    Paths are relative to the table's folder, or absolute, or URLs; the path as written is the key, a URL without its
    credentials. URLs are not inspected in advance: a row whose image is missing there fails. An empty
    cell is a missing value. ``label`` is a class name even where it looks like a number; further columns keep their
    type. A list of Parquet becomes text, its elements joined by ``|``. See `without_long_texts` for what is left out.

    Parameters
    ----------
    location : str
        The table: Parquet by its first bytes, CSV (UTF-8) otherwise.
    allow_missing : bool
        Keep rows whose file does not exist (they become failed rows) instead of refusing the table.

    Raises
    ------
    SourceError
        Not a table, no ``path`` column, an empty or repeated path, or files that do not exist.
    """

    kind = "table"

    def __init__(self, location: str, *, allow_missing: bool = False) -> None:
        self.location, shown = location, public(location)
        frame = read_table(location)
        if "path" not in frame.columns:
            raise SourceError(
                f"expected a column 'path' in {shown}, found {', '.join(map(repr, frame.columns))}: "
                "rename the column that holds the image files"
            )
        if frame.empty:
            raise SourceError(f"expected images in {shown}, found a table without rows: add a row per image")
        empty = np.flatnonzero(frame["path"].isna().to_numpy())
        if len(empty):
            raise SourceError(
                f"expected a path in every row of {shown}, row {empty[0] + 1} has none ({len(empty)} such rows): "
                "fill them in or remove them"
            )
        written = frame["path"].astype(str).tolist()
        paths = [os.fsencode(path) for path in written]
        self._remote = is_url(location)
        if self._remote:
            folder = posixpath.dirname(location.partition("?")[0])
            whole = public_names([path if is_url(path) else posixpath.join(folder, path) for path in written])
            shown_paths = [
                name if is_url(path) else relative(name, public(folder))
                for name, path in zip(whole, written, strict=True)
            ]
        else:
            folder = os.path.abspath(os.path.dirname(location))
            shown_paths = public_names(written)
        self._folder = os.fsencode(folder)
        keys = key_array([os.fsencode(name) for name in shown_paths])
        self._paths = keys if shown_paths == written else np.array(paths, dtype=np.bytes_)
        sizes, mtimes = self._stat(paths, allow_missing=allow_missing)
        labels, names = encode_labels(cell_texts(frame["label"])) if "label" in frame else _no_labels(len(frame))
        frame, self.skipped = without_long_texts(frame.drop(columns=["path", "label"], errors="ignore"))
        self.items = ItemTable(
            keys=keys,
            labels=labels,
            label_names=names,
            sizes=sizes,
            mtimes_ns=mtimes,
            columns={str(name): column_values(frame[name], text=name in ("split", "group")) for name in frame.columns},
        )

    def locator(self, i: int) -> bytes:
        """Return the path of item ``i`` as the table gives it, including credentials."""
        return bytes(self._paths[i])

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache."""
        if self._remote:
            return super().describe()
        return {**super().describe(), "root": os.fsdecode(self._folder)}

    def reader(self) -> Reader:
        """Return a reader of files relative to the table's folder."""
        return PathReader(self._folder)

    @property
    def in_process(self) -> bool:
        """Whether only this process can read some of the files."""
        schemes = tuple(f"{name}://".encode() for name in IN_PROCESS)
        return self._folder.startswith(schemes) or any(key.startswith(schemes) for key in self.items.keys.tolist())

    def _stat(self, paths: list[bytes], *, allow_missing: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        def look(path: bytes) -> tuple[int, int]:
            if self._remote or is_url(os.fsdecode(path)):
                return UNSEEN
            try:
                info = os.stat(os.path.join(self._folder, path))
            except OSError:
                return MISSING
            return info.st_size, info.st_mtime_ns

        found = np.array(list(in_threads(look, paths)), dtype=np.int64).reshape(-1, 2)
        missing = np.flatnonzero(found[:, 1] == MISSING[1])
        if len(missing) and not allow_missing:
            first = os.fsdecode(paths[missing[0]])
            raise SourceError(
                f"row {missing[0] + 1} of {public(self.location)} names {first}, which does not exist "
                f"({len(missing)} such rows): correct the paths, or pass --allow-missing to make them failed rows"
            )
        found = np.maximum(found, -1)
        return found[:, 0].copy(), found[:, 1].copy()


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
            return FileReader(self.root)(locator)
        store, path = open_store(url)
        return store.read_all(path)


def read_table(location: str, text: Sequence[str] = TEXT_COLUMNS) -> pd.DataFrame:
    """Read a CSV or Parquet table, at a path or URL; columns in ``text`` are text even where they look like numbers.

    Raises
    ------
    SourceError
        It is not a table, or cannot be read.
    """
    import pandas as pd

    path = public(location)
    try:
        store, place = open_store(location)
        with store.open(place) as file:
            head = file.read(4096)
            file.seek(0)
            if head.startswith(PARQUET_MAGIC):
                return pd.read_parquet(file)
            if b"\0" in head:
                raise SourceError(
                    f"expected a folder, a table, an archive or a data file of images, found {path}, which is none of "
                    "them: name what holds or lists the images"
                )
            # "NA" and "null" may be class names; only an empty cell is a missing value.
            return pd.read_csv(
                file,
                encoding="utf-8-sig",
                dtype=dict.fromkeys(text, str),
                keep_default_na=False,
                na_values=[""],
                skipinitialspace=True,
            )
    except OSError as error:
        raise SourceError(f"cannot read the table {path}: {public(error.strerror or first_line(error))}") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"expected UTF-8 in {path}, found byte {error.object[error.start]:#04x}: save it as UTF-8"
        ) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise SourceError(f"cannot read {path} as a table: {first_line(error)}") from None


def without_long_texts(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Skipped]]:
    """Return a table without its columns of long texts, and their names.

    One text above `MAX_TEXT` characters makes every row's as long, and gigabytes of a million rows. Labels, splits and
    groups are names, and stay.
    """
    long = [name for name in frame.columns if name not in ("label", "split", "group") and _is_long(frame[name])]
    return frame.drop(columns=long), [
        Skipped(str(name), f"column of texts above {MAX_TEXT} characters") for name in long
    ]


def _is_long(series: pd.Series[Any]) -> bool:
    import pandas.api.types as types

    return not types.is_numeric_dtype(series) and any(
        text is not None and len(text) > MAX_TEXT for text in cell_texts(series)
    )


def cell_texts(series: pd.Series[Any]) -> list[str | None]:
    """Return cells as text, lists joined by a bar; None where there is nothing.

    Raises
    ------
    SourceError
        A list has a name with the separator, which would divide it when the label sets are read again.
    """
    cells = list(zip(series, series.isna(), strict=True))
    texts = [None if missing else _text(value) for value, missing in cells]
    names = [str(name) for value, _ in cells if isinstance(value, _LISTS) for name in value]
    joined = any(SET_SEPARATOR in text for text in texts if text is not None)
    for separator in (SET_SEPARATOR, *(() if joined else (OTHER_SET_SEPARATOR,))):
        if cut := next((name for name in names if separator in name), None):
            raise SourceError(
                f"column {series.name!r} lists the name {cut!r}, in which {separator!r} separates labels: rename it"
            )
    return texts


_LISTS = (list, tuple, np.ndarray)


def _text(value: Any) -> str:
    """Write a cell as text; a list of Parquet as a label set, which is a lone bar where it is empty."""
    if isinstance(value, _LISTS):
        return SET_SEPARATOR.join(map(str, value)) or SET_SEPARATOR
    return str(value)


def _no_labels(count: int) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    return np.full(count, -1, dtype=np.int32), ()


def column_values(series: pd.Series[Any], *, text: bool) -> NDArray[Any]:
    """Return the column as bool, int64, float64 or text (missing values: NaN, or empty text)."""
    import pandas.api.types as types

    if not text:
        if types.is_bool_dtype(series) and not series.isna().any():
            return np.asarray(series, dtype=np.bool_)
        if types.is_integer_dtype(series) and not series.isna().any():
            return np.asarray(series, dtype=np.int64)
        if types.is_numeric_dtype(series) and not types.is_bool_dtype(series):
            return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.array([text or "" for text in cell_texts(series)], dtype=np.str_)
