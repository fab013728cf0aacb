"""Detection of flipped bits, swapped rows, truncation and foreign files, without risk from a hostile file.

One SHA-256 covers the bytes that never change, and checksums cover every row. Together they cover the whole file
except rows that are still to do.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import format as fmt
from pipeline.cache.copy import chunks
from pipeline.cache.format import Extent, ledger_crcs, row_crcs
from pipeline.cache.reader import Cache
from pipeline.cache.sandbox import Layout, probe
from pipeline.cache.structure import structural_faults
from pipeline.core.files import file_identity
from pipeline.core.items import Status
from pipeline.core.spec import fingerprint
from pipeline.errors import CacheError

NAMED = 5
"""Damaged places that an error names; the others are counted."""
IMAGES_AT_ONCE = 4096

HashImages = Callable[[Cache], Callable[[NDArray[np.int64]], NDArray[np.uint8]]]
Progress = Callable[[int, int, int], None]


@dataclass(slots=True)
class Findings:
    """What is in a sound cache.

    Attributes
    ----------
    rows, done, failed, to_do : int
        All rows, and those of each kind.
    uncommitted : int
        Rows to do that hold a complete row: written, but not committed when the writer stopped.
    images_changed, images_gone : list of str
        Keys of done rows whose image has changed, or cannot be read; empty where images were not compared.
    """

    rows: int = 0
    done: int = 0
    failed: int = 0
    to_do: int = 0
    uncommitted: int = 0
    images_changed: list[str] = field(default_factory=list)
    images_gone: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every image is in the cache, as it is now."""
        return self.done == self.rows and not self.images_changed and not self.images_gone


def verify(
    path: str | os.PathLike[str],
    *,
    hash_images: HashImages | None = None,
    progress: Progress = lambda ready, failed, total: None,
) -> Findings:
    """Check a cache byte by byte.

    Parameters
    ----------
    path : path
        The cache; may be being written meanwhile.
    hash_images : callable, optional
        Takes the cache and returns a function that hashes its images by row. Images are then compared too.
    progress : callable
        Called with (rows checked, rows failed, rows in total).

    Returns
    -------
    Findings

    Raises
    ------
    CacheError
        It is damaged; the message names what and where.
    """
    path, before = Path(path), _identity(Path(path))
    try:
        return _verify(path, hash_images, progress)
    except CacheError:
        if _identity(path) == before:
            raise
    # An update put a new file in its place meanwhile, so that parts of two files were compared.
    return _verify(path, hash_images, progress)


def _verify(path: Path, hash_images: HashImages | None, progress: Progress) -> Findings:
    layout = probe(path)
    extents = _check_structure(path, layout)
    findings = Findings(rows=extents[fmt.STATUS].shape[0])
    damage = _Damage(path)
    with path.open("rb", buffering=0) as raw:
        stored = os.pread(raw.fileno(), 32, extents[fmt.STATIC_SHA256].offset)
        if fmt.static_sha256(path, extents) != stored:
            damage.add("its metadata or item list does not match its hash")
            damage.raise_any()  # the other checks depend on it
        read = _RowReader(raw.fileno(), extents)
        row_bytes = sum(extents[name].row_bytes for name in read.layers)
        for part in chunks(findings.rows, row_bytes):
            _check_rows(np.arange(part.start, part.stop), read, findings, damage)
            progress(part.stop, findings.failed, findings.rows)
    damage.raise_any()
    if hash_images is not None:
        _check_images(Cache(path), hash_images, findings, progress)
    return findings


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return file_identity(path.stat())
    except OSError:
        return None


def _check_structure(path: Path, layout: Layout) -> dict[str, Extent]:
    """Refuse a file whose datasets are not those of a cache, or overlap."""
    attributes, extents = layout.attributes, layout.extents
    fmt.check_format(path, attributes)
    damage = _Damage(path)
    for fault in structural_faults(attributes, extents):
        damage.add(fault)
    damage.raise_any()
    if attributes["fingerprint"] != fingerprint(json.loads(attributes["spec"])):
        damage.add("its fingerprint is not that of its spec")
    placed = sorted((e.offset, e.offset + e.nbytes, name) for name, e in extents.items() if e.nbytes)
    for (_, stop, one), (start, _, other) in itertools.pairwise(placed):
        if start < stop:
            damage.add(f"/{one} and /{other} overlap")
    damage.raise_any()
    return extents


