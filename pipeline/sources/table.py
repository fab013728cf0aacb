"""A CSV or Parquet table with a ``path`` column, and ``label``, ``split``, ``group`` and more if there are any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SourceError
from pipeline.sources.base import FileReader, ItemTable, Reader, Source, encode_labels, in_threads, key_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

PARQUET_MAGIC = b"PAR1"
TEXT_COLUMNS = ("path", "label", "split", "group")


class TableSource(Source):
    """The images that a table names, in its order.

    Paths are relative to the table's folder, or absolute; the path as written is the key. An empty cell is a missing
    value. ``label`` is a class name even where it looks like a number; further columns keep their type.

    Parameters
    ----------
    location : str
        The table: Parquet by its first bytes, CSV (UTF-8) otherwise.
    allow_missing : bool
        Keep rows whose file does not exist (they become failed rows) instead of refusing the table.

    Raises
    ------
    SourceError
        Not a table, no ``path`` column, an empty or doubled path, or files that do not exist.
    """

    kind = "table"

    def __init__(self, location: str, *, allow_missing: bool = False) -> None:
        self.location = location
        frame = read_table(Path(location))
        if "path" not in frame.columns:
            raise SourceError(
                f"expected a column 'path' in {location}, found {', '.join(map(repr, frame.columns))}: "
                "rename the column that holds the image files"
            )
        if frame.empty:
            raise SourceError(f"expected images in {location}, found a table without rows: add a row per image")
        empty = np.flatnonzero(frame["path"].isna().to_numpy())
        if len(empty):
            raise SourceError(
                f"expected a path in every row of {location}, row {empty[0] + 1} has none ({len(empty)} such rows): "
                "fill them in or remove them"
            )
        paths = [os.fsencode(path) for path in frame["path"].astype(str)]
        self._folder = os.path.abspath(os.fsencode(Path(location).parent))
        keys = key_array(paths)
        sizes, mtimes = self._stat(paths, allow_missing=allow_missing)
        labels, names = encode_labels(_texts(frame["label"])) if "label" in frame else _no_labels(len(frame))
        self.items = ItemTable(
            keys=keys,
            labels=labels,
            label_names=names,
            sizes=sizes,
            mtimes_ns=mtimes,
            columns={
                str(name): column_values(frame[name], text=name in ("split", "group"))
                for name in frame.columns
                if name not in ("path", "label")
            },
        )

    def locator(self, i: int) -> bytes:
        """Return the path of item ``i`` as the table gives it."""
        return bytes(self.items.keys[i])

    def describe(self) -> dict[str, str]:
        """Return where the images are, for the cache."""
        return {**super().describe(), "root": os.fsdecode(os.path.abspath(self._folder))}

    def reader(self) -> Reader:
        """Return a reader of files relative to the table's folder."""
        return FileReader(self._folder)

    def _stat(self, paths: list[bytes], *, allow_missing: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        def look(path: bytes) -> tuple[int, int]:
            try:
                info = os.stat(os.path.join(self._folder, path))
            except OSError:
                return -1, -1
            return info.st_size, info.st_mtime_ns

        found = np.array(list(in_threads(look, paths)), dtype=np.int64).reshape(-1, 2)
        missing = np.flatnonzero(found[:, 0] < 0)
        if len(missing) and not allow_missing:
            raise SourceError(
                f"row {missing[0] + 1} of {self.location} names {os.fsdecode(paths[missing[0]])}, which does not exist "
                f"({len(missing)} such rows): mend the paths, or pass --allow-missing to make them failed rows"
            )
        return found[:, 0].copy(), found[:, 1].copy()


def read_table(path: Path, text: Sequence[str] = TEXT_COLUMNS) -> pd.DataFrame:
    """Read a CSV or Parquet table; the columns in ``text`` are text even where they look like numbers."""
    import pandas as pd

    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(PARQUET_MAGIC):
            return pd.read_parquet(path)
        if b"\0" in head:
            raise SourceError(
                f"expected a folder, a CSV or a Parquet table, found {path}, which is none of them: name the folder or "
                "table that lists the images"
            )
        # "NA" and "null" are names people give; only an empty cell is a missing value.
        return pd.read_csv(
            path,
            encoding="utf-8-sig",
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
        )
    except OSError as error:
        raise SourceError(f"cannot read the table {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"expected UTF-8 in {path}, found byte {error.object[error.start]:#04x}: save it as UTF-8"
        ) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise SourceError(f"cannot read {path} as a table: {str(error).splitlines()[0]}") from None


def _texts(series: pd.Series[Any]) -> list[str | None]:
    return [None if missing else str(value) for value, missing in zip(series, series.isna(), strict=True)]


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
    return np.array([text or "" for text in _texts(series)], dtype=np.str_)
