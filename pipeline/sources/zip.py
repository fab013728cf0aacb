"""Zip archives, one or many: listed by `zipfile`, stored and deflated members read by offset."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.decoding.formats import SNIFF_BYTES, named_like_an_image
from pipeline.sources.archive import (
    ENCRYPTED,
    IMAGE,
    NOT_AN_IMAGE,
    TOO_LARGE,
    UNREADABLE_LABEL,
    ArchiveSource,
    Listing,
    reason_for,
    reason_packed,
)
from pipeline.sources.base import MAX_MEMBER_BYTES
from pipeline.sources.joined import read_together, span_in
from pipeline.sources.retries import Patience
from pipeline.sources.sidecars import MAX_SIDECAR_BYTES, is_sidecar
from pipeline.sources.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.items import Reader
    from pipeline.sources.store import File, Store

SIGNATURE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, then lengths of name and extra field, which the data follow (APPNOTE 4.3.7)."""
SNIFF_PACKED = 1024
"""Bytes of deflated data that hold the first `SNIFF_BYTES`, with the tables that go before them."""
EXTRA_GUESS = 64
"""Bytes of the extra field that are read with the data, so that one read suffices."""
ENCRYPTED_FLAG, UTF8_FLAG = 0x1, 0x800
UNIX, LINK_MODE = 3, 0o12
WINDOWS = (0, 10, 11, 14)
"""Systems that made an archive whose names divide folders by a backslash: FAT, NTFS, MVS, VFAT."""
EXTRA_HEAD = struct.Struct("<HH")
UNICODE_PATH = 0x7075
MAX_LINK_BYTES = 1 << 12


class ZipSource(ArchiveSource):
    """The images in zip archives; see `ArchiveSource`.

    A member whose name has the suffix of an image is an item. On the local machine the content of other members
    decides. Over a network this would cost a request for each, and they are left out.
    """

    kind = "zip"
    numbers = ("offset", "packed", "size", "method", "crc", "name_bytes")
    unreadable = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error)

    @staticmethod
    def _list(store: Store, file: File, listing: Listing) -> None:
        looks = isinstance(store, LocalStore)
        read = ZipReader(store, (file,))
        with store.open(file, Patience()) as raw, zipfile.ZipFile(raw) as archive:
            for member in archive.infolist():
                if not name_of(member).endswith(b"/"):
                    _add(member, listing, read, looks=looks)

    def reader(self) -> Reader:
        """Return a reader of members."""
        return ZipReader(self._store, self._files)


@dataclass(frozen=True, slots=True)
class ZipReader:
    """Reads stored and deflated members by offset, and checks their CRC-32.

    Parameters
    ----------
    store : Store
    files : tuple of File
    """

    store: Store
    files: tuple[File, ...]

    def __call__(self, locator: tuple[int, int, int, int, int, int, int]) -> bytes:
        """Return the member's bytes; raises `OSError`."""
        number, offset, packed, size, method, crc, name_bytes = locator
        file = self.files[number]
        if max(packed, size) > MAX_MEMBER_BYTES:
            raise OSError(errno.EFBIG, f"member of {max(packed, size)} bytes, above {MAX_MEMBER_BYTES}")
        data = self.packed(file, offset, packed, name_bytes)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(errno.EIO, f"damaged in the archive: {error}") from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError(errno.EIO, "damaged in the archive: length or checksum differs from the one it states")
        return data

    def span(self, locator: tuple[int, int, int, int, int, int, int]) -> tuple[int, int, int] | None:
        """Return the file and the bytes that hold a member, as `pipeline.core.items.JoiningReader` says."""
        number, offset, packed, *_, name_bytes = locator
        file = self.files[number]
        end = min(offset + LOCAL_HEADER.size + name_bytes + EXTRA_GUESS + packed, file.size)
        return span_in(self.store, file, number, offset, end)

    def read_together(self, locators: Sequence[tuple[int, int, int, int, int, int, int]]) -> list[bytes | Exception]:
        """Read neighbours by one request."""
        return read_together(self, locators)

    def packed(self, file: File, offset: int, size: int, name_bytes: int) -> bytes:
        """Return the first bytes of a member as packed, after a header that states its own length."""
        most = LOCAL_HEADER.size + name_bytes + EXTRA_GUESS + size
        block = self.store.read(file, offset, min(most, file.size - offset))
        if len(block) < LOCAL_HEADER.size or not block.startswith(SIGNATURE):
            raise OSError(errno.EIO, "damaged in the archive: no header where there should be one")
        start = LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack_from(block)[1:])
        if start + size <= len(block):
            return block[start : start + size]
        return self.store.read(file, offset + start, size)


