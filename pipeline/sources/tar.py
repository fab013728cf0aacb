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
    NOT_A_FILE,
    REST,
    SPARSE,
    TOO_LARGE,
    ArchiveSource,
    Listing,
    reason_for,
)
from pipeline.sources.base import MAX_MEMBER_BYTES
from pipeline.sources.joined import read_together, span_in
from pipeline.sources.retries import Patience
from pipeline.sources.sidecars import MAX_SIDECAR_BYTES, is_sidecar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from pipeline.core.items import Reader
    from pipeline.sources.store import File, Store


ZEROS_AT_ONCE = 1 << 16
POSIX_MAGIC = b"ustar\0"


class Member(tarfile.TarInfo):
    """A member whose name has a prefix only in archives of POSIX; GNU tar writes times at its place."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        if buf[257:263] != POSIX_MAGIC:
            prefix = bytes(buf[345:500]).partition(b"\0")[0].decode(encoding, errors)
            member.name = member.name.removeprefix(f"{prefix}/") if prefix else member.name
        return member


class TarSource(ArchiveSource):
    """The images in tar archives; see `ArchiveSource`."""

    kind = "tar"
    numbers = ("offset", "size")
    unreadable = (tarfile.TarError, OSError, ValueError, RecursionError, EOFError, OverflowError)

    @staticmethod
    def _list(store: Store, file: File, listing: Listing) -> None:
        with store.open(file, Patience()) as raw:
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

    def span(self, locator: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """Return the file and the bytes of a member, as `pipeline.core.items.JoiningReader` says."""
        file, offset, size = locator
        return span_in(self.store, self.files[file], file, offset, offset + size)

    def read_together(self, locators: Sequence[tuple[int, int, int]]) -> list[bytes | Exception]:
        """Read neighbours by one request."""
        return read_together(self, locators)


def _walk(raw: BinaryIO, listing: Listing) -> None:
    """List an archive, and those that follow it: ``cat a.tar b.tar`` is how archives are put together."""
    start: int | None = 0
    while start is not None:
        raw.seek(start)
        start = _next_archive(raw, _walk_one(raw, listing), listing)


def _walk_one(raw: BinaryIO, listing: Listing) -> int | None:
    """List the archive that begins here; return the end of its members, or None where it is cut off there."""
    # Without a name and with "r:", tarfile neither guesses a compression nor keeps the file.
    with tarfile.open(fileobj=raw, mode="r:", encoding="utf-8", errors="surrogateescape", tarinfo=Member) as archive:
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
        end = archive.offset
    raw.seek(0, os.SEEK_END)
    if end <= raw.tell():
        raw.seek(end)
        rest = raw.read(tarfile.BLOCKSIZE)
        if len(rest) == tarfile.BLOCKSIZE and any(rest):
            if not _leads_beyond(raw, rest):
                raise tarfile.ReadError(f"no header at byte {end}, after sound ones")
        elif len(rest) in (0, tarfile.BLOCKSIZE):
            return end
    listing.add(b"the end", CUT_OFF)
    return None


def _leads_beyond(raw: BinaryIO, block: bytes) -> bool:
    """Return whether ``raw``, which stands behind a header such as that of a long name, ends before the next header."""
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        return False
    place = raw.tell()
    return place + size + -size % tarfile.BLOCKSIZE + tarfile.BLOCKSIZE > raw.seek(0, os.SEEK_END)


def _next_archive(raw: BinaryIO, end: int | None, listing: Listing) -> int | None:
    """Return where another archive begins after the zeros that end one, or None; other bytes there are reported."""
    if end is None:
        return None
    place = end - end % tarfile.BLOCKSIZE
    raw.seek(place)
    while block := raw.read(ZEROS_AT_ONCE):
        if not any(block):
            place += len(block)
            continue
        inside = len(block) - len(block.lstrip(b"\0"))
        inside -= inside % tarfile.BLOCKSIZE
        try:
            tarfile.TarInfo.frombuf(block[inside : inside + tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            listing.add(b"the end", REST)
            return None
        return place + inside
    return None


def _add(raw: BinaryIO, member: tarfile.TarInfo, listing: Listing) -> None:
    name = member.name.encode("utf-8", "surrogateescape")
    if member.issparse():
        listing.add(name, SPARSE)
    elif member.islnk():
        listing.add_hard_link(name, member.linkname.encode("utf-8", "surrogateescape"))
    elif member.issym():
        listing.add_symbolic_link(name, member.linkname.encode("utf-8", "surrogateescape"))
    elif not member.isreg():
        listing.add(name, NOT_A_FILE)
    elif is_sidecar(name):
        raw.seek(member.offset_data)
        head = raw.read(min(SNIFF_BYTES, member.size))
        if reason_for(head) == IMAGE:  # content decides, not the name
            listing.add(name, offset=member.offset_data, size=member.size)
        elif member.size > MAX_SIDECAR_BYTES:
            listing.add_sidecar(name, None)
        else:
            listing.add_sidecar(name, head + raw.read(member.size - len(head)))
    elif member.size > MAX_MEMBER_BYTES:
        listing.add(name, TOO_LARGE)
    else:
        raw.seek(member.offset_data)
        reason = IMAGE if named_like_an_image(name) else reason_for(raw.read(min(SNIFF_BYTES, member.size)))
        listing.add(name, reason, offset=member.offset_data, size=member.size)
