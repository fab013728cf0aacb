"""The kind of a file, detected by its content."""

from __future__ import annotations

import os
import zipfile
from typing import TYPE_CHECKING, Any

from pipeline.decoding.formats import NO_PICTURES, kind_of_image, named_like_an_image
from pipeline.sources.parquet import image_columns
from pipeline.sources.retries import Patience
from pipeline.sources.table import PARQUET_MAGIC, TEXT_COLUMNS
from pipeline.sources.text_table import encoding_of, looks_like_a_table

if TYPE_CHECKING:
    from pipeline.sources.store import File, Store

HEAD_BYTES = 4096
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HDF5_PLACES = (0, 512, 1024, 2048)
"""Where an HDF5 file may begin: MATLAB puts a block of its own before it."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def kind_of(store: Store, file: File) -> str:
    """Return the kind of a file, by the structure that its first bytes show; one named like an image else is one."""
    head = store.head(file, HEAD_BYTES)
    image = kind_of_image(head)
    if image is not None and image.name in NO_PICTURES:
        return image.name
    if looks_like_a_table(head, TEXT_COLUMNS):  # a header may begin like any other file, as BMI does like a bitmap
        return "table"
    if head[257:262] == b"ustar" or _is_old_tar(head):
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if any(head.startswith(HDF5_MAGIC, place) for place in HDF5_PLACES):
        return "hdf5"
    packed = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if packed:
        return packed
    if image is not None or named_like_an_image(os.fsencode(file.path)):
        return "image"
    return "zip" if encoding_of(head) is None and _ends_like_a_zip(store, file) else "table"


def _ends_like_a_zip(store: Store, file: File) -> bool:
    """Return whether a zip archive follows something else, as in one that unpacks itself."""
    with store.open(file, Patience()) as raw:
        return zipfile.is_zipfile(raw)


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
        with store.open(file, Patience()) as raw:
            schema: Any = pq.read_schema(raw)
    except (pa.ArrowException, OSError):
        return False  # the table's reader raises the error
    return bool(image_columns(schema)) and ("path" not in schema.names or bool({"image", "img"} & set(schema.names)))