def _add(member: zipfile.ZipInfo, listing: Listing, read: ZipReader, *, looks: bool) -> None:
    name = name_of(member)
    numbers = {
        "offset": member.header_offset,
        "packed": member.compress_size,
        "size": member.file_size,
        "method": member.compress_type,
        "crc": member.CRC,
        "name_bytes": len(member.orig_filename.encode()),
    }
    locator = (0, *numbers.values())
    if member.flag_bits & ENCRYPTED_FLAG:
        listing.add(name, ENCRYPTED)
    elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        listing.add(name, reason_packed(member.compress_type))
    elif member.create_system == UNIX and member.external_attr >> 28 == LINK_MODE:
        short = max(member.file_size, member.compress_size) <= MAX_LINK_BYTES
        listing.add_symbolic_link(name, (_data_or_nothing(read, locator) if short else None) or b"")
    elif max(member.file_size, member.compress_size) > MAX_MEMBER_BYTES:
        listing.add(name, TOO_LARGE)
    elif is_sidecar(name) and (not looks or _sniff(read, member) != IMAGE):
        small = max(member.file_size, member.compress_size) <= MAX_SIDECAR_BYTES
        data = _data_or_nothing(read, locator) if small else b""
        if data is None:
            listing.add(name, UNREADABLE_LABEL)
        else:
            listing.add_sidecar(name, data if small else None)
    elif looks and not named_like_an_image(name):
        listing.add(name, _sniff(read, member), **numbers)
    else:
        listing.add(name, IMAGE if named_like_an_image(name) else NOT_AN_IMAGE, **numbers)


def name_of(member: zipfile.ZipInfo) -> bytes:
    """Return a member's name in UTF-8.

    Where no flag says that it is UTF-8, it is in an extra field (Info-ZIP), or the bytes are UTF-8 all the same
    (macOS), or of code page 437, which is the format's default. Programs of Windows wrote backslashes between folders.
    """
    name = member.filename.encode("utf-8", "surrogateescape")
    if not member.flag_bits & UTF8_FLAG:
        # Python 3.13 puts the name of the extra field into `filename`.
        raw = member.orig_filename.encode("cp437", "surrogateescape").partition(b"\0")[0]
        name = _unicode_path(member.extra, raw) or (raw if _is_utf8(raw) else name)
    if member.create_system in WINDOWS and b"/" not in name:
        name = name.replace(b"\\", b"/")
    return name


def _unicode_path(extra: bytes, name: bytes) -> bytes | None:
    """Return the name in Info-ZIP's extra field, where it belongs to the name beside it (APPNOTE 4.6.9)."""
    while len(extra) >= EXTRA_HEAD.size:
        kind, size = EXTRA_HEAD.unpack_from(extra)
        data, extra = extra[EXTRA_HEAD.size : EXTRA_HEAD.size + size], extra[EXTRA_HEAD.size + size :]
        if kind == UNICODE_PATH and data[:1] == b"\x01" and data[1:5] == zlib.crc32(name).to_bytes(4, "little"):
            return data[5:] if _is_utf8(data[5:]) else None
    return None


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _data_or_nothing(read: ZipReader, locator: tuple[int, ...]) -> bytes | None:
    try:
        return read(locator)  # type: ignore[arg-type]
    except OSError:
        return None


def _sniff(read: ZipReader, member: zipfile.ZipInfo) -> int:
    try:
        head = read.packed(
            read.files[0],
            member.header_offset,
            min(member.compress_size, SNIFF_PACKED),
            len(member.orig_filename.encode()),
        )
        if member.compress_type == zipfile.ZIP_DEFLATED:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, SNIFF_BYTES)
    except (OSError, zlib.error):
        return IMAGE  # its kind is unknown: its row will give the reason why it cannot be read
    return reason_for(head[:SNIFF_BYTES])
