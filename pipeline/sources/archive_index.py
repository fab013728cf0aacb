"""The index of an archive, made once and stored: its members and the places of their bytes.

A file per archive under ``~/.cache/embedding-pipeline/indexes``, of NumPy arrays; columns, so that a million members
cost as many bytes as they need. An index of another size or time, or a damaged one, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.files import replacing
from pipeline.core.system import cache_folder
from pipeline.errors import SourceError
from pipeline.sources.clients import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.sources.store import File, Store

Columns = dict[str, "NDArray[Any]"]

INDEX_VERSION = 5
OF = "of"
"""The array that identifies the file, with size, time and version, that the index describes."""
_loading = threading.Lock()
"""NumPy parses the arrays' headers by `ast`, which CPython 3.11 lets fail at random in threads beside each other."""


def index_folder() -> Path:
    """Return the folder of the stored indexes."""
    return cache_folder() / "indexes"


def cached_index(
    kind: str, store: Store, file: File, make: Callable[[], Columns], *, needed: Collection[str]
) -> Columns:
    """Return the index of an archive: the stored one, or a new one, which is then stored.

    Parameters
    ----------
    kind : str
        Of the archive.
    store : Store
    file : File
        The archive as it is now; without a size or stamp from its store it is indexed every time.
    make : callable
        Makes the index.
    needed : collection of str
        Names of its columns; an index that lacks one is damaged.
    """
    address = store.address(file.path)
    name = hashlib.blake2b(os.fsencode(f"{kind} {address}"), digest_size=16).hexdigest()
    path = index_folder() / f"{name}.npz"
    of = np.array([INDEX_VERSION, file.size, file.stamp, number_of(file.version)], dtype=np.int64)
    durable = file.stamp >= 0
    if durable and (found := _load(path, of, needed)) is not None:
        return found
    made = make()
    if durable:
        _keep(path, {OF: of, **made})
    return made


def _load(path: Path, of: NDArray[np.int64], needed: Collection[str]) -> Columns | None:
    """Return the stored index, or None where it is missing, damaged, or of another state of the file.

    CRC-32 detects damage, except in the arrays' names, which are compared with those needed.
    """
    try:
        # Opened here: np.load leaves a file open that it cannot read.
        with _loading, path.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
            if not np.array_equal(arrays[OF], of) or not set(needed) <= set(arrays.files):
                return None
            return {name: arrays[name] for name in arrays.files if name != OF}
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, NotImplementedError, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error, MemoryError, OverflowError):
        return None


def _keep(path: Path, columns: Columns) -> None:
    """Write the index; after a failure it is made again next time."""
    with contextlib.suppress(OSError, SourceError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, SourceError) as part, part.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
