"""Atomic writes: files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.ending import unfinished, uninterrupted
from pipeline.errors import PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

PART = ".part"
"""Suffix of a file or folder that is being written."""
_TOKEN_BYTES = 6
_PART_NAME = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}{re.escape(PART)}", re.DOTALL)


def part_path(path: Path) -> Path:
    """Return a new name beside ``path`` for its unfinished file: one that no file of a user has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}{PART}")


def remove_parts(path: Path) -> None:
    """Remove the unfinished files of ``path`` that killed runs left. The caller is the only one who writes ``path``."""
    for name in os.listdir(path.parent):  # noqa: PTH208  # a name, not a path for each
        found = _PART_NAME.fullmatch(name)
        if found is not None and found[1] == path.name:
            with contextlib.suppress(OSError):
                (path.parent / name).unlink()


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], error: type[PipelineError] = PipelineError, *, alone: bool = False
) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces ``path`` when the block ends.

    Readers see the old file or the complete new one. The new file is synced before it is renamed. If the block
    raises, ``path`` stays as it was and the unfinished file is removed.

    Parameters
    ----------
    path : path
        Replaced where it exists.
    error : type
        The error that replaces an `OSError`.
    alone : bool
        No other process writes this file at the same time, so what killed runs left of it is removed.

    Raises
    ------
    PipelineError
        Of the type given: the file cannot be written.
    """
    path = followed(path)
    part = part_path(path)
    with unfinished(part):
        try:
            if path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            if path.exists() and not path.is_file():  # also where it became one during the work
                raise OSError(errno.EINVAL, "it is a device or a pipe")
            if alone:
                remove_parts(path)
            yield part
            put_in_place(part, path)
        except OSError as reason:
            raise _cannot_write(path, reason, error) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a finished file to ``path``, durably and atomically; raises `OSError`."""
    with contextlib.suppress(OSError):  # who may read and write stays as it was
        finished.chmod(stat.S_IMODE(path.stat().st_mode))
    # Before the rename: after a power cut the name could otherwise belong to a file without its bytes.
    _sync(finished, os.O_RDWR)
    finished.replace(path)
    _sync(path.parent, os.O_RDONLY)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], error: type[PipelineError] = PipelineError) -> Iterator[Path]:
    """Yield the path of a folder to fill, which replaces ``path`` when the block ends.

    If the block raises, the unfinished folder is removed and ``path`` stays as it was.

    Parameters
    ----------
    path : path
        Replaced where it exists; its parents are made.
    error : type
        The error that replaces an `OSError`.

    Raises
    ------
    PipelineError
        Of the type given: the folder cannot be written.
    """
    path = followed(path)
    part = part_path(path)
    with unfinished(part):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            yield part
            with uninterrupted():
                _swap(part, path)
        except OSError as reason:
            raise _cannot_write(path, reason, error) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, path: Path) -> None:
    """Put a finished folder in the place of a former one, which is removed."""
    former = part.with_name(part.name.removesuffix(PART) + ".old")
    if path.exists():
        path.rename(former)
    try:
        part.rename(path)
    except OSError:
        if not path.exists() and former.exists():  # where it exists, another process was first
            former.rename(path)
        raise
    finally:
        shutil.rmtree(former, ignore_errors=True)
    _sync(path.parent, os.O_RDONLY)


def followed(path: str | os.PathLike[str]) -> Path:
    """Return the path that a symbolic link leads to, which need not exist; any other path as it is.

    What is written through a link then has its lock and its unfinished file beside the target, where all who write
    the target meet, and the link stays.
    """
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _cannot_write(path: Path, reason: OSError, error: type[PipelineError]) -> PipelineError:
    return error(f"cannot write {path} ({reason.strerror or first_line(reason)}): free space, or choose another output")


def file_identity(info: os.stat_result) -> tuple[int, int]:
    """Return what identifies a file independently of its name: device and inode."""
    return info.st_dev, info.st_ino


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
