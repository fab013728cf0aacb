"""Sources: where images come from. One file per kind; `open_source` picks by content, never by a name's ending."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.base import FileReader, Item, ItemTable, Reader, Skipped, Source
from pipeline.sources.folder import FolderSource
from pipeline.sources.table import TableSource

__all__ = [
    "FileReader",
    "FolderSource",
    "Item",
    "ItemTable",
    "Reader",
    "Skipped",
    "Source",
    "TableSource",
    "open_source",
]


def open_source(location: str, *, allow_missing: bool = False) -> Source:
    """List the images at ``location``.

    Parameters
    ----------
    location : str
        A folder, or a CSV or Parquet table with a ``path`` column.
    allow_missing : bool
        For a table: files that do not exist become failed rows instead of an error.

    Returns
    -------
    Source
        With at least one item.

    Raises
    ------
    SourceError
        There is nothing usable; the message says what was found.
    """
    path = Path(location)
    if path.is_dir():
        return FolderSource(location)
    if path.is_file():
        return TableSource(location, allow_missing=allow_missing)
    found = "something that is neither a file nor a folder" if path.exists() else "nothing"
    raise SourceError(f"expected a folder of images or a table at {location}, found {found}: check the path")
