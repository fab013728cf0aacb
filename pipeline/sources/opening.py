"""From a user's argument to a source: braces, globs and URLs become files, whose content decides their kind."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from typing import TYPE_CHECKING

from pipeline.decoding.formats import NO_PICTURES
from pipeline.errors import SourceError, first_line
from pipeline.sources.base import Source, in_threads
from pipeline.sources.detect import COMPRESSED, has_images, kind_of
from pipeline.sources.files import FilesSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.hdf5 import Hdf5Source
from pipeline.sources.in_process import CarriedSource
from pipeline.sources.label_table import with_labels
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.store import IN_PROCESS, File, LocalStore, RemoteStore, Store, open_store
from pipeline.sources.table import TableSource
from pipeline.sources.tar import TarSource
from pipeline.sources.urls import public
from pipeline.sources.zip import ZipSource

if TYPE_CHECKING:
    from pipeline.sources.base import Known

MOST_FILES = 1_000_000
"""A brace pattern of more files is taken for a typing error."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_source(
    location: str, *, allow_missing: bool = False, labels: str | None = None, known: Known | None = None
) -> Source:
    """List the images at ``location``.

    Parameters
    ----------
    location : str
        A folder; a CSV or Parquet table with a ``path`` column; one or more tar or zip archives, Parquet files with an
        image column, or HDF5 files with an image data set; a glob of images or of any of these; braces, as in
        ``shards-{000..099}.tar``, for several; or an fsspec URL of any of it. ``FILE#NAME`` picks a column or data set.
    allow_missing : bool
        For a table: files that do not exist become failed rows instead of an error.
    labels : str, optional
        A CSV or Parquet table with a column ``key``: labels, splits, groups and more, which take the place of those
        that the source itself knows.
    known : Known, optional
        Of a cache of these images: unchanged files of a folder are not opened again.

    Returns
    -------
    Source
        With at least one item.

    Raises
    ------
    SourceError
        There is no usable source; the message says what was found.
    """
    try:
        source = _open(location, allow_missing=allow_missing, known=known)
    except OSError as error:
        reason = public(error.strerror or first_line(error))
        raise SourceError(f"cannot read {public(location)}: {reason}: check the path") from None
    if labels is not None:
        source.items, without = with_labels(source.items, labels)
        source.skipped = [*without, *source.skipped] if without else source.skipped
    return source


def expand_braces(pattern: str) -> list[str]:
    """Expand a pattern with braces, in its order, as a shell does.

    Raises
    ------
    SourceError
        More than `MOST_FILES`.

    Examples
    --------
    >>> expand_braces("s-{08..10}.tar"), expand_braces("{a,b}{1..2}"), expand_braces("plain")
    (['s-08.tar', 's-09.tar', 's-10.tar'], ['a1', 'a2', 'b1', 'b2'], ['plain'])
    """
    parts: list[list[str]] = []
    count = 1
    for text in re.split(r"(\{[^{}]*\})", pattern):
        inner = text[1:-1]
        numbers = _RANGE.fullmatch(inner) if text.startswith("{") else None
        if numbers:
            first, last = numbers.groups()
            width = len(first) if first.startswith("0") else 0
            count *= abs(int(last) - int(first)) + 1
            if count <= MOST_FILES:
                step = 1 if int(first) <= int(last) else -1
                parts.append([str(n).zfill(width) for n in range(int(first), int(last) + step, step)])
        elif text.startswith("{") and "," in inner:
            parts.append(inner.split(","))
            count *= len(parts[-1])
        else:
            parts.append([text])
        if count > MOST_FILES:
            raise SourceError(
                f"expected {MOST_FILES} files at most, found {public(pattern)} to stand for {count}: correct the braces"
            )
    expanded = [""]
    for choices in parts:
        expanded = [before + choice for before in expanded for choice in choices]
    return expanded


def _open(location: str, *, allow_missing: bool, known: Known | None) -> Source:
    store, path = open_store(location)
    path, name = _split_name(store, path)
    files, root, folder = _find(store, path, location)
    if folder and isinstance(store, LocalStore):
        return FolderSource(path, known)
    if folder and name is not None:
        raise _names_nothing(location, name, "a folder")
    if folder:
        source: Source = FilesSource(location, store, files, root)
    else:
        source = _by_content(location, store, path, files, root, name, allow_missing=allow_missing)
    source.address = _address(location, store, path, name)
    here_only = source.in_process if isinstance(source, TableSource) else store.protocol in IN_PROCESS
    return CarriedSource(source) if here_only else source


def _split_name(store: Store, path: str) -> tuple[str, str | None]:
    """Split ``#NAME`` off a location, unless it is part of a file's or folder's name (``run#2/*.jpg``)."""
    before, mark, name = path.rpartition("#")
    if not mark:
        return path, None
    if store.protocol in ("http", "https"):  # never part of a request
        return before, name
    if store.is_folder(path) or _names_files(store, path) or not _names_files(store, before):
        return path, None
    return before, name


