"""Tables of answers as data frames and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from pipeline.core.csv_rows import csv_writer
from pipeline.core.files import replacing
from pipeline.core.names import SHOWN
from pipeline.core.outputs import GENERATOR
from pipeline.core.text import valid_text
from pipeline.errors import AnalysisError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray


def frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a `pandas.DataFrame`; texts stay Python strings, since Arrow's refuse file names that are not UTF-8."""
    import pandas as pd  # takes half a second, which a table that is written as CSV does not need

    def column(values: Any) -> Any:
        array = np.asarray(values)
        return pd.Series(array.astype(object), dtype=object) if array.dtype.kind in "UO" else pd.Series(array)

    return pd.DataFrame({name: column(values) for name, values in columns.items()})


def write_table(table: Mapping[str, Any] | pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write columns as Parquet where the name ends so, else as CSV; the file appears when it is complete.

    Parameters
    ----------
    table : mapping of str to array, or pandas.DataFrame
        A mapping is written as CSV without importing pandas.
    path : str or Path

    Raises
    ------
    AnalysisError
        The file cannot be written.
    """
    with replacing(path, AnalysisError) as part:
        if Path(path).suffix.lower() == ".parquet":
            _write_parquet(frame(dict(table.items())), part)
        else:
            with part.open("w", encoding="utf-8", errors=SHOWN, newline="") as file:
                write_csv(table, file)


def write_csv(table: Mapping[str, Any] | pd.DataFrame, file: TextIO) -> None:
    r"""Write columns to a text file, opened with ``newline=""``; cells without a value stay empty.

    Examples
    --------
    >>> import io
    >>> file = io.StringIO(newline="")
    >>> write_csv({"key": ["a,b", None], "cosine": np.array([0.1, np.nan], np.float32)}, file)
    >>> file.getvalue()
    'key,cosine\n"a,b",0.1\n,\n'
    """
    writer = csv_writer(file)
    writer.writerow([name for name, _ in table.items()])
    writer.writerows(zip(*(_cells(np.asarray(values)) for _, values in table.items()), strict=True))


def _cells(values: NDArray[Any]) -> list[Any]:
    """Return what is written for each value of a column."""
    if values.dtype.kind == "f":  # as text of its own type: 0.1 in float32 is not 0.1 in float64
        values = np.where(np.isnan(values), "", values.astype(str))
    cells: list[Any] = values.tolist()
    if values.dtype.kind == "O":
        return ["" if cell is None or cell != cell else cell for cell in cells]
    return cells


def _texts_or_none(cells: pd.Series[Any]) -> list[str | None]:
    return [None if none else text for text, none in zip(valid_text(cells), cells.isna(), strict=True)]


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [name for name in table.columns if table[name].dtype == object]
    table = table.assign(**{name: _texts_or_none(table[name]) for name in texts})
    found = pa.Table.from_pandas(table, preserve_index=False)
    with path.open("wb") as file:  # Arrow takes no names that are not UTF-8
        pq.write_table(found.replace_schema_metadata({**(found.schema.metadata or {}), "generator": GENERATOR}), file)
