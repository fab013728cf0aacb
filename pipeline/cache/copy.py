"""Copying rows from one cache into another, each checked against its checksum on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.format import ledger_crcs, row_crcs
from pipeline.core.items import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.cache.reader import Cache
    from pipeline.cache.writer import CacheWriter

CHUNK_BYTES = 16 << 20


def chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Cut rows into slices of about 16 MiB, so that memory stays bounded whatever their number and width."""
    step = max(1, min(1 << 16, CHUNK_BYTES // max(1, row_bytes)))
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def copy_rows(
    source: Cache,
    writer: CacheWriter,
    origin: NDArray[np.int64],
    *,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.int64]:
    """Copy and commit rows with all that belongs to them; rows to do stay to do.

    Parameters
    ----------
    source : Cache
        Where from; must have the layers of the file that is written.
    writer : CacheWriter
        Where to.
    origin : (N,) int64
        For each row of the new file its row in ``source``; -1 where it has none.
    check : callable
        Called between chunks; may raise to stop.

    Returns
    -------
    (k,) int64
        Rows of the new file whose row in ``source`` does not match its checksum: they were left out.
    """
    layers = source.layers
    row_bytes = sum(rows.dtype.itemsize * rows.shape[1] for rows in layers.values())
    damaged = []
    known = np.flatnonzero(origin >= 0)
    for part in chunks(len(known), row_bytes):
        check()
        new, old = known[part], origin[known[part]]
        statuses = np.asarray(source.status[old])
        new, old, statuses = (column[statuses != Status.TODO] for column in (new, old, statuses))
        outputs = {name: np.asarray(rows[old]) for name, rows in layers.items()}
        hashes, crcs = np.asarray(source.content_hash[old]), row_crcs(old, list(outputs.values()))
        whole = (crcs == source.crc32[old]) & (ledger_crcs(old, statuses, crcs, hashes) == source.ledger_crc32[old])
        damaged.append(new[~whole])
        writer.write(new[whole], {name: rows[whole] for name, rows in outputs.items()}, hashes[whole], statuses[whole])
        writer.commit()
    return np.concatenate(damaged) if damaged else np.zeros(0, dtype=np.int64)
