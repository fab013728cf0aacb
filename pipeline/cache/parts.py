"""How far the caches of a job array are: one part per file, seen from outside while others write."""

from __future__ import annotations

import glob
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.concat import open_cache
from pipeline.cache.lock import LOCK, holder_of, lock_path
from pipeline.cache.reader import may_be_damaged
from pipeline.cache.removed import REMOVED
from pipeline.cache.replace import unfinished_path
from pipeline.core.items import Status
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.cache.holder import Holder
    from pipeline.cache.reader import Cache
    from pipeline.core.shards import ShardRecord


class State(StrEnum):
    """What a part is doing."""

    DONE = "done"
    FAILED = "some failed"
    RUNNING = "running"
    DIED = "died"
    TO_DO = "to do"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Part:
    """A cache, or one that is about to be made.

    Attributes
    ----------
    path : Path
    state : State
        ``died``: its writer left the lock file, and does not hold the lock any more, or has not renewed its lease.
    shard : ShardRecord or None
    done, failed, to_do : int
        Rows. All are 0 before the file is made.
    rate : float or None
        Images/s since the writer began to compute.
    holder : Holder or None
        Who wrote the lock file.
    reason : str
        Why the file cannot be read; empty where it can.
    """

    path: Path
    state: State
    shard: ShardRecord | None = None
    done: int = 0
    failed: int = 0
    to_do: int = 0
    rate: float | None = None
    holder: Holder | None = None
    reason: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Time until the last row, at the present rate."""
        return self.to_do / self.rate if self.rate else None

    def __str__(self) -> str:
        cells = [str(self.path), *([str(self.shard)] if self.shard else []), self.state]
        if self.done or self.failed or self.to_do:
            cells.append(f"{self.done} done, {self.failed} failed, {self.to_do} to do")
        if self.rate:
            cells.append(f"{self.rate:.0f} images/s")
        if self.seconds_left:
            cells.append(f"{duration(self.seconds_left)} left")
        if self.holder:
            cells.append(str(self.holder))
        if self.reason:
            cells.append(self.reason)
        return "  ".join(cells)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-like data."""
        return {
            "path": str(self.path),
            "state": str(self.state),
            "shard": self.shard and {"number": self.shard.number, "count": self.shard.count},
            "done": self.done,
            "failed": self.failed,
            "to_do": self.to_do,
            "images_per_second": self.rate,
            "seconds_left": self.seconds_left,
            "holder": self.holder
            and {
                "process": self.holder.process,
                "host": self.holder.host,
                "since": self.holder.since.isoformat(),
            },
            "reason": self.reason or None,
        }


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts, and the numbers of the shards that have no file.

    Attributes
    ----------
    parts : tuple of Part
        In the order of shards, then of names.
    missing : tuple of int
        Shards of the same list without a file.
    """

    parts: tuple[Part, ...]
    missing: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no row is to do."""
        return not self.missing and all(part.state in (State.DONE, State.FAILED) for part in self.parts)

    @property
    def failed(self) -> int:
        """How many rows failed."""
        return sum(part.failed for part in self.parts)

    @property
    def idle_shards(self) -> tuple[int, ...]:
        """Numbers of the shards with rows to do that no process computes."""
        idle = {part.shard.number for part in self.parts if part.shard and part.state in (State.DIED, State.TO_DO)}
        return tuple(sorted(idle | set(self.missing)))

    def total(self) -> str:
        """Return the sum in one line."""
        states = [f"{count} {state}" for state in State if (count := sum(p.state == state for p in self.parts))]
        missing = [f"{len(self.missing)} without a file ({_few(self.missing)})"] if self.missing else []
        done, to_do = (sum(getattr(part, name) for part in self.parts) for name in ("done", "to_do"))
        rate = sum(part.rate or 0.0 for part in self.parts)
        ends = [part.seconds_left for part in self.parts if part.seconds_left]
        return "; ".join(
            [
                f"total: {len(self.parts)} part{'' if len(self.parts) == 1 else 's'}: {', '.join([*states, *missing])}",
                f"{done} images done, {self.failed} failed, {to_do} to do",
                *([f"{rate:.0f} images/s"] if rate else []),
                *([f"{duration(max(ends))} left for the parts that run"] if ends else []),
            ]
        )


