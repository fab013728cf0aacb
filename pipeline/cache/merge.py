"""Several caches of the same numbers → one: the parts of a job array, or archives that grew apart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.cache.copy import copy_rows
from pipeline.cache.failures import append_reasons
from pipeline.cache.format import Items, canonical_json
from pipeline.cache.lock import write_lock
from pipeline.cache.publish import lay_out
from pipeline.cache.reader import Cache
from pipeline.cache.spec import check_same_numbers
from pipeline.cache.writer import DONE, TODO, CacheWriter
from pipeline.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

OnDuplicate = Literal["refuse", "first", "last"]


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made.

    Attributes
    ----------
    rows, duplicates : int
        Rows of the new cache; rows left out because another with the same key was taken.
    to_do, failed : int
        Rows that have no embedding.
    """

    rows: int
    duplicates: int
    to_do: int
    failed: int


def merge(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    on_duplicate: OnDuplicate = "refuse",
    say: Callable[[str], None] = lambda text: None,
) -> Merged:
    """Write the rows of several caches into a new one.

    Of rows with the same key one is taken: a computed one before a failed one before one to do. Where their content,
    label or columns differ, ``on_duplicate`` decides.

    Parameters
    ----------
    paths : sequence of path
        Caches of one fingerprint.
    output : path
        Must not exist; appears when it is whole.
    on_duplicate : {"refuse", "first", "last"}
        Which of the caches, in the order given, is right about an image that they disagree on.
    say : callable
        Is told when the caches were made with different versions of libraries.

    Returns
    -------
    Merged

    Raises
    ------
    FingerprintError
        The caches hold different numbers; the message names the fields.
    CacheError
        The output exists or cannot be written, an input is damaged, or the caches disagree on an image.
    """
    output = Path(output)
    if output.exists():
        raise CacheError(f"expected no file at {output}, found one: remove it, or choose another output")
    caches = [Cache(path) for path in paths]
    first = caches[0]
    for cache in caches[1:]:
        check_same_numbers(
            cache.spec,
            first.spec,
            where=str(cache.path),
            way_out=f"extract both as {first.path} was, then merge",
        )
        if cache.versions != first.versions:
            say(f"warning: {cache.path} and {first.path} were made with different versions: see pipeline info")
    items = _joined([cache.items for cache in caches])
    owner = np.repeat(np.arange(len(caches)), [len(cache) for cache in caches])
    local = np.concatenate([np.arange(len(cache)) for cache in caches])
    status = np.concatenate([cache.status for cache in caches])
    hashes = np.concatenate([cache.content_hash for cache in caches])
    taken = _choose(items, status, hashes, owner, [cache.path for cache in caches], on_duplicate)

    def fill(part: Path) -> None:
        writer = CacheWriter(part)
        try:
            for number, cache in enumerate(caches):
                origin = np.where(owner[taken] == number, local[taken], -1)
                damaged = copy_rows(cache, writer, origin)
                if len(damaged):
                    row = int(origin[damaged[0]])
                    raise CacheError(
                        f"{cache.path} is damaged: {len(damaged)} rows do not match their checksums, the first is "
                        f"row {row} ({str(cache.keys[row])!r}): restore it from a copy, or extract it again"
                    )
        finally:
            writer.close()

    with write_lock(output):
        lay_out(
            output,
            _take(items, taken),
            widths={name: rows.shape[1] for name, rows in first.layers.items()},
            dtype=first.dtype,
            attributes={
                "spec": canonical_json(first.spec),
                "fingerprint": first.fingerprint,
                "versions": canonical_json(first.versions),
                "self_check": canonical_json(first.self_check),
                "source": canonical_json(_source(caches)),
            },
            fill=fill,
        )
        for cache in caches:
            append_reasons(output, ((str(cache.keys[row]), reason) for row, reason in cache.reasons().items()))
    result = status[taken]
    return Merged(
        rows=len(taken),
        duplicates=len(items) - len(taken),
        to_do=int((result == TODO).sum()),
        failed=int((result > DONE).sum()),
    )


