"""The kind of a file, detected by its content."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.decoding.formats import is_image, named_like_an_image
from pipeline.sources.parquet import image_columns
from pipeline.sources.table import PARQUET_MAGIC

if TYPE_CHECKING:
    from pipeline.sources.store import File, Store

HEAD_BYTES = 512
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def kind_of(store: Store, file: File) -> str:
    """Return the kind of a file, by its first bytes; what is not known by them and is named like an image, is one."""
    head = store.head(file.path, HEAD_BYTES)
    if head[257:262] == b"ustar" or _is_old_tar(head):
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    packed = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if packed:
        return packed
    return "image" if is_image(head) or named_like_an_image(os.fsencode(file.path)) else "table"


def _is_old_tar(head: bytes) -> bool:
    """Return whether this is a tar archive without the POSIX magic, by its header's checksum."""
    digits = head[148:156].strip(b" \0")
    if len(head) < 512 or not digits or not digits.isdigit() or any(byte > 0x37 for byte in digits):
        return False
    return sum(head[:148]) + 8 * 0x20 + sum(head[156:512]) == int(digits, 8)


def has_images(store: Store, file: File) -> bool:
    """Return whether a Parquet file holds images rather than paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.open(file.path) as raw:
            schema: Any = pq.read_schema(raw)
    except (pa.ArrowException, OSError):
        return False  # the table's reader raises the error
    return bool(image_columns(schema)) and ("path" not in schema.names or bool({"image", "img"} & set(schema.names)))
