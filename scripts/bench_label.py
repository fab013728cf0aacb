"""Measure what labelling in the browser saves: simulated persons who know the truth, against labels at random.

    python scripts/bench_label.py [--cache fashion.h5] [--seeds 5] [--sessions 200] [--out FILE.json]

A person labels a part of the collection until the head is right on the wanted share of rows that nobody labels
(``--cache``: 0.80; scikit-learn's digits, as pixels: 0.93). Three ways:

- *random*: images drawn at random, one action each;
- *unsure*: the image nearest to the centre of each of the first groups, then the first five of the view *unsure* after
  every refit; one action each;
- *pages*: the way with the fewest actions. Each of the first groups gets the class that most of its images have; images
  of other classes are struck out first. Then pages of *unsure*, one action for each class on it.

``clicks`` counts the images that were struck out or picked, which are no actions.

``--sessions`` sessions of a hundred labels and a hundred audited images, each with a random pile of 2000, tell how
often the audit's 95 % interval holds the share of fresh rows on which the head is right.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status
from pipeline.labelling.audit import audit_order, audited
from pipeline.labelling.clusters import find_groups
from pipeline.labelling.features import read_features
from pipeline.labelling.model import Linear, fit
from pipeline.labelling.queries import unsure
from pipeline.labelling.session import SHOWN_OF_GROUP, SHOWN_UNSURE
from pipeline.labelling.state import CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

FIRST, BATCH, GROUPS = 60, 5, 12
MOST_LABELS = 6000


@dataclass(frozen=True)
class Pile:
    """Images to label, fresh ones to measure on, and what all of them show."""

    points: NDArray[np.float32]
    y: Ints
    fresh: NDArray[np.float32]
    truth: Ints

    def accuracy(self, head: Linear | None) -> float:
        return 0.0 if head is None else float((head.outputs(self.fresh).argmax(axis=1) == self.truth).mean())


class Person:
    """Labels images and refits the head."""

    def __init__(self, pile: Pile, held: Ints) -> None:
        self.pile, self.head, self.labels, self.actions, self.clicks = pile, None, 0, 0, 0
        self.left = np.ones(len(pile.y), np.bool_)
        self.left[held] = False
        self.rows: list[int] = []

    def label(self, rows: Ints, actions: int) -> None:
        self.rows += rows.tolist()
        self.left[rows] = False
        self.labels, self.actions = len(self.rows), self.actions + actions
        y, classes = self.pile.y[self.rows], int(self.pile.y.max()) + 1
        if len(set(y.tolist())) > 1:
            start = None if self.head is None else self.head.weights
            self.head: Linear | None = fit(CLASSES, self.pile.points[self.rows], y, classes, start)

    def asked(self, count: int) -> Ints:
        if self.head is None:
            return np.flatnonzero(self.left)[:count]
        return unsure(CLASSES, self.head.outputs(self.pile.points), self.pile.points, self.left, count)


def at_random(person: Person, rng: np.random.Generator, seed: int) -> Iterator[None]:
    order = rng.permutation(np.flatnonzero(person.left))
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        person.label(some, len(some))
        yield


def by_unsure(person: Person, rng: np.random.Generator, seed: int) -> Iterator[None]:
    groups = find_groups(person.pile.points, seed=seed)
    first = [groups.rows_of(group, person.left)[0] for group in groups.order(person.left)[:FIRST]]
    person.label(np.array(first), len(first))
    yield
    while person.left.any():
        some = person.asked(SHOWN_UNSURE)[:BATCH]
        person.label(some, len(some))
        yield


def by_pages(person: Person, rng: np.random.Generator, seed: int) -> Iterator[None]:
    groups, y = find_groups(person.pile.points, seed=seed), person.pile.y
    for group in groups.order(person.left)[:GROUPS]:
        rows = groups.rows_of(group, person.left)[:SHOWN_OF_GROUP]
        most = np.bincount(y[rows]).argmax()
        person.clicks += int((y[rows] != most).sum())
        person.label(rows[y[rows] == most], 1)
        yield
    while person.left.any():
        rows = person.asked(SHOWN_UNSURE)
        person.clicks += len(rows)
        person.label(rows, len(set(y[rows].tolist())))
        yield


WAYS = {"random": at_random, "unsure": by_unsure, "pages": by_pages}


def until(pile: Pile, way: str, wanted: float, seed: int) -> dict[str, Any]:
    person = Person(pile, audit_order([str(n) for n in range(len(pile.y))], str(seed)))
    for _ in WAYS[way](person, np.random.default_rng(seed), seed):
        if pile.accuracy(person.head) >= wanted or person.labels >= MOST_LABELS:
            break
    reached = pile.accuracy(person.head)
    return {"labels": person.labels, "actions": person.actions, "clicks": person.clicks, "accuracy": reached}


def reduced(x: Any) -> NDArray[np.float32]:
    cache = SimpleNamespace(layer=lambda name: x, status=np.full(len(x), Status.DONE), path="the data")
    return read_features(cache, "penultimate").points


def digits() -> tuple[NDArray[np.float32], Ints]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return reduced(data.data.astype(np.float32)), data.target


def cached(path: str) -> tuple[NDArray[np.float32], Ints]:
    from pipeline.cache import open_cache

    cache = open_cache(path)
    return read_features(cache, "penultimate").points, np.asarray(cache.labels, dtype=np.int64)


def drawn(points: NDArray[np.float32], y: Ints, size: int, seed: int) -> Pile:
    order = np.random.default_rng([7, seed]).permutation(len(y))
    pile, fresh = order[:size], order[size : size + 10_000]
    return Pile(points[pile], y[pile], points[fresh], y[fresh])


def covered(points: NDArray[np.float32], y: Ints, seed: int) -> tuple[bool, float]:
    """Return whether the interval of a session holds the truth, and how wide it is."""
    pile = drawn(points, y, 2000, seed)
    order = audit_order([str(n) for n in range(len(pile.y))], str(seed))
    person = Person(pile, order)
    for _ in by_unsure(person, np.random.default_rng(seed), seed):
        if person.labels >= 100:
            break
    assert person.head is not None
    found = audited(CLASSES, pile.y[order[:100]], person.head.outputs(pile.points[order[:100]]))
    return found.low <= pile.accuracy(person.head) <= found.high, found.high - found.low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="a cache with labels, such as that of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    sets = {"digits": (*digits(), 1200, 0.93)}
    if asked.cache:
        sets["cache"] = (*cached(asked.cache), 10_000, 0.80)
    found: dict[str, Any] = {}
    for name, (points, y, size, wanted) in sets.items():
        found[name] = {}
        for way in WAYS:
            runs = [until(drawn(points, y, size, seed), way, wanted, seed) for seed in range(asked.seeds)]
            found[name][way] = runs
            means = {field: round(float(np.mean([run[field] for run in runs])), 3) for field in runs[0]}
            print(f"{name} until {wanted}, {way}: {means}", flush=True)
    points, y, *_ = list(sets.values())[-1]
    sessions = [covered(points, y, seed) for seed in range(asked.sessions)]
    share, width = np.mean(sessions, axis=0)
    found["audit"] = {"sessions": len(sessions), "covered": float(share), "width": float(width)}
    print(f"audit: {found['audit']}")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
