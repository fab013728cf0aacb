"""Putting a whole new file where readers look, so that they see the old one or the new one, nothing between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cache import format as fmt
from pipeline.core.files import put_in_place, replacing
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import DTypeLike

    from pipeline.core.items import ItemTable


UNFINISHED = ".new"


def unfinished_path(cache: Path) -> Path:
    """Return where the update of ``cache`` is filled: laid out whole, with rows still to do."""
    return cache.with_name(cache.name + UNFINISHED)


def publish(finished: Path, path: Path) -> None:
    """Give ``finished`` the name ``path``, durably and at one instant.

    Raises
    ------
    CacheError
        The disk failed; ``path`` is what it was.
    """
    try:
        put_in_place(finished, path)
    except OSError as error:
        raise CacheError(
            f"cannot put the finished file in the place of {path} ({error.strerror}): repair the disk, then run "
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
    """Make a cache of rows to do appear at ``path``, whole or not at all. Hold the write lock meanwhile.

    Parameters
    ----------
    path : Path
        Replaced where it exists.
    items, widths, dtype, attributes
        See `pipeline.cache.format.create`.
    fill : callable
        Given the path of the file before it appears; may write rows known already.

    Raises
    ------
    CacheError
        The space, the folder or the disk does not serve; nothing is left behind.
    """
    with replacing(path, CacheError) as part:
        fmt.create(part, items, widths=widths, dtype=dtype, attributes=attributes)
        fill(part)


def remove(path: Path) -> None:
    """Remove a file that is of no use any more, if it is there.

    Raises
    ------
    CacheError
        It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot remove {path} ({error.strerror}): repair the disk, or remove it") from None
