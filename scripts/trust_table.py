"""Measure novelty scores, and the coverage of label sets, on caches of embeddings.

    python -m scripts.trust_table novelty fashion.h5 --other digits.h5
    python -m scripts.trust_table coverage fashion.h5

novelty: the AUROC with which scores tell images of another cache, and of a class that was left out of the fit, from
images of the known classes. coverage: how often label sets hold the label, over random draws of training and test
rows. Both print a Markdown table.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from pipeline import open_cache
from pipeline.core.vectors import unit_rows
from pipeline.evaluation import conformal
from pipeline.fitting.measure import fitted_temperature
from pipeline.heads.fit import FitOptions
from pipeline.heads.novelty import entropies, fit_novelty
from pipeline.heads.registry import find_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHRINKAGES = (0.0, 0.1)
NEIGHBOURS = (1, 5, 10, 50)
REFERENCE_ROWS = 3276


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["novelty", "coverage"])
    parser.add_argument("cache")
    parser.add_argument("--other", help="a cache of images of other things")
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--head", default="lda")
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    X, y = np.asarray(cache.embeddings, dtype=np.float32), np.asarray(cache.labels).astype(np.int64)
    if arguments.what == "coverage":
        print_coverage(X, y, arguments)
    else:
        print_novelty(X, y, arguments)


def print_novelty(X: NDArray[np.float32], y: NDArray[np.int64], arguments: argparse.Namespace) -> None:
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[: arguments.train], order[arguments.train :][: arguments.test]
    other = np.asarray(open_cache(arguments.other).embeddings, dtype=np.float32)
    far = {
        name: auroc(found[: len(test)], found[len(test) :])
        for name, found in scores(X[train], y[train], np.concatenate([X[test], other]), arguments.head).items()
    }
    left: dict[str, list[float]] = {name: [] for name in far}
    for k in np.unique(y):
        kept = train[y[train] != k]
        found = scores(X[kept], np.unique(y[kept], return_inverse=True)[1], X[test], arguments.head)
        for name, values in found.items():
            left[name].append(auroc(values[y[test] != k], values[y[test] == k]))
    print("| score | other images | left-out class, mean | each |\n|---|---|---|---|")
    for name, value in far.items():
        each = ", ".join(f"{one:.2f}" for one in left[name])
        print(f"| {name} | {value:.4f} | {np.mean(left[name]):.3f} | {each} |", flush=True)


def scores(X: NDArray[np.float32], y: NDArray[np.int64], new: NDArray[np.float32], head: str) -> dict[str, Floats]:
    """Return each score of new rows, the larger the newer."""
    fitted = find_head(head, "classification")(X, y, None, FitOptions())
    model = replace(fitted.model, temperature=fitted_temperature("classification", fitted, y))
    predictions = model.link_scores(model.scores(new))
    found = {f"Mahalanobis, shrinkage {s:g}": mahalanobis(X, y, new, s) for s in SHRINKAGES}
    kept = unit_rows(X[np.random.default_rng(0).permutation(len(X))[:REFERENCE_ROWS]].copy())
    cosine = unit_rows(new.copy()) @ kept.T
    for k in NEIGHBOURS:
        found[f"k-NN, k = {k}"] = 1.0 - np.partition(cosine, -k, axis=1)[:, -k].astype(np.float64)
    found["entropy"] = entropies(predictions)
    assert fitted.oof_scores is not None
    novelty = fit_novelty(X, model.link_scores(fitted.oof_scores))
    assert novelty is not None
    found["novelty of predict"] = novelty.percentiles(new, predictions)
    return found


def mahalanobis(X: NDArray[np.float32], y: NDArray[np.int64], new: NDArray[np.float32], shrinkage: float) -> Floats:
    """Return squared distances to the nearest class mean, under a shared covariance shrunk towards a sphere."""
    data = X.astype(np.float64)
    means = np.stack([data[y == k].mean(axis=0) for k in np.unique(y)])
    within = data - means[y]
    values, vectors = np.linalg.eigh(within.T @ within / len(X))
    spread = (1 - shrinkage) * values.clip(0) + shrinkage * values.mean()
    whitening = vectors / np.sqrt(np.maximum(spread, 1e-9 * spread.max()))
    at, centers = new @ whitening, means @ whitening
    distance = (at**2).sum(axis=1)[:, None] - 2 * at @ centers.T + (centers**2).sum(axis=1)
    return np.asarray(distance.min(axis=1))


def auroc(known: Floats, novel: Floats) -> float:
    rank = rankdata(np.concatenate([known, novel]))[len(known) :]
    return float((rank.sum() - len(novel) * (len(novel) + 1) / 2) / (len(known) * len(novel)))


def print_coverage(X: NDArray[np.float32], y: NDArray[np.int64], arguments: argparse.Namespace) -> None:
    fit: Any = find_head(arguments.head, "classification")
    reached: dict[float, list[tuple[float, float, float]]] = {asked: [] for asked in conformal.USUAL_COVERAGES}
    for seed in range(arguments.draws):
        order = np.random.default_rng(seed).permutation(len(X))[: arguments.train + arguments.test]
        train, test = order[: arguments.train], order[arguments.train :]
        fitted = fit(X[train], y[train], None, FitOptions(seed=seed))
        model = replace(fitted.model, temperature=fitted_temperature("classification", fitted, y[train]))
        held_out, found = (model.link_scores(part) for part in (fitted.oof_scores, model.scores(X[test])))
        usual = conformal.class_scores(held_out, y[train])
        for asked, values in reached.items():
            sets = conformal.label_sets(found, conformal.threshold(usual, asked))
            each = conformal.class_thresholds(usual, y[train], found.shape[1], asked)
            worst = min(float(conformal.label_sets(found, each)[y[test] == k, k].mean()) for k in np.unique(y[test]))
            values.append((float(sets[np.arange(len(test)), y[test]].mean()), float(sets.sum(axis=1).mean()), worst))
    print("| asked | reached, mean | 5 % to 95 % of draws | mean size | by class: worst class, mean |")
    print("|---|---|---|---|---|")
    for asked, rows in reached.items():
        share, size, worst = np.array(rows).T
        low, high = np.quantile(share, [0.05, 0.95])
        print(f"| {asked} | {share.mean():.4f} | {low:.3f} to {high:.3f} | {size.mean():.2f} | {worst.mean():.3f} |")


if __name__ == "__main__":
    main()
