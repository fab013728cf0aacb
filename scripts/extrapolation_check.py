"""Measure how often learning curves foretell what twice the training rows bring.

    python -m scripts.extrapolation_check fashion.h5 --seeds 10 11 12 13
    python -m scripts.extrapolation_check digits --seeds 10 11 12 13 14 15 16 17

Logistic heads are fitted on 100 to 4 000 rows and on twice as many. The curve of the first is measured on held-out
rows, a quarter as many as train, drawn 25 times; the truth, on thousands of fresh rows. ``digits`` are scikit-learn's.
Prints a Markdown table, also after Ctrl-C: how often the 95 % intervals of ``pipeline.evaluation.extrapolation`` hold
the truth, and how far the predictions are from it.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline import open_cache
from pipeline.evaluation.extrapolation import doubled
from pipeline.evaluation.splits import stratified_order
from pipeline.fitting.curves import SHARES
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import find_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

SIZES = (100, 200, 500, 1000, 2000, 4000)
DRAWS, RESAMPLES, FRESH = 25, 300, 12_000
EASY = (1, 5, 9)
"""Classes that are easy to tell apart: of Fashion-MNIST bag, sandal and trouser, in alphabetical order, or the like."""
KINDS = ("all classes", "easy", "imbalanced", "no signal")
_NO_SIGNAL = 10


class Case(NamedTuple):
    """One draw of the held-out rows: what was foretold, and the truth."""

    kind: str
    rows: int
    gain_held: bool
    score_held: bool
    gain_error: float
    score_error: float
    promised: bool
    gain: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a cache with labels, or digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest number of training rows")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    X, y = digits() if arguments.data == "digits" else embeddings(arguments.data)
    warnings.simplefilter("ignore")
    found: dict[tuple[str, int], list[Case]] = defaultdict(list)
    with contextlib.suppress(KeyboardInterrupt):
        for seed in arguments.seeds:
            for kind in arguments.kinds:
                for case in cases(X, y, kind, seed, arguments.most):
                    found[kind, case.rows].append(case)
                    found[kind, 0].append(case)
    print(
        "| data | rows | cases | accuracy in its interval | gain in its interval | error of accuracy | error of gain "
        "| true gain | gain promised |\n|---|---|---|---|---|---|---|---|---|"
    )
    for (kind, rows), of_kind in sorted(found.items()):
        print(line(kind, f"{rows or 'all'}", of_kind), flush=True)


def digits() -> tuple[NDArray[np.float32], Ints]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y.astype(np.int64)


def embeddings(path: str) -> tuple[NDArray[np.float32], Ints]:
    cache = open_cache(path)
    return np.asarray(cache.embeddings, dtype=np.float32), np.asarray(cache.labels).astype(np.int64)


def task(y: Ints, kind: str, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the rows of a kind in random order, and the labels of all rows."""
    order = rng.permutation(len(y))
    if kind == "easy":
        return order[np.isin(y[order], EASY)], np.searchsorted(EASY, y)
    if kind == "imbalanced":  # the rarest class has 4 % of the rows of the largest
        return order[rng.random(len(y)) < 0.7 ** y[order]], y
    if kind == "no signal":
        return order, rng.integers(0, _NO_SIGNAL, len(y))
    return order, y


def cases(X: NDArray[np.float32], y: Ints, kind: str, seed: int, most: int) -> Iterator[Case]:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    order, labels = task(y, kind, rng)
    fresh, pool = np.split(order, [min(FRESH, len(order) // 2)])
    fitted: dict[int, Any] = {}

    def head(count: int) -> Any:
        if count not in fitted:
            part = pool[:count]
            fitted[count] = find_head("logistic", "classification")(X[part], labels[part], None, FitOptions(seed=seed))
        return fitted[count]

    for count in (size for size in SIZES if size <= most and 2 * size <= len(pool)):
        classes = {len(np.unique(labels[rows])) for rows in (pool[:count], pool[: 2 * count], fresh)}
        if len(classes) > 1:  # a class without rows: another task
            continue
        rows, right = curve(X, labels, pool[:count], fresh, head(count), classes.pop(), seed)
        if len(rows) < 2:
            continue
        twice = hits(head(2 * count).model, X, labels, fresh).mean()
        now = right[-1].mean()
        if kind == "no signal":  # known, and not what the fresh rows happen to give
            now = twice = 1 / _NO_SIGNAL
        for _ in range(DRAWS):
            yield foretold(kind, rows, right, (float(now), float(twice)), rng)


def curve(
    X: NDArray[np.float32], labels: Ints, train: Ints, fresh: Ints, head: Any, classes: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the points of a learning curve: training rows (P,), and which fresh rows are right (P, N)."""
    order = stratified_order(labels[train], seed)
    rows, right = [], []
    for count in (round(share * len(train)) for share in SHARES):
        if count >= 2 * classes:
            part = train[np.sort(order[:count])]
            rows.append(float(count))
            right.append(hits(head.refit(X[part], labels[part]), X, labels, fresh))
    return np.array([*rows, float(len(train))]), np.array([*right, hits(head.model, X, labels, fresh)])


def hits(model: Any, X: NDArray[np.float32], labels: Ints, rows: Ints) -> NDArray[np.bool_]:
    return np.asarray(model.scores(X[rows]).argmax(axis=1) == labels[rows])


def foretold(
    kind: str,
    rows: NDArray[np.float64],
    right: NDArray[np.bool_],
    truth: tuple[float, float],
    rng: np.random.Generator,
) -> Case:
    held_out = max(int(rows[-1]) // 4, 5)
    own = right[:, rng.choice(right.shape[1], held_out, replace=False)].astype(np.float64)
    weights = rng.multinomial(held_out, np.full(held_out, 1 / held_out), RESAMPLES) / held_out
    found = doubled(rows, own.mean(axis=1), own @ weights.T, held_out)
    assert found is not None
    gain = truth[1] - truth[0]
    return Case(
        kind=kind,
        rows=int(rows[-1]),
        gain_held=found.gain.low <= gain <= found.gain.high,
        score_held=found.score.low <= truth[1] <= found.score.high,
        gain_error=found.gain.value - gain,
        score_error=found.score.value - truth[1],
        promised=found.is_measurable,
        gain=gain,
    )


def line(kind: str, rows: str, found: list[Case]) -> str:
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    cells = [
        *(kind, rows, f"{len(found)}"),
        f"{mean([case.score_held for case in found]):.3f}",
        f"{mean([case.gain_held for case in found]):.3f}",
        f"{mean([abs(case.score_error) for case in found]):.3f}",
        f"{mean([abs(case.gain_error) for case in found]):.4f}",
        f"{mean([case.gain for case in found]):+.4f}",
        f"{mean([case.promised for case in found]):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
