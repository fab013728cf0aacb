"""The images on which networks are compared: labelled training rows, in an order whose every beginning is a sample.

Axes: N images of the archive, n images of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status
from pipeline.errors import PipelineError
from pipeline.evaluation import splits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.core.items import ItemTable

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Images of an archive.

    Attributes
    ----------
    order : (n,) int64
        Numbers of the images. Every beginning has the classes in their shares.
    labels : (n,) int64
        Their classes, as numbers of label names.
    groups : (n,) array or None
        What must stay in one fold.
    classes : int
        Number of classes.
    """

    order: Ints
    labels: Ints
    groups: NDArray[Any] | None
    classes: int

    def first(self, rows: int) -> Ints:
        """Return the numbers of the first images of the sample, ascending, as an archive is read best."""
        return np.sort(self.order[:rows])


@dataclass(frozen=True)
class CommonRows:
    """Images that all of several caches hold: where, and what they show.

    Attributes
    ----------
    at : list of (n,) int64
        Rows of each cache.
    y : (n,) int64
        Classes 0 … K−1.
    groups : (n,) array or None
    """

    at: list[Ints]
    y: Ints
    groups: NDArray[Any] | None


def draw_sample(items: ItemTable, rows: int, seed: int, note: Callable[[str], None]) -> Sample:
    """Draw the images: labelled, and of the training split where there is one, so that no test image chooses a network.

    Parameters
    ----------
    items : ItemTable
        The archive.
    rows : int
        How many at most.
    seed : int
        Of the order.
    note : callable
        Called with a line about what does not take part.

    Raises
    ------
    PipelineError
        Fewer than two classes with two images each (or two groups).
    """
    usable = np.asarray(items.labels) >= 0
    if not usable.any():
        raise PipelineError(
            "scout compares networks by classes, and no image has a label: put the images into class folders, or name "
            "a table with --labels"
        )
    if "split" in items.columns:
        split = splits.named_split(np.asarray(items.columns["split"]))
        if (split == "train").any():
            usable &= split == "train"
            note(f"compared on images of the training split: {int(usable.sum())} of {len(items)}")
    counts = np.bincount(items.labels[usable], minlength=len(items.label_names))
    alone = usable & (counts[np.maximum(items.labels, 0)] < 2)
    if alone.any():
        note(f"left out: {int(alone.sum())} images that are the only ones of their class")
    usable &= ~alone
    at = np.flatnonzero(usable)
    labels = items.labels[at].astype(np.int64)
    classes = len(np.unique(labels))
    if classes < 2:
        raise PipelineError(
            f"expected at least 2 classes with 2 images each to compare networks on, found {classes}: add images, or "
            "other labels with --labels"
        )
    order = splits.stratified_order(labels, seed)[:rows]
    drawn = np.bincount(np.unique(labels[order], return_inverse=True)[1].ravel())
    if len(drawn) < classes or drawn.min() < 2:
        note(f"{rows} images hold fewer than 2 of some of the {classes} classes: --rows {4 * classes} holds about 4")
    groups = None
    if "group" in items.columns:
        groups = splits.groups_of_column(np.asarray(items.columns["group"])[at])[order]
    return Sample(at[order], labels[order], groups, classes)


def common_rows(sample: Sample, rows: int, keys: NDArray[np.bytes_], caches: Sequence[Cache]) -> CommonRows:
    """Return the first images of a sample that are done in all of these caches.

    Parameters
    ----------
    sample : Sample
    rows : int
        How many images of its beginning.
    keys : (N,) bytes
        Of the archive.
    caches : sequence of Cache

    Raises
    ------
    PipelineError
        Nothing is left of which a head could be fitted and measured.
    """
    numbers = np.arange(min(rows, len(sample.order)))
    wanted = keys[sample.order[numbers]]
    at, done = [], np.ones(len(wanted), dtype=np.bool_)
    for cache in caches:
        held = np.asarray(cache.items.keys)
        order = np.argsort(held, kind="stable")
        place = order[np.minimum(np.searchsorted(held, wanted, sorter=order), len(held) - 1)]
        done &= (held[place] == wanted) & (np.asarray(cache.status)[place] == Status.DONE)
        at.append(place)
    y = np.unique(sample.labels[numbers][done], return_inverse=True)[1].ravel()
    groups = None if sample.groups is None else sample.groups[numbers][done]
    if len(np.unique(y)) < 2 or splits.fold_count(y, 2, groups) < 2:
        raise PipelineError(
            f"expected images of 2 classes that all networks embed, found {int(done.sum())} of {len(wanted)}: look at "
            f"'pipeline info --failed {caches[0].path}'"
        )
    return CommonRows([place[done] for place in at], y.astype(np.int64), groups)
