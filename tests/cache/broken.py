"""Writers with planted bugs, which the fault tests must catch."""

from __future__ import annotations

from typing import Any

from pipeline.cache import CacheWriter


class StatusFirst(CacheWriter):
    """A planted bug: rows are called done before they are on the disk."""

    def _write_rows(self, rows: Any, outputs: Any, hashes: Any, statuses: Any) -> None:
        self._put_status(rows, statuses)
        super()._write_rows(rows, outputs, hashes, statuses)


class RowsSwapped(CacheWriter):
    """A planted bug: rows arrive in the wrong places, with checksums that fit."""

    def _write_rows(self, rows: Any, outputs: Any, hashes: Any, statuses: Any) -> None:
        super()._write_rows(rows, {name: values[::-1] for name, values in outputs.items()}, hashes, statuses)
