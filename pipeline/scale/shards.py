"""Shards for job arrays: every job lists the whole archive, embeds its own part, and says so in its cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cache import ShardRecord
from pipeline.cache.shard import items_sha256
from pipeline.errors import PipelineError, SourceError
from pipeline.sources import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.core.items import Reader

SLURM = "slurm"
PLACEHOLDER = "{shard}"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``number`` of ``count``, from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """Read ``"I/N"`` with I from 1 to N, or ``"slurm"`` for what Slurm says of the array's task.

        Raises
        ------
        PipelineError
            It is something else, or Slurm's variables are not there or not those of consecutive tasks.

        Examples
        --------
        >>> Shard.parse("3/8")
        Shard(number=3, count=8)
        """
        if text == SLURM:
            return _of_slurm(environ)
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise PipelineError(
                f"expected --shard I/N with I from 1 to N, such as 3/8, or slurm, found {text!r}: mend it"
            )
        return cls(int(number), int(count))

    def name(self, output: str) -> str:
        """Put the number, with as many digits as the count, where ``output`` has ``{shard}``.

        Examples
        --------
        >>> Shard(3, 16).name("cache-{shard}.h5")
        'cache-03.h5'
        """
        return output.replace(PLACEHOLDER, f"{self.number:0{len(str(self.count))}}")


class ShardSource(Source):
    """Consecutive items of another source, with the label names of all of it.

    Parts differ by one item at most, and one after the other they are the whole list.

    Parameters
    ----------
    whole : Source
    shard : Shard

    Attributes
    ----------
    whole : Source
    record : ShardRecord
        What the cache keeps.

    Raises
    ------
    SourceError
        There are fewer items than shards.
    """

    def __init__(self, whole: Source, shard: Shard) -> None:
        if shard.count > len(whole):
            raise SourceError(
                f"expected at least as many images as shards, found {len(whole)} images and {shard.count} shards: use "
                "fewer shards"
            )
        items = whole.items
        self.whole, self.kind, self.location, self.skipped = whole, whole.kind, whole.location, whole.skipped
        self.record = ShardRecord(shard.number, shard.count, len(items), items_sha256(items))
        rows = self.record.rows
        self._first = rows.start
        self.items = items.take(rows)

    def locator(self, i: int) -> Any:
        """Return the locator of item ``i`` of the part."""
        return self.whole.locator(self._first + i)

    def reader(self) -> Reader:
        """Return the whole source's reader."""
        return self.whole.reader()

    def describe(self) -> dict[str, str]:
        """Return where the images are, as the whole source does."""
        return self.whole.describe()


def _of_slurm(environ: Mapping[str, str]) -> Shard:
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    missing = [name for name in names if not environ.get(name, "").isdecimal()]
    if missing:
        raise PipelineError(
            f"expected the task of a Slurm array, found no {missing[0]}: submit with sbatch --array, or pass "
            "--shard I/N"
        )
    task, first, last, count = (int(environ[name]) for name in names)
    step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
    if last != first + (count - 1) * step or (task - first) % step:
        raise PipelineError(
            f"expected consecutive tasks of a Slurm array, found {count} from {first} to {last}: to run some of them "
            "again, pass --shard I/N with the first run's N"
        )
    return Shard((task - first) // step + 1, count)
