"""Items and their outcomes: the item list as columns, the status of a row, the hash of an image's bytes."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.core.columns import concatenated
from pipeline.core.names import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Reader = Callable[[Any], bytes]
"""Takes a locator (what `pipeline.sources.Source.locator` returned), returns the bytes for the decoder; raises
`OSError`."""


class JoiningReader(Protocol):
    """A `Reader` that can also read neighbours in one file by one request."""

    def __call__(self, locator: Any) -> bytes:
        """Return the bytes."""

    def span(self, locator: Any) -> tuple[int, int, int] | None:
        """Return which bytes a read takes: (number of the file, start, end); None where it is to be read alone."""

    def read_together(self, locators: Sequence[Any]) -> Sequence[bytes | Exception]:
        """Return the bytes of each, or its own error; all have a span in the same file."""


class OutOfReach(OSError):
    """An image's store did not deliver it now, and may do so later."""


class Changed(OSError):
    """An image, or the archive that holds it, is of another version than the one that was listed."""

    def __init__(self, *args: object) -> None:  # pickled with its arguments
        super().__init__(*(args or (errno.ESTALE, "changed after it was listed")))


HASH_BYTES = 16
_LEFT_OUT_EXAMPLES = 3

DONE, FAILED, TODO, ALL = "done", "failed", "todo", "all"
"""Names of outcomes that a selection accepts, besides the name of one kind of failure."""


class Status(IntEnum):
    """The outcome of an item; the values are the cache's `/status`."""

    TODO = 0
    DONE = 1
    UNREADABLE = 2
    NOT_AN_IMAGE = 3
    CORRUPT = 4
    TOO_LARGE = 5
    UNSUPPORTED = 6
    DECODER_CRASHED = 7
    TIMED_OUT = 8
    OUT_OF_MEMORY = 9
    NOT_FINITE = 10
    OUT_OF_REACH = 11
    CHANGED = 12


def status_name(code: int) -> str:
    """Return the name of a status; a number that only a newer program knows is its own name.

    Examples
    --------
    >>> status_name(9), status_name(77)
    ('out_of_memory', 'status_77')
    """
    return Status(code).name.lower() if code in _STATUS_CODES else f"status_{code}"


_STATUS_CODES = frozenset(map(int, Status))

AGAIN = (Status.OUT_OF_REACH, Status.CHANGED)
"""Failures that the next run tries again without being asked to."""


def content_hash(data: bytes) -> bytes:
    """Return the 16-byte BLAKE2b of an image's bytes."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def as_keys(hashes: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """View (n, 16) hashes as n keys; all are equally long, so that the zeros NumPy strips make no two of them equal."""
    return np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}").reshape(-1)


def not_finite_error(kind: type[Exception], row: int, cache: object = "the cache") -> Exception:
    """Return the error for a row whose embedding holds values that are not finite.

    Examples
    --------
    >>> not_finite_error(ValueError, 3)
    ValueError('row 3 of the cache holds values that are not finite: extract it again, in float32')
    """
    return kind(f"row {row} of {cache} holds values that are not finite: extract it again, in float32")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes
    ----------
    key : str
        Stable name, unique within the source (e.g. the path relative to the folder).
    label, split, group : str or None
        Class name, part of the data set, and what must stay on one side of a split.
    """

    key: str
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was found and is not an item.

    Attributes
    ----------
    key, reason : str
        Its name, and why it was left out.
    is_lost : bool
        It appears to be meant as an image: a run that leaves it out is not complete.
    """

    key: str
    reason: str
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a source left out, in a few words.

    Attributes
    ----------
    reasons : mapping of str to int
        How many files, by reason.
    lost : int
        How many of them appear to be meant as images.
    examples : tuple of str
        Names of some, those meant as images first.
    """

    reasons: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, skipped: Iterable[Skipped]) -> LeftOut:
        """Count what was left out."""
        reasons: Counter[str] = Counter()
        lost: list[str] = []
        others: list[str] = []
        count = 0
        for skip in skipped:
            reasons[skip.reason] += 1
            count += skip.is_lost
            some = lost if skip.is_lost else others
            if len(some) < _LEFT_OUT_EXAMPLES:
                some.append(skip.key)
        return cls(dict(reasons), count, tuple([*lost, *others][:_LEFT_OUT_EXAMPLES]))

    def __str__(self) -> str:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"left out: {what} (such as {', '.join(map(one_line, self.examples))})"


@dataclass(frozen=True)
class ItemTable:
    """The items as columns; row i of each belongs to item i.

    Attributes
    ----------
    keys : (N,) fixed-length bytes
        File-system bytes of the keys: UTF-8, except for file names that are not.
    labels : (N,) int32
        Index into ``label_names``; -1 for none.
    label_names : tuple of str
        Class names, sorted, so that a new class never depends on the order of files.
    sizes, mtimes_ns : (N,) int64
        Size in bytes and modification time in nanoseconds; -1 where the source does not know.
    columns : mapping of str to (N,) array
        Further columns: ``split`` and ``group`` when there are any, and those of a table.
    """

    keys: NDArray[np.bytes_]
    labels: NDArray[np.int32]
    label_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64] | slice) -> ItemTable:
        """Return some of the items, with the label names of all."""
        return ItemTable(
            keys=self.keys[rows],
            labels=self.labels[rows],
            label_names=self.label_names,
            sizes=self.sizes[rows],
            mtimes_ns=self.mtimes_ns[rows],
            columns={name: column[rows] for name, column in self.columns.items()},
        )

    @staticmethod
    def concat(parts: Sequence[ItemTable]) -> ItemTable:
        """Return the item lists one after the other, with label names and columns united."""
        names = tuple(sorted({name for part in parts for name in part.label_names}))
        index = {name: i for i, name in enumerate(names)}
        labels = [
            np.array([*(index[name] for name in part.label_names), -1], dtype=np.int32)[part.labels] for part in parts
        ]
        columns = dict.fromkeys(name for part in parts for name in part.columns)
        lengths = list(map(len, parts))
        return ItemTable(
            keys=np.concatenate([part.keys for part in parts]),
            labels=np.concatenate(labels),
            label_names=names,
            sizes=np.concatenate([part.sizes for part in parts]),
            mtimes_ns=np.concatenate([part.mtimes_ns for part in parts]),
            columns={name: concatenated([part.columns.get(name) for part in parts], lengths) for name in columns},
        )
