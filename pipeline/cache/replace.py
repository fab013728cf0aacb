"""Replacing a file atomically: readers see the old file or the new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cache import format as fmt
from pipeline.cache.lease import confirm_leases
from pipeline.core.files import put_in_place, replacing
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import DTypeLike

    from pipeline.core.items import ItemTable


UNFINISHED = ".new"


def unfinished_path(cache: Path) -> Path:
    """Return the path at which the update of ``cache`` is filled: a complete file with rows to do."""
    return cache.with_name(cache.name + UNFINISHED)


def publish(finished: Path, path: Path) -> None:
    """Rename ``finished`` to ``path``, durably and atomically.

    Raises
    ------
    CacheError
        The disk failed, or another process has taken over the right to write; ``path`` is unchanged.
    """
    confirm_leases()
    try:
        put_in_place(finished, path)
    except OSError as error:
        raise CacheError(
            f"cannot replace {path} by the finished file ({error.strerror}): repair the disk, then run "
            "the same command again"
        ) from None


def lay_out(
    path: Path,
    items: ItemTable,
    *,
    widths: Mapping[str, int],
    dtype: DTypeLike,
    attributes: Mapping[str, str | int],
    fill: Callable[[Path], None] = lambda part: None,
) -> None:
    """Create a cache of rows to do at ``path``, atomically. The caller holds the write lock.

    Parameters
    ----------
    path : Path
        Replaced where it exists.
    items, widths, dtype, attributes
        See `pipeline.cache.format.create`.
    fill : callable
        Called with the path of the file before it appears; may write known rows.

    Raises
    ------
    CacheError
        Too little space, an unusable folder, a disk error, or a lease that was lost; no file is left.
    """
    confirm_leases()
    with replacing(path, CacheError, alone=True) as part:
        fmt.create(part, items, widths=widths, dtype=dtype, attributes=attributes)
        fill(part)
        confirm_leases()


def remove(path: Path) -> None:
    """Remove a file that is no longer needed, if it exists.

    Raises
    ------
    CacheError
        It cannot be removed.
    """
    confirm_leases()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot remove {path} ({error.strerror}): repair the disk, or remove it") from None
