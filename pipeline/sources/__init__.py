"""Sources of images. One file per kind; `open_source` decides by content, never by the suffix of a name."""

from __future__ import annotations

from pipeline.sources.base import FileReader, Source
from pipeline.sources.folder import FolderSource
from pipeline.sources.opening import open_source
from pipeline.sources.reopen import reopen_source
from pipeline.sources.table import TableSource
from pipeline.sources.urls import public

__all__ = [
    "FileReader",
    "FolderSource",
    "Source",
    "TableSource",
    "open_source",
    "public",
    "reopen_source",
]
