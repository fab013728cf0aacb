"""Copying rows from one cache into another, each checked against its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.format import ledger_crcs, row_crcs
from pipeline.cache.writer import CacheWriter
from pipeline.core.items import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.cache.reader import Cache

CHUNK_BYTES = 16 << 20


def chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Cut rows into slices of about 16 MiB, so that memory stays bounded."""
    step = max(1, min(1 << 16, CHUNK_BYTES // max(1, row_bytes)))
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Which rows of a new file come from one cache.

    Attributes
    ----------
    source : Cache
    origin : (N,) int64
        For each row of the new file its row in ``source``; -1 where it has none.
    """

    source: Cache
    origin: NDArray[np.int64]


def fill_from(
    path: Path, plans: Sequence[CopyPlan], *, check: Callable[[], None] = lambda: None
) -> list[NDArray[np.int64]]:
    """Copy rows into a file that was just laid out; of several plans for a row the first that has it done counts.

    Parameters
    ----------
    path : Path
    plans : sequence of CopyPlan
    check : callable
        Called between chunks; may raise to stop.

    Returns
    -------
    list of (k,) int64
        For each plan the rows of the new file that were damaged in its source, and left out.
    """
    writer = CacheWriter(path)
    try:
        taken = np.zeros(len(plans[0].origin), dtype=np.bool_)
        damaged = []
        for plan in plans:
            done = (plan.origin >= 0) & ~taken
            done[done] = plan.source.status[plan.origin[done]] != Status.TODO
            damaged.append(copy_rows(plan.source, writer, np.where(done, plan.origin, -1), check=check))
            taken |= done
        return damaged
    finally:
        writer.close()


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
