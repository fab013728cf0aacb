"""Figures with intervals: the bootstrap over rows or whole groups.

Axes: N rows, B bootstrap replicates, R replicates of one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.shares import share_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Measure = Callable[[Floats], Mapping[str, Floats]]

_BOOTSTRAP_WORK = 200_000_000
_LEAST_REPLICATES = 200
_LEAST_UNITS = 3
"""Rows (or groups) below which a figure that no resample changes has no interval, rather than a point."""
_BLOCK_VALUES = 1 << 14
"""Weights drawn at once: they and what is computed from them stay in the processor's cache."""


@dataclass(frozen=True)
class Interval:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    @property
    def is_point(self) -> bool:
        """Whether the bootstrap found no spread at all, or none is known, which a handful of rows cannot show."""
        return not self.low < self.high

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Return the figure with its interval."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def replicates_for(n_rows: int, wanted: int = 1000) -> int:
    """Return how many bootstrap replicates ``n_rows`` can afford: ``wanted``, fewer from 200 000 rows on."""
    return int(np.clip(_BOOTSTRAP_WORK // max(n_rows, 1), _LEAST_REPLICATES, wanted))


def bootstrap_weights(
    n_rows: int, *, seed: int, replicates: int, groups: ArrayLike | None = None
) -> Callable[[int], Floats]:
    """Return a function from replicate number to the rows' counts in that resample.

    Whole groups are drawn where groups are given, because their rows are not independent. Every replicate has a
    generator of its own, so that replicate b is the same draw for every caller, which pairs two heads.

    Parameters
    ----------
    n_rows : int
        N.
    seed : int
        Seed of all draws.
    replicates : int
        B; used to spawn the generators.
    groups : array-like of shape (N,), optional
        Group of every row.
    """
    seeds = np.random.SeedSequence(seed).spawn(replicates)
    if groups is None:
        unit, n_units = None, n_rows
    else:
        names, inverse = np.unique(np.asarray(groups), return_inverse=True)
        unit, n_units = inverse.ravel(), len(names)

    def draw(replicate: int) -> Floats:
        rng = np.random.default_rng(seeds[replicate])
        counts = np.bincount(rng.integers(0, n_units, n_units), minlength=n_units).astype(np.float64)
        return counts if unit is None else counts[unit]

    return draw


def one_by_one(measure: Callable[[Floats], Mapping[str, float]]) -> Measure:
    """Return a function of weights (R, N) from one of weights (N,)."""

    def measure_block(weights: Floats) -> dict[str, Floats]:
        figures = [measure(weight) for weight in weights]
        return {name: np.array([each[name] for each in figures]) for name in figures[0]}

    return measure_block


def weighted_means(weights: Floats, values: Floats) -> Floats:
    """Return the mean of values (N,) under each row of weights (R, N)."""
    # A product of the matrix would add in another order, and change last digits.
    return np.asarray(np.array([weight @ values for weight in weights]) / weights.sum(axis=1))


def bootstrap_intervals(
    measure: Measure,
    n_rows: int,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """Turn a function of row weights into figures with percentile bootstrap intervals.

    Parameters
    ----------
    measure : callable
        From weights of shape (R, N) to figures by name, each (R,). It is first called with weights of one, then with
        the replicates in their order.
    n_rows : int
        N.
    seed, replicates, level, groups
        As in ``classification_metrics``.
    shares : mapping of str to float, optional
        Figures that are shares, in [0, 1], with the independent rows behind each: where every resample gives the same
        value, as when all rows are right, the interval is `share_interval`'s.
    """
    value = measure(np.ones((1, n_rows)))
    count = replicates_for(n_rows, replicates)
    draw = bootstrap_weights(n_rows, seed=seed, replicates=count, groups=groups)
    drawn = [measure(weights) for weights in _blocks(draw, n_rows, count)]
    tails = [50 * (1 - level), 50 * (1 + level)]
    out = {}
    for name, (at,) in value.items():
        values = np.concatenate([block[name] for block in drawn])
        low, high = np.nanpercentile(values, tails) if np.isfinite(values).any() else (np.nan, np.nan)
        out[name] = Interval(float(at), float(low), float(high))
    units = n_rows if groups is None else len(np.unique(np.asarray(groups)))
    if units < _LEAST_UNITS:
        known = {name: found for name, found in out.items() if found.is_point}
        out |= {name: Interval(found.value, float("nan"), float("nan")) for name, found in known.items()}
    for name, rows in (shares or {}).items():
        if out[name].is_point:
            out[name] = Interval(out[name].value, *share_interval(out[name].value, rows, level))
    return out


def _blocks(draw: Callable[[int], Floats], n_rows: int, count: int) -> Iterator[Floats]:
    """Yield the weights of all replicates, (R, N) at a time."""
    step = max(_BLOCK_VALUES // max(n_rows, 1), 1)
    for start in range(0, count, step):
        yield np.stack([draw(b) for b in range(start, min(start + step, count))])
