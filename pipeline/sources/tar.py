"""Tar archives, one or many: listed by `tarfile`, read by offset, never unpacked."""

from __future__ import annotations

import errno
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.decoding.formats import SNIFF_BYTES, named_like_an_image
from pipeline.sources.archive import (
    CUT_OFF,
    IMAGE,
    MAX_SIDECAR_BYTES,
    NOT_A_FILE,
    TOO_LARGE,
    ArchiveSource,
    Listing,
    is_sidecar,
    reason_for,
)
from pipeline.sources.base import MAX_MEMBER_BYTES

if TYPE_CHECKING:
    from typing import BinaryIO

    from pipeline.core.items import Reader
    from pipeline.sources.store import File, Store


class TarSource(ArchiveSource):
    """The images in tar archives; see `ArchiveSource`."""

    kind = "tar"
    numbers = ("offset", "size")
    unreadable = (tarfile.TarError, OSError, ValueError, RecursionError, EOFError, OverflowError)

    @staticmethod
    def _list(store: Store, file: File, listing: Listing) -> None:
        with store.open(file.path) as raw:
            _walk(raw, listing)

    def reader(self) -> Reader:
        """Return a reader of members."""
        return TarReader(self._store, self._files)


@dataclass(frozen=True, slots=True)
class TarReader:
    """Reads members by offset.

    Parameters
    ----------
    store : Store
    files : tuple of File
    """

    store: Store
    files: tuple[File, ...]

    def __call__(self, locator: tuple[int, int, int]) -> bytes:
        """Return the member's bytes; raises `OSError`."""
        file, offset, size = locator
        if size > MAX_MEMBER_BYTES:
            raise OSError(errno.EFBIG, f"member of {size} bytes, above {MAX_MEMBER_BYTES}")
        return self.store.read(self.files[file], offset, size)


def _walk(raw: BinaryIO, listing: Listing) -> None:
    # Without a name and with "r:", tarfile neither guesses a compression nor keeps the file.
    with tarfile.open(fileobj=raw, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        before = -1
        while True:
            try:
                member = archive.next()
            except tarfile.ReadError:
                if before < 0:
                    raise
                member = None
            archive.members.clear()  # type: ignore[attr-defined]  # a million TarInfo would cost gigabytes
            if member is None:
                break
            if archive.offset <= before:  # negative sizes would lead backwards
                raise tarfile.ReadError(f"it leads in a circle at byte {before}")
            before = archive.offset
            if not member.isdir():
                _add(raw, member, listing)
        raw.seek(0, os.SEEK_END)
        if archive.offset > raw.tell():
            listing.add(b"the end", CUT_OFF)
            return
        raw.seek(archive.offset)
        rest = raw.read(tarfile.BLOCKSIZE)
        if len(rest) == tarfile.BLOCKSIZE and any(rest):
            raise tarfile.ReadError(f"no header at byte {archive.offset}, after sound ones")
        if 0 < len(rest) < tarfile.BLOCKSIZE:
            listing.add(b"the end", CUT_OFF)


def _add(raw: BinaryIO, member: tarfile.TarInfo, listing: Listing) -> None:
    name = member.name.encode("utf-8", "surrogateescape")
    if not member.isreg() or member.issparse():
        listing.add(name, NOT_A_FILE)
    elif member.size > MAX_MEMBER_BYTES:
        listing.add(name, TOO_LARGE)
    else:
        raw.seek(member.offset_data)
        if member.size <= MAX_SIDECAR_BYTES and is_sidecar(name):
            listing.add_sidecar(name, raw.read(member.size))
        else:
            reason = IMAGE if named_like_an_image(name) else reason_for(raw.read(min(SNIFF_BYTES, member.size)))
            listing.add(name, reason, offset=member.offset_data, size=member.size)
