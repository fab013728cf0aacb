"""The table of labels: an ordinary CSV with the columns key, label and, once there is an audit, split."""

from __future__ import annotations

import hashlib
import io
import math
from typing import TYPE_CHECKING

from pipeline.core.csv_rows import csv_writer
from pipeline.core.files import replacing
from pipeline.core.names import SHOWN
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.labelling.journal import LabelError
from pipeline.labelling.state import NUMBERS, SETS
from pipeline.sources.columns import empty_cells, label_texts
from pipeline.sources.table import read_table

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from pathlib import Path

    from pipeline.labelling.state import Value


def value_text(value: Value | None) -> str:
    """Return a label as a cell: a set without labels is the separator alone.

    Examples
    --------
    >>> value_text("cat"), value_text(("cat", "dog")), value_text(()), value_text(0.1), value_text(None)
    ('cat', 'cat|dog', '|', '0.1', '')
    """
    if value is None:
        return ""
    if isinstance(value, tuple):
        return SET_SEPARATOR.join(value) or SET_SEPARATOR
    return value if isinstance(value, str) else repr(value)


def table_bytes(values: Mapping[str, Value], keys: Iterable[str], audit: Container[str]) -> bytes:
    """Return the table: the images of the cache in its order, then labelled ones that it does not hold.

    Parameters
    ----------
    values : mapping of str to Value
        Labels by key.
    keys : iterable of str
        The keys of the cache.
    audit : container of str
        Keys of the audit's sample: their ``split`` is ``test``, so that a head fitted on the table is measured on them.
    """
    known = [key for key in keys if key in values]
    rest = sorted(values.keys() - set(known))
    tested = {key for key in known if key in audit}
    text = io.StringIO(newline="")
    writer = csv_writer(text)
    writer.writerow(["key", "label", *(["split"] if tested else [])])
    for key in (*known, *rest):
        split = ["test" if key in tested else "train"] if tested else []
        writer.writerow([key, value_text(values[key]), *split])
    return text.getvalue().encode("utf-8", SHOWN)


def digest(data: bytes) -> str:
    """Return what identifies the contents of a table."""
    return hashlib.sha256(data).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the table in one step.

    Raises
    ------
    LabelError
        It cannot be written.
    """
    with replacing(path, LabelError) as part:
        part.write_bytes(data)


def read_labels(path: str, task: str) -> dict[str, Value]:
    """Read a table of labels, CSV or Parquet with the columns ``key`` and ``label``; rows without a label are left out.

    Raises
    ------
    SourceError
        It is not a table, or cannot be read.
    LabelError
        It lacks a column, holds a key twice, or a label that is none of this task.
    """
    frame, _ = read_table(path)
    missing = [name for name in ("key", "label") if name not in frame.columns]
    if missing:
        raise LabelError(f"expected the columns 'key' and 'label' in {path}, found no {missing[0]!r}: rename a column")
    frame = frame.drop(index=frame.index[empty_cells(frame["key"])])  # the text of None may be an image's name
    keys = frame["key"].astype(str).tolist()
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise LabelError(f"expected every key once in {path}, found {twice!r} more than once: remove the others")
    found = zip(keys, label_texts(frame["label"]), strict=True)
    return {key: value for key, text in found if text is not None and (value := parsed(text, task, path)) is not None}


def parsed(text: str, task: str, path: str) -> Value | None:
    """Return the label that a cell holds, None for an empty one.

    Raises
    ------
    LabelError
        It is no number, where numbers are labelled.
    """
    if not text:
        return None
    if task == SETS:
        separator = SET_SEPARATOR if SET_SEPARATOR in text else OTHER_SET_SEPARATOR
        return tuple(sorted({part.strip() for part in text.split(separator)} - {""}))
    if task != NUMBERS:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"expected numbers in the column 'label' of {path}, found {text!r}: start with another --task")
    return number
