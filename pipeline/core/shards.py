"""Parts of an item list, for job arrays: the part of a job, and its record in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.spec import canonical_json
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.core.items import ItemTable


SLURM = "slurm"
PLACEHOLDER = "{shard}"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``number`` of ``count``, from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """Read ``"I/N"`` with I from 1 to N, or ``"slurm"`` for the part of this Slurm array task.

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
                f"expected --shard I/N with I from 1 to N, such as 3/8, or slurm, found {text!r}: correct it"
            )
        return cls(int(number), int(count))

    def name(self, output: str) -> str:
        """Replace ``{shard}`` in ``output`` by the number, with as many digits as the count.

        Examples
        --------
        >>> Shard(3, 16).name("cache-{shard}.h5")
        'cache-03.h5'
        """
        return output.replace(PLACEHOLDER, f"{self.number:0{len(str(self.count))}}")


HASHED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The attribute ``shard`` of a cache that holds one of several consecutive parts of an item list.

    Attributes
    ----------
    number, count : int
        Part ``number`` of ``count``, from 1.
    total : int
        ItemTable of the whole list.
    items_sha256 : str
        Of the whole list, see `items_sha256`.
    """

    number: int
    count: int
    total: int
    items_sha256: str

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    @property
    def rows(self) -> slice:
        """The rows of the whole list that this part holds; parts differ by one row at most."""
        return slice((self.number - 1) * self.total // self.count, self.number * self.total // self.count)

    def to_json(self) -> str:
        """Return the attribute's text."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """Read the attribute's text.

        Raises
        ------
        ValueError
            It is something else.
        """
        try:
            record = cls(**json.loads(text))
            sound = 1 <= record.number <= record.count <= record.total
        except TypeError:
            sound = False
        if not sound:
            raise ValueError(f"no shard: {text[:60]}")
        return record


def items_sha256(items: ItemTable) -> str:
    """Return the SHA-256 of an item list: keys, sizes, labels and columns.

    Times are left out: a copy of the archive on another node has others.
    """
    digest = hashlib.sha256(canonical_json([len(items), list(items.label_names), sorted(items.columns)]).encode())
    for name in sorted(items.columns):
        _add(digest, items.columns[name])
    for values in (items.keys, items.sizes, items.labels):
        _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, values: NDArray[Any]) -> None:
    """Hash a column by its values, not by how wide an array holds them."""
    digest.update(values.dtype.kind.replace("U", "S").encode())
    for start in range(0, len(values), HASHED_AT_ONCE):
        part = values[start : start + HASHED_AT_ONCE]
        if part.dtype.kind == "U":
            part = np.char.encode(part, "utf-8", "surrogateescape")
        if part.dtype.kind == "S":
            digest.update(np.char.str_len(part).astype("<i4").tobytes())
            digest.update(b"".join(part.tolist()))
        else:
            digest.update(part.astype(part.dtype.newbyteorder("<")).tobytes())


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