def find_parts(names: Iterable[str]) -> list[Path]:
    """Return the caches that files, patterns and folders name, those that are about to be made included.

    Raises
    ------
    CacheError
        A name stands for no file.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            those = [*filter(_is_part, path.glob("*.h5")), *path.glob(f"*.h5{LOCK}")]
        elif path.exists() or lock_path(path).exists():
            those = [path]
        else:
            those = [Path(one) for pattern in (name, name + LOCK) for one in glob.glob(pattern)]  # noqa: PTH207  # any path
        if not those:
            raise CacheError(f"expected caches, a folder or a pattern such as 'photos-*.h5', found no file {name}")
        found |= dict.fromkeys(sorted(Path(str(one).removesuffix(LOCK)) for one in those))
    return list(found)


def _is_part(path: Path) -> bool:
    """Tell caches, damaged ones too, from other HDF5 files, and from what is kept of removed rows."""
    if path.name.endswith(REMOVED):
        return False
    try:
        open_cache(path)
    except CacheError:
        return may_be_damaged(path)
    return True


def look_at(paths: Sequence[Path], now: datetime | None = None) -> Parts:
    """Look at the parts as they are now.

    Parameters
    ----------
    paths : sequence of Path
        From `find_parts`.
    now : datetime, optional
        The present, in UTC.

    Raises
    ------
    CacheError
        A file is not a cache, and no damaged one either.
    """
    parts = [_look_at(path, now or datetime.now(UTC)) for path in paths]
    parts.sort(key=lambda part: (part.shard.number if part.shard else 0, part.path))
    return Parts(tuple(parts), _missing(parts))


def _look_at(path: Path, now: datetime) -> Part:
    holder = holder_of(path)
    running = holder is not None and holder.alive is not False
    if not path.exists():
        return Part(path, State.RUNNING if running else State.DIED, holder=holder)
    try:
        cache = _newest(path)
    except CacheError as error:
        if not may_be_damaged(path):
            raise
        return Part(path, State.UNREADABLE, holder=holder, reason=str(error))
    counts = np.bincount(np.asarray(cache.status), minlength=2)
    to_do, done, failed = int(counts[Status.TODO]), int(counts[Status.DONE]), int(counts[Status.DONE + 1 :].sum())
    rate = None
    if running:
        state, rate = State.RUNNING, _rate(holder, done + failed, now)
    elif to_do:
        state = State.TO_DO if holder is None else State.DIED
    else:
        state = State.FAILED if failed else State.DONE
    return Part(path, state, open_cache(path).shard, done, failed, to_do, rate, holder)


def _newest(path: Path) -> Cache:
    """Open the update of a cache, or the cache itself where it has none: the update may take its place meanwhile."""
    update = unfinished_path(path)
    if update.exists():
        try:
            return open_cache(update)
        except CacheError:
            if update.exists():
                raise
    return open_cache(path)


def _rate(holder: Holder | None, ready: int, now: datetime) -> float | None:
    if holder is None or holder.done is None or holder.computing_since is None or ready <= holder.done:
        return None
    return (ready - holder.done) / max((now - holder.computing_since).total_seconds(), 1.0)


def _missing(parts: Iterable[Part]) -> tuple[int, ...]:
    lists: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
    for part in parts:
        if part.shard:
            lists[part.shard.count, part.shard.items_sha256].add(part.shard.number)
    return tuple(sorted({n for (count, _), have in lists.items() for n in range(1, count + 1) if n not in have}))


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")


def duration(seconds: float) -> str:
    """Return a length of time for people.

    Examples
    --------
    >>> duration(40), duration(5000), duration(200000)
    ('40 s', '1 h 23 min', '55 h 33 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