def _names_files(store: Store, pattern: str) -> bool:
    if isinstance(store, LocalStore) and os.path.isfile(pattern):
        return True
    folder, rest = _written_folder(store, pattern)
    return any(store.glob(glob.escape(folder) + one) for one in expand_braces(rest))


def _written_folder(store: Store, pattern: str) -> tuple[str, str]:
    """Split the folder off a pattern that exists on this machine as written, whatever signs its name holds."""
    if not isinstance(store, LocalStore):
        return "", pattern
    folder = posixpath.dirname(pattern)
    while folder.strip("/") and not os.path.isdir(folder):
        folder = posixpath.dirname(folder)
    at = len(folder) + 1 if folder.strip("/") else 0
    return pattern[:at], pattern[at:]


def _names_nothing(location: str, name: str, found: str) -> SourceError:
    return SourceError(
        f"expected a Parquet or HDF5 file before '#{name}' in {public(location)}, found {found}: leave out '#{name}'"
    )


def _find(store: Store, path: str, location: str) -> tuple[list[File], str, bool]:
    """Return the files that a path or pattern names, the folder their keys are relative to, and whether it is one."""
    if isinstance(store, LocalStore):
        if os.path.isdir(path):
            return [], path, True
        if os.path.exists(path):
            if not os.path.isfile(path):
                raise SourceError(
                    f"expected a folder of images or a table at {location}, found something that is neither a file nor "
                    "a folder: check the path"
                )
            file = store.look(path)
            return [file], posixpath.dirname(file.path), False
    folder, rest = _written_folder(store, path)
    patterns = expand_braces(rest)
    magic = "*[" if store.protocol in ("http", "https") else "*?["
    found: list[str] = []
    for pattern in patterns:
        if not any(sign in pattern for sign in magic):
            found.append(folder + pattern)
        elif not (matches := store.glob(glob.escape(folder) + pattern)):
            raise SourceError(f"expected files that match {public(folder + pattern)}, found none: correct the pattern")
        else:
            found += matches
    if isinstance(store, RemoteStore) and len(found) == 1 and found[0] == path and store.is_folder(path):
        files = [file for file in store.find(path) if not _hidden(file.path, path)]
        return files, path, True
    if not found or (len(patterns) == 1 and found == [path] and isinstance(store, LocalStore)):
        raise SourceError(f"expected a folder of images or a table at {location}, found nothing: check the path")

    def look(one: str) -> File:
        try:
            return store.look(one)
        except OSError as error:
            shown = one if isinstance(store, LocalStore) else store.address(one)
            reason = public(error.strerror or first_line(error))
            raise SourceError(f"cannot read {shown}: {reason}: check the path") from None

    unique = list(dict.fromkeys(found))
    root = (folder + re.split("[*?[{]", rest, maxsplit=1)[0]).rpartition("/")[0]
    if isinstance(store, LocalStore) and not os.path.isabs(path):
        root = os.path.join(os.getcwd(), root)
    return list(in_threads(look, unique)), root, False


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path[len(root) :].split("/"))


def _by_content(
    location: str, store: Store, path: str, files: list[File], root: str, name: str | None, *, allow_missing: bool
) -> Source:
    kinds = list(in_threads(lambda file: kind_of(store, file), _ends(files)))
    if len(set(kinds)) > 1 and set(kinds) & {"tar", "zip", "parquet", "hdf5"}:
        raise SourceError(
            f"expected files of one kind at {public(location)}, found {kinds[0]} and {kinds[-1]}: narrow the pattern"
        )
    kind = kinds[0]
    if name is not None and kind not in ("parquet", "hdf5"):
        raise _names_nothing(location, name, {"image": "an image", "table": "a table"}.get(kind, kind))
    if kind in COMPRESSED.values():
        raise SourceError(
            f"expected an archive whose members can be read by offset, found {public(location)} packed by {kind}: "
            f"unpack the outer {kind} first; it saves little, as images are packed already"
        )
    if kind in NO_PICTURES:
        raise SourceError(f"expected images, found {public(location)}, which is a {kind}: {NO_PICTURES[kind]}")
    if kind == "tar":
        return TarSource(location, store, files)
    if kind == "zip":
        return ZipSource(location, store, files)
    if kind == "hdf5":
        return Hdf5Source(location, store, files, name)
    if kind == "parquet" and (name is not None or has_images(store, files[0])):
        return ParquetSource(location, store, files, name)
    if kind == "image" or len(files) > 1:
        return FilesSource(location, store, files, root)
    if isinstance(store, LocalStore):
        location = path if os.path.exists(path) else files[0].path
    return TableSource(location, allow_missing=allow_missing)


def _ends(files: list[File]) -> list[File]:
    return [files[0]] if len(files) == 1 else [files[0], files[-1]]


def _address(location: str, store: Store, path: str, name: str | None) -> str:
    """Return the address that opens the source again from any folder, without credentials."""
    if not isinstance(store, LocalStore):
        return public(location)
    address = os.path.abspath(path)
    return f"{address}#{name}" if name else address
