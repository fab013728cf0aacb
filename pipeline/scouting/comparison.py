"""What scouting found: a line for each candidate, which are as good as the best, and the cheapest of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.csv_rows import csv_writer
from pipeline.core.devices import has_cuda
from pipeline.core.files import replacing
from pipeline.fitting.rows import read_rows
from pipeline.heads.blocks import Blocks, block_scale
from pipeline.scouting.candidates import score_by_folds, stand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.cache import Cache
    from pipeline.scouting.candidates import HeldOutScores, Standing
    from pipeline.scouting.networks import Network
    from pipeline.scouting.sample import CommonRows

BEST, AS_GOOD, WORSE, DROPPED = "best", "as good", "worse", "dropped"
"""Standings: the highest accuracy; not distinguishable from it; worse; dropped on fewer rows, to save time."""


@dataclass(frozen=True)
class Line:
    """A candidate: some layers of a network.

    Attributes
    ----------
    candidate, network : str
        Its name, and that of its network.
    layers : str
        Joined by ``" + "``.
    width, rows : int
        Features, and the images it was measured on.
    accuracy, low, high : float
        On images that the folds held out, with its 95 % interval.
    difference, difference_low, difference_high : float
        To the best candidate, on the same images, resampled in pairs.
    log_loss, C : float
        Of the logistic head, and the C that its folds chose.
    images_per_second, archive_seconds, cache_bytes : float
        The speed here, and time and size of a cache of all images with these layers.
    standing : str
        One of ``BEST``, ``AS_GOOD``, ``WORSE``, ``DROPPED``.
    recommended : bool
        The cheapest of those that cannot be distinguished from the best.
    cache : str
        The file name of its cache.
    """

    candidate: str
    network: str
    layers: str
    width: int
    rows: int
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    log_loss: float
    C: float
    images_per_second: float
    archive_seconds: float
    cache_bytes: int
    standing: str
    recommended: bool
    cache: str


def compare(
    networks: Sequence[Network],
    caches: Sequence[Cache],
    rows: CommonRows,
    images: int,
    *,
    folds: int,
    seed: int,
    check: Callable[[], None],
) -> list[Line]:
    """Fit a head on every candidate of these networks, all on the same images and folds; the best first.

    Parameters
    ----------
    networks : sequence of Network
    caches : sequence of Cache
        One for each network.
    rows : CommonRows
        The images.
    images : int
        Images of the whole archive.
    folds, seed : int
        Of the heads.
    check : callable
        Called before each head; may raise to stop.
    """
    device = "cuda" if has_cuda() else "cpu"
    candidates = [(i, *each) for i, network in enumerate(networks) for each in network.candidates()]
    scores = []
    for i, _, layers in candidates:
        check()
        X = _features(caches[i], layers, rows.at[i])
        scores.append(score_by_folds(X, rows.y, rows.groups, folds=folds, seed=seed, device=device))
    lines = [
        _line(name, layers, networks[i], caches[i], score, standing, images)
        for (i, name, layers), score, standing in zip(
            candidates, scores, stand(scores, rows.groups, seed=seed), strict=True
        )
    ]
    return sorted(lines, key=lambda line: (-line.accuracy, line.log_loss))


def _line(
    name: str,
    layers: tuple[str, ...],
    network: Network,
    cache: Cache,
    score: HeldOutScores,
    standing: Standing,
    images: int,
) -> Line:
    speed = network.images_per_second
    return Line(
        candidate=name,
        network=network.name,
        layers=" + ".join(layers),
        width=sum(cache.widths[layer] for layer in layers),
        rows=len(score.hits),
        accuracy=standing.accuracy.value,
        low=standing.accuracy.low,
        high=standing.accuracy.high,
        difference=standing.difference.value,
        difference_low=standing.difference.low,
        difference_high=standing.difference.high,
        log_loss=score.log_loss,
        C=score.C,
        images_per_second=speed,
        archive_seconds=images / speed if speed else math.nan,
        cache_bytes=cache_bytes(cache, layers, images),
        standing=BEST if standing.is_best else AS_GOOD if standing.is_as_good else WORSE,
        recommended=False,
        cache=network.path.name,
    )


def _features(cache: Cache, layers: tuple[str, ...], at: Any) -> Any:
    """Return the embeddings (n, D) of a candidate; of several layers each is divided by its scale."""
    single = [read_rows(cache.layer(layer), at) for layer in layers]
    if len(single) == 1:
        return single[0]
    return Blocks(single, [block_scale(X) for X in single])[:]


def cache_bytes(cache: Cache, layers: tuple[str, ...], images: int) -> int:
    """Return the size of a cache of so many images, with ``penultimate`` and these layers, as this one's rows tell."""
    width = cache.width + sum(cache.widths[layer] for layer in layers if layer != next(iter(cache.layers)))
    embeddings = cache.dtype.itemsize * sum(cache.widths.values())
    others = max(cache.nbytes / max(len(cache), 1) - embeddings, 0.0)
    return int(images * (cache.dtype.itemsize * width + others))


def best_accuracies(lines: Sequence[Line]) -> dict[str, float]:
    """Return the accuracy of the best candidate of each network."""
    found: dict[str, float] = {}
    for line in lines:
        found[line.network] = max(found.get(line.network, 0.0), line.accuracy)
    return found


def cheapest_of_the_best(lines: Sequence[Line]) -> Line:
    """Return the line to recommend: of those that cannot be distinguished from the best, the quickest, then narrowest.

    Layers of one network cost the same time, so the one with the fewest features is taken.
    """
    equals = [line for line in lines if line.standing in (BEST, AS_GOOD)]
    return min(equals, key=lambda line: (_or_last(line.archive_seconds), line.width, -line.accuracy))


def _or_last(value: float) -> float:
    return math.inf if np.isnan(value) else value


def write_csv(path: Path, lines: Sequence[Line]) -> None:
    """Write the table."""
    names = [field.name for field in fields(Line)]
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv_writer(file)
        writer.writerow(names)
        for line in lines:
            writer.writerow([_cell(getattr(line, name)) for name in names])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
