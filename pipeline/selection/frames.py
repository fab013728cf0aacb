"""Tables of answers as data frames and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.csv_rows import LINE_END, CsvRows
from pipeline.core.files import replacing
from pipeline.core.names import SHOWN
from pipeline.core.outputs import GENERATOR
from pipeline.core.text import valid_text
from pipeline.errors import AnalysisError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


def frame(columns: Mapping[str, Any]) -> Any:
    """Return a `pandas.DataFrame`; texts stay Python strings, since Arrow's refuse file names that are not UTF-8."""
    import pandas as pd

    def column(values: Any) -> Any:
        array = np.asarray(values)
        return pd.Series(array.astype(object), dtype=object) if array.dtype.kind in "UO" else pd.Series(array)

    return pd.DataFrame({name: column(values) for name, values in columns.items()})


def write_table(table: Any, path: str | os.PathLike[str]) -> None:
    """Write a data frame as Parquet where the name ends so, else as CSV; it appears when it is complete.

    Raises
    ------
    AnalysisError
        The file cannot be written.
    """
    with replacing(path, AnalysisError) as part:
        if Path(path).suffix.lower() == ".parquet":
            texts = [name for name in table.columns if table[name].dtype == object]
            _write_parquet(table.assign(**{name: valid_text(table[name]) for name in texts}), part)
        else:
            with part.open("w", encoding="utf-8", errors=SHOWN, newline="") as file:
                table.to_csv(CsvRows(file), index=False, lineterminator=LINE_END)


def _write_parquet(table: Any, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(found.replace_schema_metadata({**(found.schema.metadata or {}), "generator": GENERATOR}), path)
