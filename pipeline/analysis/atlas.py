"""Apple's embedding-atlas on a cache: a browser for maps, with search, histograms and selections."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.text import free_name
from pipeline.errors import AnalysisError
from pipeline.selection.frames import write_table
from pipeline.sources.reopen import where_now

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.analysis.projection import Projection
    from pipeline.cache import Cache


def check_atlas() -> None:
    """Check that embedding-atlas is installed.

    Raises
    ------
    AnalysisError
        It is not installed.
    """
    if importlib.util.find_spec("embedding_atlas") is None:
        raise AnalysisError(
            "exploring needs embedding-atlas, which is not installed: pip install 'embedding-pipeline[explore]', "
            "or write a page with pipeline map --page"
        )


def write_atlas_table(path: str | os.PathLike[str], cache: Cache, found: Projection) -> None:
    """Write a map with all columns of its cache, and the paths of the images, as Parquet.

    Raises
    ------
    AnalysisError
        The file cannot be written.
    """
    table = found.table.copy()
    for name, values in cache.columns.items():
        column = np.asarray(values)[found.rows]
        table[free_name(name, table.columns)] = column.astype(object) if column.dtype.kind == "U" else column
    root = where_now(cache.source, cache.items, Path(cache.path).parent).get("root")
    if root is not None and "image" not in table.columns:
        table["image"] = [str(Path(root) / key) for key in table["key"]]
    write_table(table, path)


def atlas_command(path: str | os.PathLike[str], options: Sequence[str] = ()) -> list[str]:
    """Return the command that opens such a table."""
    columns = ["--x", "x", "--y", "y", "--text", "key"]
    return [sys.executable, "-m", "embedding_atlas.cli", str(path), *columns, *options]
