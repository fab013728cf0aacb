"""Time, objective and accuracy of the heads against scikit-learn's, on the rows of a cache.

    python scripts/bench_heads.py CACHE.h5 [--rows 60000] [--threads 2] [--values 9] [--what single,sweep,folds,heads]

scikit-learn is given the easiest tolerance that reaches the same relative gap, found beforehand and not timed. Wall and
processor time are both printed: on a machine that others use, only ratios of processor time mean much.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

GAP = 1e-4


def timed(do: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    out = do()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def objective(X: Any, y: Any, c: float, coef: Any, intercept: Any) -> float:
    from scipy.special import logsumexp

    loss = 0.0
    for start in range(0, len(X), 8192):
        rows = slice(start, start + 8192)
        scores = X[rows].astype(np.float64) @ coef.T.astype(np.float64) + intercept
        loss += float((logsumexp(scores, axis=1) - scores[np.arange(len(scores)), y[rows]]).sum())
    return c * loss + 0.5 * float((coef.astype(np.float64) ** 2).sum())


def theirs_to_gap(X: Any, y: Any, c: float, best: float) -> tuple[Any, float, float, float]:
    """Fit scikit-learn's with the easiest tolerance that reaches the gap; return fit, gap, wall and processor time."""
    from sklearn.linear_model import LogisticRegression

    for tol in (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5):
        fit, wall, cpu = timed(lambda tol=tol: LogisticRegression(C=c, tol=tol, max_iter=3000).fit(X, y))
        gap = objective(X, y, c, fit.coef_, fit.intercept_) / best - 1
        if gap <= GAP:
            break
    return fit, gap, wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--values", type=int, default=9, help="values of C that scikit-learn is run on")
    parser.add_argument("--largest", type=float, default=1e5, help="largest C of the sweep")
    parser.add_argument("--single", type=float, default=0.1, help="C of the single fit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--what", default="single,sweep,folds,heads")
    arguments = parser.parse_args()

    import torch
    from threadpoolctl import threadpool_limits

    from pipeline.cache import open_cache

    torch.set_num_threads(arguments.threads)
    cache = open_cache(arguments.cache)
    labels = np.asarray(cache.labels)
    split = cache.columns.get("split")
    train = np.flatnonzero((split == "train") if split is not None else np.arange(len(cache)) % 6 > 0)
    test = np.setdiff1d(np.arange(len(cache)), train)
    train = np.sort(np.random.default_rng(0).permutation(train)[: arguments.rows])
    X, y = np.asarray(cache.embeddings[train], dtype=np.float32), labels[train].astype(np.int64)
    X_test, y_test = np.asarray(cache.embeddings[test], dtype=np.float32), labels[test].astype(np.int64)
    print(f"{X.shape[0]} × {X.shape[1]}, {y.max() + 1} classes, {arguments.threads} threads", flush=True)
    warnings.simplefilter("ignore")
    with threadpool_limits(arguments.threads):
        what = arguments.what.split(",")
        if "single" in what:
            single(X, y, X_test, y_test, arguments)
        if "sweep" in what:
            sweep(X, y, X_test, y_test, arguments)
        if "folds" in what:
            folds(X, y, arguments)
        if "heads" in what:
            heads(X, y, X_test, y_test)