class _RowReader:
    """Reads rows by plain reads: on a map, a truncation meanwhile would be a SIGBUS instead of an error."""

    def __init__(self, fd: int, extents: Mapping[str, Extent]) -> None:
        self._fd, self._extents = fd, extents
        self.layers = [fmt.EMBEDDINGS, *(name for name in extents if name.startswith(fmt.LAYERS + "/"))]
        self.classes = extents[fmt.LABEL_NAMES].shape[0]

    def __call__(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return consecutive rows of a dataset."""
        extent = self._extents[name]
        first, wanted = extent.offset + int(rows[0]) * extent.row_bytes, len(rows) * extent.row_bytes
        data = bytearray()
        while len(data) < wanted:
            block = os.pread(self._fd, wanted - len(data), first + len(data))
            if not block:
                raise CacheError(
                    f"expected {wanted} bytes of /{name}, found {len(data)}: the file was cut off while it was read"
                )
            data += block
        return np.frombuffer(data, dtype=extent.dtype).reshape(len(rows), *extent.shape[1:])

    def key(self, row: int) -> str:
        """Return a row's key for display."""
        return os.fsdecode(bytes(self(fmt.KEYS, np.array([row]))[0]))


def _check_rows(rows: NDArray[np.int64], read: _RowReader, findings: Findings, damage: _Damage) -> None:
    status = read(fmt.STATUS, rows)  # read first: a writer sets it last, so the row it refers to is complete
    stored, ledger, hashes = read(fmt.CRC, rows), read(fmt.LEDGER_CRC, rows), read(fmt.CONTENT_HASH, rows)
    layers = [read(name, rows) for name in read.layers]
    whole = row_crcs(rows, layers) == stored
    ended = status != Status.TODO
    ledger_ok = ledger_crcs(rows, np.where(ended, status, Status.DONE).astype(np.uint8), stored, hashes) == ledger
    finite = np.all([np.isfinite(layer).all(axis=1) for layer in layers], axis=0)
    labels = read(fmt.LABELS, rows)
    wrong = {
        "its status, checksum or content hash is damaged": ended & ~ledger_ok,
        "its embedding is damaged": ended & ledger_ok & ~whole,
        "its status is unknown": ended & ledger_ok & ~np.isin(status, list(Status)),
        "its embedding is not finite": (status == Status.DONE) & ledger_ok & whole & ~finite,
        "its label has no name": (labels < -1) | (labels >= read.classes),
    }
    if any(rows_wrong.any() for rows_wrong in wrong.values()):
        # A retry may have reset the row between two of the reads above.
        unmoved = read(fmt.STATUS, rows) == status
        for what, rows_wrong in wrong.items():
            damage.add_rows(what, rows[rows_wrong & unmoved], read)
    findings.done += int((status == Status.DONE).sum())
    findings.failed += int((status > Status.DONE).sum())
    findings.to_do += int((~ended).sum())
    findings.uncommitted += int((~ended & whole & ledger_ok).sum())


def _check_images(cache: Cache, hash_images: HashImages, findings: Findings, progress: Progress) -> None:
    hashes_of = hash_images(cache)
    done = np.flatnonzero(cache.status == Status.DONE)
    for start in range(0, len(done), IMAGES_AT_ONCE):
        rows = done[start : start + IMAGES_AT_ONCE]
        found = hashes_of(rows)
        gone = ~np.any(found, axis=1)
        other = np.any(found != cache.content_hash[rows], axis=1) & ~gone
        for keys, which in ((findings.images_gone, gone), (findings.images_changed, other)):
            keys.extend(os.fsdecode(bytes(key)) for key in cache.items.keys[rows[which]])
        progress(start + len(rows), len(findings.images_gone) + len(findings.images_changed), len(done))


class _Damage:
    """Collects what is wrong; names the first few, counts the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named: list[str] = []
        self._count = 0

    def add(self, what: str) -> None:
        self._count += 1
        if self._count <= NAMED:
            self._named.append(what)

    def add_rows(self, what: str, rows: NDArray[np.int64], read: _RowReader) -> None:
        for row in rows[: max(0, NAMED - self._count)].tolist():
            self._named.append(f"row {row} ({read.key(row)!r}): {what}")
        self._count += len(rows)

    def raise_any(self) -> None:
        if self._count:
            more = f", and {self._count - len(self._named)} more places" if self._count > len(self._named) else ""
            raise fmt.damaged(self._path, f"{'; '.join(self._named)}{more}")
