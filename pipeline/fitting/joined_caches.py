"""Embeddings of further networks beside those of a cache: the same images, in the order of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cache.same_images import AlignedRows, common_status, rows_of_same_images
from pipeline.core.views import parts_of, views_of, views_of_spec
from pipeline.errors import HeadError
from pipeline.fitting.rows import read_rows
from pipeline.heads.blocks import Blocks, block_scale
from pipeline.heads.saved import FurtherEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.settings import FitSettings


@dataclass(frozen=True)
class FurtherNetwork:
    """A cache of another network that joins the first.

    Attributes
    ----------
    path : str
        The cache.
    facts : FurtherEmbeddings
        What a head keeps of it.
    embeddings : array of shape (rows of the first cache, D)
        One layer, in the order of the first cache.
    """

    path: str
    facts: FurtherEmbeddings
    embeddings: Any


def join_caches(caches: Sequence[Cache], settings: FitSettings) -> tuple[FurtherNetwork, ...]:
    """Return the networks besides the first; its rows count as done where they are in all caches.

    Parameters
    ----------
    caches : sequence of Cache
        Of the same images; the status of the first is set.
    settings : FitSettings
        ``layer`` counts.

    Raises
    ------
    CacheError
        They hold other images, or one has no such layer.
    HeadError
        Settings that are about one network.
    """
    first, *others = caches
    if not others:
        return ()
    if settings.layers:
        raise HeadError("--layers chooses among the layers of one cache, got several caches: use --layer")
    if settings.prompts is not None:
        raise HeadError("--prompts are read by the tower of one network, got several caches: leave one out")
    for cache in caches:
        count = len(views_of(views_of_spec(cache.spec)))
        if count > 1 and settings.views and not parts_of(settings.layer)[1]:
            raise HeadError(
                f"several networks take one view of an image, and {cache.path} holds {count}: add --no-views"
            )
    orders = [rows_of_same_images(first, other) for other in others]
    first.status = common_status(first, list(zip(others, orders, strict=True)))
    return tuple(
        FurtherNetwork(
            str(other.path),
            FurtherEmbeddings((settings.layer,), dict(other.spec), other.fingerprint),
            AlignedRows(other.layer(settings.layer), order),
        )
        for other, order in zip(others, orders, strict=True)
    )


def side_by_side(embeddings: Any, networks: Sequence[FurtherNetwork], train: NDArray[np.int64]) -> Blocks:
    """Return the embeddings of the first network and of the further ones, each scaled by its training rows.

    Parameters
    ----------
    embeddings : array of shape (rows of the cache, D)
        Of the first network.
    networks : sequence of FurtherNetwork
    train : ndarray of int
        Training rows of the cache.
    """
    first = embeddings.parts[0] if isinstance(embeddings, Blocks) else [embeddings]
    arrays = [*first, *(network.embeddings for network in networks)]
    return Blocks(arrays, [block_scale(read_rows(array, train)) for array in arrays])
