"""Outputs, checked before the work begins: what is written through, what is refused, what may be replaced.

An existing file is replaced only where its content shows that a command of this package wrote it, or where it is empty.
"""

from __future__ import annotations

import contextlib
import csv
import os
import stat
from pathlib import Path

from pipeline.core.ending import unfinished
from pipeline.core.files import followed, part_path
from pipeline.core.shards import PLACEHOLDER
from pipeline.errors import PipelineError, first_line

GENERATOR = "embedding-pipeline"
"""What a page, a Parquet file or a model names as its program."""
_HEAD = 1 << 16
_TAIL = 1 << 20
_BLOCK = 4096
_TABLES = (
    {"query", "rank", "key", "cosine"},
    {"group", "key", "similarity", "how"},
    {"key", "given", "suggested", "quality", "is_issue"},
    {"rank", "key", "label", "score"},
    {"key", "label", "x", "y"},
    {"key", "predicted", "error"},
    {"key", "label", "e0"},
)
"""Columns by which the tables of search, duplicates, check-labels, select, map, predict and export are known."""


def check_file(
    path: str | os.PathLike[str], error: type[PipelineError] = PipelineError, *, replaceable: bool = True
) -> Path:
    """Return the file to write for an output, and refuse it before the work begins where it cannot be written.

    Parameters
    ----------
    path : path
        What the user named. A symbolic link stands for the file that it leads to.
    error : type
        The error to raise.
    replaceable : bool
        Refuse an existing file that this package did not write; False where the caller looks at the file itself.

    Raises
    ------
    PipelineError
        Of the type given: a folder, a device, a pipe, a link in a circle, a file of another program, a folder that
        does not exist or cannot be written into, a full disk.
    """
    name, path = os.fspath(path), _place(path, error)
    if path.is_dir():
        raise error(f"expected a file name for the output, found the folder {name}: name a file in it")
    if not path.parent.is_dir():
        raise error(f"expected the folder {path.parent} for the output {name}, found none: make it first")
    if path.exists():
        if not path.is_file():
            raise error(
                f"expected a file name for the output, found {_kind(path)} at {name}: name a file; where a command has "
                "no -o, it writes to standard output"
            )
        if not os.access(path, os.W_OK):
            raise error(f"{name} is read-only: change its permissions, or choose another output")
        if replaceable and not is_own(path):
            raise error(f"{name} exists and was not written by this command: remove it first, or choose another output")
    check_writable(path, error)
    return path


def check_different(*paths: str | os.PathLike[str] | None, error: type[PipelineError] = PipelineError) -> None:
    """Refuse outputs of one command that would replace each other.

    Raises
    ------
    PipelineError
        Two of them are the same file.
    """
    places = [os.path.realpath(path) for path in paths if path is not None]
    if len(set(places)) < len(places):
        raise error(f"expected different files for the outputs, found {places[0]} twice: rename one")


def check_folder(path: str | os.PathLike[str], error: type[PipelineError] = PipelineError) -> Path:
    """Return the folder to write for an output, whose parents need not exist; see `check_file`.

    Raises
    ------
    PipelineError
        Of the type given.
    """
    name, path = os.fspath(path), _place(path, error)
    if path.name in ("", ".."):
        raise error(f"expected the name of a folder for the output, found {name}: name one that can be replaced")
    check_writable(path, error)
    return path


def check_writable(path: Path, error: type[PipelineError] = PipelineError) -> None:
    """Write and remove a small file where ``path`` is to be, in the nearest folder that exists.

    Raises
    ------
    PipelineError
        It cannot be written: permissions, a full disk, a name that is too long.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    # As long as the longest name that is going to stand there.
    probe = part_path(folder / path.name)
    try:
        with unfinished(probe):
            try:
                with probe.open("xb") as file:
                    file.write(bytes(_BLOCK))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                with contextlib.suppress(OSError):
                    probe.unlink()
    except OSError as reason:
        raise _cannot_write(path, reason, error, f"the permissions of {folder}, free space") from None


def _cannot_write(
    path: str | os.PathLike[str], reason: OSError, error: type[PipelineError], what: str
) -> PipelineError:
    return error(
        f"cannot write {os.fspath(path)} ({reason.strerror or first_line(reason)}): change {what}, or choose another "
        "output"
    )


def is_own(path: Path) -> bool:
    """Return whether a file is empty, or shows by its content that a command of this package wrote it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)
    except OSError:
        return False
    if not head:
        return True
    if head.startswith(b"PAR1"):
        return GENERATOR.encode() in tail
    if head.startswith(b"\x89HDF"):  # AnnData: the groups of a file, and ours in its unstructured part
        return _has_group(path)
    if head.startswith(b"\x93NUMPY"):
        return is_own(path.with_name(path.name + ".csv")) and path.with_name(path.name + ".csv").is_file()
    if head.lstrip()[:9].lower() == b"<!doctype":
        return f'content="{GENERATOR}"'.encode() in head
    if b"class_names" in tail and b"preprocess" in tail and b"probabilities" in tail:  # ONNX
        return True
    return _is_own_table(head, alone=not path.name.endswith(".npy.csv"))


def _is_own_table(head: bytes, *, alone: bool) -> bool:
    line, end, _ = head.decode("utf-8", "surrogateescape").partition("\n")
    columns = next(csv.reader([line]), [])
    known = _TABLES if alone else ({"key", "label"},)
    return bool(end) and any(names <= set(columns) for names in known)


def _has_group(path: Path) -> bool:
    """Look for the names of AnnData's groups and of ours, which HDF5 stores as they are."""
    with path.open("rb") as file:
        start = file.read(_TAIL << 2)
    return b"fingerprint" in start and b"obsm" in start and b"uns" in start


def _place(path: str | os.PathLike[str], error: type[PipelineError]) -> Path:
    name = os.fspath(path)
    if not name:
        raise error("expected a name for the output, found an empty one: name it")
    home = name.partition("/")[0]
    if home.startswith("~") and not Path(home).is_dir():
        raise error(
            f"expected a path for the output, found {home} in {name}, which no shell replaced: write it in full"
        )
    if PLACEHOLDER in name:
        raise error(f"expected --shard with {PLACEHOLDER} in {name}, found none: add --shard I/N, or name the file")
    if "://" in name:
        raise error(f"expected a file of this machine for the output, found {name}: write it here, then upload it")
    try:
        place = followed(path)
        leads_nowhere = place.is_symlink()
    except OSError as reason:  # such as a name that is too long
        raise _cannot_write(name, reason, error, f"the name or the permissions of {Path(name).parent}") from None
    if leads_nowhere:
        raise error(f"expected a file for the output, found a link that leads nowhere at {name}: remove the link")
    return place


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "something that is no file")
