"""Neighbours in a remote archive, read by one request; every part is then checked as if it had been read alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.sources.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.sources.store import File, Store


class ArchiveReader(Protocol):
    """What is needed of a reader of members: a frozen dataclass whose ``store`` it reads all its bytes from."""

    @property
    def store(self) -> Store:
        """Where the archives are."""

    @property
    def files(self) -> tuple[File, ...]:
        """The archives."""

    def span(self, locator: Any) -> tuple[int, int, int] | None:
        """See `pipeline.core.items.JoiningReader`."""

    def __call__(self, locator: Any) -> bytes:
        """Return a member's bytes."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A part of a file that was read already; what lies outside of it comes from the store.

    Parameters
    ----------
    store : Store
    file : File
    offset : int
        Of the part.
    data : bytes
        Exactly the part, of the version that was listed.
    """

    store: Store
    file: File
    offset: int
    data: bytes

    def read(self, file: File, offset: int, size: int) -> bytes:
        """Return the bytes; see `pipeline.sources.store.Store.read`."""
        start = offset - self.offset
        if file != self.file or start < 0 or size < 0 or start + size > len(self.data):
            return self.store.read(file, offset, size)
        return self.data[start : start + size]


def span_in(store: Store, file: File, number: int, start: int, end: int) -> tuple[int, int, int] | None:
    """Return a member's span; None on this machine, and where it is not within the file, which its own read says."""
    if isinstance(store, LocalStore) or not 0 <= start <= end <= file.size:
        return None
    return number, start, end


def read_together(reader: ArchiveReader, locators: Sequence[Any]) -> list[bytes | Exception]:
    """Read members of one archive by one request; return the bytes of each, or its own error.

    Raises
    ------
    OSError
        Of the request; `Changed` where the archive is another one now.
    """
    spans = [span for span in map(reader.span, locators) if span is not None]
    file = reader.files[spans[0][0]]
    start, end = min(span[1] for span in spans), max(span[2] for span in spans)
    data = reader.store.read(file, start, end - start)
    near: Any = replace(cast("Any", reader), store=Fetched(reader.store, file, start, data))
    return [_attempt(near, locator) for locator in locators]


def _attempt(reader: ArchiveReader, locator: Any) -> bytes | Exception:
    try:
        return reader(locator)
    except Exception as error:  # passed on to the one who takes it
        return error
