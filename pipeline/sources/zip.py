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
    MAX_SIDECAR_BYTES,
    NOT_A_FILE,
    NOT_AN_IMAGE,
    PACKED,
    TOO_LARGE,
    ArchiveSource,
    Listing,
    is_sidecar,
    reason_for,
)
from pipeline.sources.base import MAX_MEMBER_BYTES
from pipeline.sources.store import LocalStore

if TYPE_CHECKING:
    from pipeline.core.items import Reader
    from pipeline.sources.store import File, Store

SIGNATURE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, then lengths of name and extra field, which the data follow (APPNOTE 4.3.7)."""
SNIFF_PACKED = 1024
"""Bytes of deflated data that hold the first `SNIFF_BYTES`, with the tables that go before them."""
EXTRA_GUESS = 64
"""Bytes of the extra field that are read with the data, so that one read suffices."""
ENCRYPTED_FLAG = 0x1
UNIX, LINK_MODE = 3, 0o12


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
        with store.open(file.path) as raw, zipfile.ZipFile(raw) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    _add(archive, member, listing, read, looks=looks)

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


def _add(archive: zipfile.ZipFile, member: zipfile.ZipInfo, listing: Listing, read: ZipReader, *, looks: bool) -> None:
    name = member.filename.encode("utf-8", "surrogateescape")
    numbers = {
        "offset": member.header_offset,
        "packed": member.compress_size,
        "size": member.file_size,
        "method": member.compress_type,
        "crc": member.CRC,
        "name_bytes": len(member.orig_filename.encode()),
    }
    if member.flag_bits & ENCRYPTED_FLAG:
        listing.add(name, ENCRYPTED)
    elif member.create_system == UNIX and member.external_attr >> 28 == LINK_MODE:
        listing.add(name, NOT_A_FILE)
    elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        listing.add(name, PACKED)
    elif max(member.file_size, member.compress_size) > MAX_MEMBER_BYTES:
        listing.add(name, TOO_LARGE)
    elif max(member.file_size, member.compress_size) <= MAX_SIDECAR_BYTES and is_sidecar(name):
        try:
            listing.add_sidecar(name, read((0, *numbers.values())))  # type: ignore[arg-type]
        except OSError:
            listing.add(name, NOT_AN_IMAGE)
    elif looks and not named_like_an_image(name):
        listing.add(name, _sniff(read, member), **numbers)
    else:
        listing.add(name, IMAGE if named_like_an_image(name) else NOT_AN_IMAGE, **numbers)


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
