"""Whether a split that the user gave shares images between its sides.

Axes: N rows used, D features, H held-out rows looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.vectors import unit_rows
from pipeline.evaluation.near_duplicates import DEFAULT_THRESHOLD, exact_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

_WORK = 5e10
"""Multiplications for near copies, less than a second: of many rows only a sample of the held-out ones is compared."""

_BLOCK = 4096


def leak_of_split(cache: Cache, rows: Rows, embeddings: NDArray[Any]) -> str | None:
    """Say how many held-out rows show the picture of a training row; None where none was found.

    Parameters
    ----------
    cache : Cache
        For the content of the images.
    rows : Rows
        Split by the user.
    embeddings : ndarray of shape (rows of the cache, D)
        The layer in which near copies are looked for.
    """
    held, train = np.flatnonzero(rows.split != "train"), rows.of("train")
    first, copy = exact_pairs(np.asarray(cache.content_hash)[rows.index])
    content = np.arange(len(rows.index))
    content[copy] = first
    is_copy = np.isin(content[held], content[train])
    copied, others = int(is_copy.sum()), held[~is_copy]
    sample, near = _near_copies(rows, embeddings, others, train)
    parts = []
    if copied:
        parts.append(f"{copied} of {len(held)} held-out images are byte for byte training images")
    if near:
        parts.append(
            f"{near} of {len(sample)} others have nearly the embedding of one (cosine from {DEFAULT_THRESHOLD:g})"
        )
    if not parts:
        return None
    return (
        f"the split shares images: {' and '.join(parts)}; pipeline duplicates --across split shows them, and "
        "--group-duplicates leaves them out of the measurement"
    )


def _near_copies(
    rows: Rows, embeddings: NDArray[Any], held: NDArray[np.int64], train: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Return the held-out rows looked at, and how many of them are near a training row."""
    most = max(int(_WORK / max(len(train) * embeddings.shape[1], 1)), 1)
    sample = held if len(held) <= most else np.sort(np.random.default_rng(0).permutation(held)[:most])
    asked = unit_rows(np.array(embeddings[rows.index[sample]], dtype=np.float32))
    near = np.zeros(len(sample), np.bool_)
    for start in range(0, len(train), _BLOCK):
        block = unit_rows(np.array(embeddings[rows.index[train[start : start + _BLOCK]]], dtype=np.float32))
        near |= (asked @ block.T).max(axis=1) >= DEFAULT_THRESHOLD
    return sample, int(near.sum())