def single(X: Any, y: Any, X_test: Any, y_test: Any, arguments: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    from pipeline.heads import LogisticHead

    c = arguments.single
    exact = LogisticHead(C=c, tol=1e-6, max_passes=1000).fit(X, y)
    best = objective(X, y, c, exact.coef_, exact.intercept_)
    theirs, *_ = theirs_to_gap(X, y, c, best)
    tol = theirs.tol
    ratios = []
    for _ in range(arguments.repeats):
        ours, wall, cpu = timed(lambda: LogisticHead(C=c).fit(X, y))
        theirs, wall2, cpu2 = timed(lambda: LogisticRegression(C=c, tol=tol, max_iter=3000).fit(X, y))
        ratios.append((wall2 / wall, cpu2 / cpu))
        print(f"single fit at C = {c:g}: ours {wall:.1f} s ({cpu:.1f} cpu, {ours.n_iter_} passes), "
              f"scikit-learn {wall2:.1f} s ({cpu2:.1f} cpu, {theirs.n_iter_[0]} iterations, tol {tol:g})", flush=True)  # fmt: skip  # noqa: E501
    gaps = [objective(X, y, c, h.coef_, h.intercept_) / best - 1 for h in (ours, theirs)]
    agree = (ours.predict(X_test) == theirs.predict(X_test)).mean()
    print(f"  ratio {statistics.median(r[0] for r in ratios):.1f} wall, {statistics.median(r[1] for r in ratios):.1f} cpu; "  # noqa: E501
          f"gap ours {gaps[0]:.1e}, theirs {gaps[1]:.1e}; same prediction on {agree:.4%} of test rows; "
          f"accuracy {ours.score(X_test, y_test):.4f} and {theirs.score(X_test, y_test):.4f}", flush=True)  # fmt: skip


def sweep(X: Any, y: Any, X_test: Any, y_test: Any, arguments: Any) -> None:
    from pipeline.heads.logistic import FULL_SWEEP
    from pipeline.heads.softmax_path import ALL_ROWS, SoftmaxPath

    values = [c for c in FULL_SWEEP if c <= arguments.largest * 1.001]
    k = int(y.max()) + 1
    path, wall0, cpu0 = timed(lambda: SoftmaxPath(X, y, k))
    (ours,), wall, cpu = timed(lambda: path.solve([(ALL_ROWS, values)]))
    print(f"sweep of {len(values)} values: ours {wall + wall0:.1f} s ({cpu + cpu0:.1f} cpu), "
          f"{sum(p.passes for p in ours)} passes, {sum(p.converged for p in ours)} converged", flush=True)  # fmt: skip
    for point in ours:
        accuracy = ((X_test @ point.coef.T + point.intercept).argmax(1) == y_test).mean()
        print(f"  C {point.C:.3g} objective {point.objective:.8g} gap {min(point.gap_estimate, point.gap_bound):.1e} "
              f"converged {point.converged} passes {point.passes} accuracy {accuracy:.4f}", flush=True)  # fmt: skip
    chosen = np.unique(np.linspace(0, len(values) - 1, arguments.values).round().astype(int))
    times = []
    for i in chosen:
        theirs, gap, wall2, cpu2 = theirs_to_gap(X, y, values[i], ours[i].objective)
        gap_ours = -min(gap, 0.0)
        times.append(cpu2)
        agree = ((X_test @ ours[i].coef.T + ours[i].intercept).argmax(1) == theirs.predict(X_test)).mean()
        print(f"  scikit-learn at C {values[i]:.3g}: {wall2:.1f} s ({cpu2:.1f} cpu), gap to ours {gap:+.1e}, "
              f"ours to theirs {gap_ours:.1e}, same prediction {agree:.4%}", flush=True)  # fmt: skip
    total = float(np.trapezoid(np.interp(range(len(values)), chosen, times)) + (times[0] + times[-1]) / 2)
    print(
        f"  scikit-learn over all {len(values)} values, interpolated: {total:.0f} s cpu: ratio {total / (cpu + cpu0):.1f}"  # noqa: E501
    )


def folds(X: Any, y: Any, arguments: Any) -> None:
    from pipeline.evaluate import fold_numbers
    from pipeline.heads.logistic import FULL_SWEEP
    from pipeline.heads.softmax_path import SoftmaxPath

    values = [c for c in FULL_SWEEP if c <= arguments.largest * 1.001]
    path = SoftmaxPath(X, y, int(y.max()) + 1, fold=fold_numbers(y, 5, seed=0))
    walked, wall, cpu = timed(lambda: path.solve([(f, values) for f in range(5)]))
    print(f"5 folds × {len(values)} values: ours {wall:.1f} s ({cpu:.1f} cpu), "
          f"{sum(p.passes for points in walked for p in points)} lane passes", flush=True)  # fmt: skip


def heads(X: Any, y: Any, X_test: Any, y_test: Any) -> None:
    from sklearn.linear_model import RidgeClassifierCV

    from pipeline.evaluate import classification_metrics
    from pipeline.heads.registry import HEADS, FitOptions, find_head

    for name in HEADS:
        fitted, wall, cpu = timed(lambda name=name: find_head(name)(X, y, None, FitOptions(calibrate=False)))
        interval = classification_metrics(y_test, fitted.model.predict_proba(X_test))["accuracy"]
        print(
            f"{name}: accuracy {interval}, {wall:.1f} s ({cpu:.1f} cpu), {fitted.chosen.get('C', fitted.chosen.get('alpha', ''))}",  # noqa: E501
            flush=True,
        )
    ridge, wall, cpu = timed(lambda: RidgeClassifierCV(alphas=np.logspace(-3, 7, 11)).fit(X, y))
    print(f"scikit-learn RidgeClassifierCV: accuracy {ridge.score(X_test, y_test):.4f}, {wall:.1f} s ({cpu:.1f} cpu)")


if __name__ == "__main__":
    main()