def _choose(
    items: Items,
    status: NDArray[np.uint8],
    hashes: NDArray[np.uint8],
    owner: NDArray[np.int64],
    paths: Sequence[Path],
    on_duplicate: OnDuplicate,
) -> NDArray[np.int64]:
    """Return which rows to take, one for each key, in the order in which keys first appear."""
    _, key = np.unique(items.keys, return_inverse=True)
    rank = np.select([status == DONE, status > DONE], [0, 1], 2)
    age = np.arange(len(items)) if on_duplicate != "last" else -np.arange(len(items))
    order = np.lexsort((age, rank, key))
    best = np.ones(len(order), dtype=np.bool_)
    best[1:] = key[order[1:]] != key[order[:-1]]
    if on_duplicate == "refuse":
        one, other = order[:-1][~best[1:]], order[1:][~best[1:]]
        both = (status[one] == DONE) & (status[other] == DONE)
        reasons = {
            "content": both & np.any(hashes[one] != hashes[other], axis=1),
            "label": np.not_equal(items.labels[one], items.labels[other]),
            **{f"column {name}": _differ(column[one], column[other]) for name, column in items.columns.items()},
        }
        for what, differing in reasons.items():
            if differing.any():
                pair = int(np.flatnonzero(differing)[0])
                where = [str(paths[owner[rows[pair]]]) for rows in (one, other)]
                raise CacheError(
                    f"{where[0]} and {where[1]} disagree on the {what} of "
                    f"{os.fsdecode(bytes(items.keys[one[pair]]))!r} ({int(differing.sum())} such rows): pass "
                    "--on-duplicate first or last to choose"
                )
    winner = np.empty(int(key.max()) + 1, dtype=np.int64)
    winner[key[order[best]]] = order[best]
    _, appearance = np.unique(key, return_index=True)
    return winner[np.argsort(appearance)]


def _joined(parts: Sequence[Items]) -> Items:
    """Return the item lists one after the other, with label names and columns united."""
    names = tuple(sorted({name for part in parts for name in part.label_names}))
    index = {name: i for i, name in enumerate(names)}
    labels = [
        np.array([*(index[name] for name in part.label_names), -1], dtype=np.int32)[part.labels] for part in parts
    ]
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    return Items(
        keys=np.concatenate([part.keys for part in parts]),
        labels=np.concatenate(labels),
        label_names=names,
        sizes=np.concatenate([part.sizes for part in parts]),
        mtimes_ns=np.concatenate([part.mtimes_ns for part in parts]),
        columns={
            name: _joined_column([part.columns.get(name) for part in parts], list(map(len, parts))) for name in columns
        },
    )


def _joined_column(parts: Sequence[NDArray[Any] | None], lengths: Sequence[int]) -> NDArray[Any]:
    """Join a column that some parts may lack: missing numbers become NaN, missing text empty."""
    kinds = {part.dtype.kind for part in parts if part is not None}
    if len(kinds) > 1 and kinds & {"U", "S"}:
        parts = [None if part is None else part.astype(np.str_) for part in parts]
        kinds = {"U"}
    if any(part is None for part in parts) and kinds != {"U"}:
        parts = [None if part is None else part.astype(np.float64) for part in parts]
    missing: Any = "" if kinds == {"U"} else np.nan
    return np.concatenate(
        [np.full(length, missing) if part is None else part for part, length in zip(parts, lengths, strict=True)]
    )


def _take(items: Items, rows: NDArray[np.int64]) -> Items:
    return Items(
        keys=items.keys[rows],
        labels=items.labels[rows],
        label_names=items.label_names,
        sizes=items.sizes[rows],
        mtimes_ns=items.mtimes_ns[rows],
        columns={name: column[rows] for name, column in items.columns.items()},
    )


def _differ(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    differing: NDArray[np.bool_] = np.not_equal(one, other)
    return differing & ~(np.isnan(one) & np.isnan(other)) if one.dtype.kind == "f" else differing


def _source(caches: Sequence[Cache]) -> dict[str, str]:
    """Say where the images are: ``root`` only where it is the same for all."""
    roots = {cache.source.get("root") for cache in caches}
    more = f", … ({len(caches)} caches)" if len(caches) > 3 else ""  # an attribute has room for some only
    joined = {"kind": "merge", "location": ", ".join(str(cache.path) for cache in caches[:3]) + more}
    root = roots.pop()
    return joined if roots or root is None else {**joined, "root": root}
