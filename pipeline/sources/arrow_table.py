"""Arrow's columns, as Parquet files hold them, for the tables of this package: no type is changed on the way.

Whole numbers beside nulls stay whole, dictionaries and extension types give their values, and the numbers of Hugging
Face's class labels become their names. What no column of a cache can hold is left out by name.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError, first_line
from pipeline.sources.columns import left_out

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.core.items import Skipped

MOST_BYTES = 1 << 12
"""Bytes of a row in a column of lists, above which it is not read at all: embeddings, not label sets."""
PANDAS_INDEX = "__index_level_"
CLASS_LABEL = "ClassLabel"
_NO_LABEL = -1
"""What `datasets` writes for a row without a label, as in test sets."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns of a schema that a cache can hold.

    Attributes
    ----------
    names : list of str
    skipped : list of Skipped
        The others, except for those asked to be ignored.
    class_names : mapping of str to list of str
        Names of the classes by column.
    """

    names: list[str]
    skipped: list[Skipped]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)


def choose_columns(parquet: pq.ParquetFile, *, bytes_of: Collection[str], ignore: Collection[str] = ()) -> Chosen:
    """Return which columns of a file to read.

    Parameters
    ----------
    parquet : ParquetFile
    bytes_of : collection of str
        Columns that may hold names as bytes.
    ignore : collection of str
        Columns that are used otherwise.

    Raises
    ------
    SourceError
        Two columns have the same name.
    """
    schema = parquet.schema_arrow
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise SourceError(f"expected columns of different names, found {twice!r} twice: rename one of them")
    names, skipped = [], []
    for one in schema:
        if one.name in ignore or one.name.startswith(PANDAS_INDEX):
            continue
        reason = _unfit(one.type, may_be_bytes=one.name in bytes_of)
        if not reason and _is_list(one.type) and _bytes_per_row(parquet, one.name) > MOST_BYTES:
            reason = "long lists"
        if reason:
            skipped.append(left_out(one.name, reason))
        else:
            names.append(one.name)
    return Chosen(names, skipped, class_names(schema))


def frame_of(table: pa.Table, names: Mapping[str, list[str]]) -> pd.DataFrame:
    """Return Arrow's columns as pandas', of NumPy's types where nothing is missing, of Python objects elsewhere.

    Parameters
    ----------
    table : Table
    names : mapping of str to list of str
        Names of the classes by column; see `class_names`.

    Raises
    ------
    SourceError
        A class label has no name, or a column holds what Python has no value for.
    """
    import pandas as pd

    columns = {}
    for name in table.column_names:
        try:
            columns[name] = _series(name, table[name], names.get(name))
        except (OverflowError, ValueError) as error:  # such as a date beyond the year 9999
            raise SourceError(
                f"cannot read column {name!r} ({first_line(error)}): correct its values, or leave the column out"
            ) from None
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of classes by column, as Hugging Face's ``datasets`` leaves them in the metadata.

    Raises
    ------
    SourceError
        Two classes of a column have the same name.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: _label_feature(feature) for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    named = {name: names for name, names in found.items() if names is not None}
    for column, names in named.items():
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"column {column!r}: expected class names that differ, found {twice!r} twice: rename one")
    return named


def _label_feature(feature: Any) -> list[str] | None:
    """Return the names of a class label, or of the class labels that a list holds."""
    while (isinstance(feature, list) and feature) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature["feature"] if isinstance(feature, dict) else feature[0]
    if not isinstance(feature, dict) or feature.get("_type") != CLASS_LABEL:
        return None
    names = feature.get("names")
    if names is None and isinstance(count := feature.get("num_classes"), int):
        names = range(count)
    return None if names is None else [str(name) for name in names]


def _series(name: str, column: pa.ChunkedArray, names: list[str] | None) -> pd.Series[Any]:
    import pandas as pd
    import pyarrow as pa

    types, kind = pa.types, column.type
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    if names is not None and not _are_labels(kind):
        names = None
    if plain and names is None and (column.null_count == 0 or types.is_floating(kind)):
        return pd.Series(column.to_numpy(), name=name)
    if types.is_time64(kind) and kind.unit == "ns":  # Python's times end at microseconds
        column = column.cast(pa.string())
    cells = column.to_pylist()
    if names is not None:
        cells = [_named(name, cell, names) for cell in cells]
    if _is_bytes(kind):
        cells = [cell if cell is None else os.fsdecode(cell) for cell in cells]
    return pd.Series(cells, dtype=object, name=name)


def _named(column: str, cell: Any, names: list[str]) -> Any:
    if isinstance(cell, list):
        return [_named(column, inner, names) for inner in cell]
    if cell is None or cell == _NO_LABEL or cell != cell:
        return None
    if isinstance(cell, str):
        if cell not in names and cell.isdecimal():  # `datasets` takes it for a number
            raise SourceError(
                f"expected the class names of the metadata in column {column!r}, found {cell!r}: write the table again"
            )
        return cell
    if not 0 <= cell < len(names) or cell != int(cell):
        raise SourceError(
            f"expected class labels from 0 to {len(names) - 1} in column {column!r}, as its metadata name them, found "
            f"{cell}: write the table again"
        )
    if not names[int(cell)]:
        raise SourceError(
            f"expected a name for every class of column {column!r}, found an empty one for {cell}: name that class"
        )
    return names[int(cell)]


def _unfit(kind: pa.DataType, *, may_be_bytes: bool) -> str:
    """Return why a cache holds no values of a type, or an empty text."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return "" if str(kind.extension_name) == "arrow.uuid" else _unfit(kind.storage_type, may_be_bytes=may_be_bytes)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _unfit(kind.value_type, may_be_bytes=may_be_bytes)
    if _is_bytes(kind):
        return "" if may_be_bytes else "bytes"
    if types.is_struct(kind) or types.is_map(kind) or types.is_union(kind):
        return "values of several fields"
    if _is_list(kind):
        inner = "lists" if _is_list(kind.value_type) else _unfit(kind.value_type, may_be_bytes=False)
        return inner and f"lists of {inner}"
    return ""


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    names = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, name, _never)(kind) for name in names)  # views came with pyarrow 16


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    names = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, name, _never)(kind) for name in names)


def _are_labels(kind: pa.DataType) -> bool:
    """Return whether a type is one of those in which class labels are stored: numbers, names, and lists of them."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind) or _is_list(kind):
        return _are_labels(kind.value_type)
    texts = ("is_string", "is_large_string", "is_string_view")
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or any(getattr(types, name, _never)(kind) for name in texts)
    )


def _never(kind: pa.DataType) -> bool:
    return False


def _bytes_per_row(parquet: pq.ParquetFile, name: str) -> float:
    """Return the mean size of a column's rows, of all its leaves."""
    about = parquet.metadata
    size = 0
    for group in range(about.num_row_groups):
        columns = map(about.row_group(group).column, range(about.num_columns))
        size += sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name)
    return float(size / max(about.num_rows, 1))
