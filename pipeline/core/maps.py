"""Maps of files that stay maps of the same file where another one takes its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pipeline.core.files import file_identity

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FileMap(np.memmap):
    """The bytes of a whole file; ``identity`` says which file it is, whatever stands at its path later."""

    identity: tuple[int, int] | None = None


def map_file(file: BinaryIO) -> NDArray[np.uint8]:
    """Return the (size,) bytes of an open file, which need not stay open."""
    mapped: Any = FileMap(file, dtype=np.uint8, mode="r")
    mapped.identity = file_identity(os.fstat(file.fileno()))
    return mapped  # type: ignore[no-any-return]


def is_file_of(mapped: Any, file: BinaryIO) -> bool:
    """Return whether an open file is the one that was mapped; True where the map does not say which it was."""
    identity = getattr(mapped, "identity", None)
    return identity is None or identity == file_identity(os.fstat(file.fileno()))
