"""Time, objective and accuracy of the heads against scikit-learn's, on the rows of a cache.

    python scripts/bench_heads.py CACHE.h5 [--rows 60000] [--threads 2] [--values 45] [--what single,sweep,folds,cv,ridge,heads]
                                  [--repeats 3] [--every 4] [--most SECONDS] [--out bench]

Both sides get the same float32 rows and the same threads. Ours goes first; scikit-learn then walks up the same values of
C, each warm-started from the solution at the one before, with a tolerance that is tightened until its objective is within
1e-4 of ours (the restarts are counted), in float64 from where float32 no longer gets there. Wall and processor time are
both taken: on a machine that others use, only processor time means much. With --every N scikit-learn is timed at every
Nth value, started from our solution at the value below it, and the sum is multiplied by N. A value that it cannot finish
in --most seconds counts with the time spent, and is marked, so that ratios are lower bounds. What is measured and what is
summed is said in every line; --out writes FILE.json and FILE.md.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

GAP = 1e-4
FOLDS = 5
LOOSEST_TOL, TIGHTEST_TOL = 3e-2, 1e-8


class Data(NamedTuple):
    X: Any
    y: Any
    X_test: Any
    y_test: Any


class Time(NamedTuple):
    """Seconds on the wall, and of the processor over all threads."""

    wall: float
    cpu: float

    def __add__(self, other: tuple[float, ...]) -> Time:
        return Time(self.wall + other[0], self.cpu + other[1])

    def as_dict(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 3), "cpu_s": round(self.cpu, 3)}


def timed(do: Callable[[], Any]) -> tuple[Any, Time]:
    wall, cpu = time.perf_counter(), time.process_time()
    out = do()
    return out, Time(time.perf_counter() - wall, time.process_time() - cpu)


def ratio(theirs: Time, ours: Time) -> dict[str, float]:
    return {"wall": round(theirs.wall / ours.wall, 2), "cpu": round(theirs.cpu / ours.cpu, 2)}


def objective(data: Data, c: float, coef: Any, intercept: Any) -> float:
    """Return scikit-learn's objective, in float64, written from its documentation."""
    from scipy.special import logsumexp

    coef = coef.astype(np.float64)
    loss = 0.0
    for start in range(0, len(data.X), 8192):
        rows = slice(start, start + 8192)
        scores = data.X[rows].astype(np.float64) @ coef.T + intercept
        loss += float((logsumexp(scores, axis=1) - scores[np.arange(len(scores)), data.y[rows]]).sum())
    return c * loss + 0.5 * float((coef**2).sum())


def predicted(data: Data, coef: Any, intercept: Any) -> Any:
    return (data.X_test @ coef.T.astype(np.float32) + intercept).argmax(1)


class Walker:
    """scikit-learn's LogisticRegression, warm-started along ascending C."""

    def __init__(self, data: Data) -> None:
        from sklearn.linear_model import LogisticRegression

        self.data = data
        self.X = data.X
        self.fit = LogisticRegression(warm_start=True)
        self.tol = LOOSEST_TOL
        self.seconds_per_iteration = 0.0

    def start_from(self, point: Any) -> None:
        """Begin the next fit at a solution of ours."""
        self.fit.coef_, self.fit.intercept_ = point.coef.astype(self.data.X.dtype), point.intercept.copy()

    def step(self, c: float, target: float, most_seconds: float) -> dict[str, Any]:
        """Fit at ``c`` until the objective is within the gap of ``target``, or the seconds are used up."""
        spent, iterations, fits = Time(0.0, 0.0), 0, 0
        while True:
            allowed = 10_000
            if self.seconds_per_iteration:
                allowed = int(np.clip((most_seconds - spent.wall) / self.seconds_per_iteration, 20, 10_000))
            self.fit.set_params(C=c, tol=self.tol, max_iter=allowed)
            _, took = timed(lambda: self.fit.fit(self.X, self.data.y))
            spent, fits, iterations = spent + took, fits + 1, iterations + int(self.fit.n_iter_[0])
            self.seconds_per_iteration = spent.wall / max(iterations, 1)
            found = objective(self.data, c, self.fit.coef_, self.fit.intercept_)
            gap, tol = found / target - 1.0, self.tol
            reached = gap <= GAP
            if reached or spent.wall >= most_seconds:
                break
            if self.tol > TIGHTEST_TOL:
                self.tol /= 3.0
            elif self.X.dtype == np.float32:
                # Rounding of float32 ends its line search early where C is large; in float64 it goes on.
                self.X, self.tol = self.data.X.astype(np.float64), LOOSEST_TOL
            else:
                break
        if gap < GAP / 5:
            self.tol = min(3.0 * self.tol, LOOSEST_TOL)
        return {
            "C": c, **spent.as_dict(), "iterations": iterations, "fits": fits, "tol": tol,
            "objective": found, "gap_to_ours": gap, "reached": bool(reached), "dtype": str(self.X.dtype),
        }  # fmt: skip


def single(data: Data, options: Any) -> dict[str, Any]:
    """Fit at one C, from a cold start; repeats alternate between the two."""
    from sklearn.linear_model import LogisticRegression

    from pipeline.heads import LogisticHead

    c = options.single
    target = LogisticHead(C=c).fit(data.X, data.y).objective_
    tol, gap = 1e-3, np.inf
    while gap > GAP and tol > TIGHTEST_TOL:
        theirs = LogisticRegression(C=c, tol=tol, max_iter=10_000).fit(data.X, data.y)
        gap = objective(data, c, theirs.coef_, theirs.intercept_) / target - 1.0
        tol = theirs.tol / 2
    tol = theirs.tol
    times: list[tuple[Time, Time]] = []
    for _ in range(options.repeats):
        ours, mine = timed(lambda: LogisticHead(C=c).fit(data.X, data.y))
        theirs, other = timed(lambda: LogisticRegression(C=c, tol=tol, max_iter=10_000).fit(data.X, data.y))
        times.append((mine, other))
    agree = (ours.predict(data.X_test) == theirs.predict(data.X_test)).mean()
    ratios = [ratio(other, mine) for mine, other in times]
    return {
        "C": c,
        "ours": [mine.as_dict() for mine, _ in times],
        "scikit_learn": [other.as_dict() for _, other in times],
        "passes": ours.n_iter_,
        "iterations": int(theirs.n_iter_[0]),
        "tol": tol,
        "gap_estimate": ours.gap_estimate_,
        "gap_to_ours": gap,
        "same_predictions": float(agree),
        "accuracy": ours.score(data.X_test, data.y_test),
        "accuracy_scikit_learn": theirs.score(data.X_test, data.y_test),
        "ratio": {kind: statistics.median(r[kind] for r in ratios) for kind in ("wall", "cpu")},
    }


def sweep(data: Data, options: Any, values: list[float]) -> dict[str, Any]:
    """Walk up all values of C on one split."""
    from pipeline.heads.solver.fold_path import ALL_ROWS
    from pipeline.heads.solver.path import SoftmaxPath

    k = int(data.y.max()) + 1
    path, prepared = timed(lambda: SoftmaxPath(data.X, data.y, k))
    (points,), walked = timed(lambda: path.solve([(ALL_ROWS, values)]))
    ours = prepared + walked
    say(f"sweep, ours: {len(values)} values in {ours.wall:.1f} s ({ours.cpu:.1f} cpu)")
    walker, theirs, table = Walker(data), Time(0.0, 0.0), []
    timed_at = range((options.every - 1) // 2, len(points), options.every)
    for i, point in enumerate(points):
        mine = predicted(data, point.coef, point.intercept)
        entry = {
            "C": point.C,
            "objective": point.objective,
            "gap_estimate": min(point.gap_estimate, point.gap_bound),
            "converged": point.converged,
            "passes": point.passes,
            "accuracy": float((mine == data.y_test).mean()),
        }
        table.append(entry)
        if i not in timed_at:
            continue
        if options.every > 1 and i:
            walker.start_from(points[i - 1])
        other = walker.step(point.C, point.objective, options.most)
        theirs += (other["wall_s"], other["cpu_s"])
        same = float((mine == predicted(data, walker.fit.coef_, walker.fit.intercept_)).mean())
        entry |= {"same_predictions": same, "scikit_learn": other}
        missed = f" in {other['dtype']}{'' if other['reached'] else ', NOT reached'}"
        say(
            f"  C {point.C:.3g}: scikit-learn {other['wall_s']:.1f} s ({other['cpu_s']:.1f} cpu), "
            f"gap to ours {other['gap_to_ours']:+.1e}{missed}; ours {point.passes} passes, "
            f"gap {entry['gap_estimate']:.1e}; same predictions {same:.4%}"
        )
    factor = len(points) / len(timed_at)
    theirs = Time(factor * theirs.wall, factor * theirs.cpu)
    how = f"ours measured; scikit-learn measured at {len(timed_at)} values, times {factor:.2f}"
    return {
        "values": table,
        "ours": ours.as_dict(),
        "scikit_learn": theirs.as_dict(),
        "ratio": ratio(theirs, ours),
        "how": f"{how}; where it did not reach the objective in {options.most:g} s, these are counted",
    }


def folds(data: Data, options: Any, values: list[float], one_split: dict[str, Any] | None) -> dict[str, Any]:
    """Walk up all values on five folds; scikit-learn on one fold at some values, the rest summed from one split."""
    from pipeline.evaluation.splits import fold_numbers
    from pipeline.heads.solver.path import SoftmaxPath

    fold = fold_numbers(data.y, FOLDS, seed=0)
    path, prepared = timed(lambda: SoftmaxPath(data.X, data.y, int(data.y.max()) + 1, fold=fold))
    walked, took = timed(lambda: path.solve([(f, values) for f in range(FOLDS)]))
    ours = prepared + took
    out = {
        "ours": ours.as_dict(),
        "converged": [all(points[i].converged for points in walked) for i in range(len(values))],
        "gap_estimate": [max(min(p[i].gap_estimate, p[i].gap_bound) for p in walked) for i in range(len(values))],
        "accuracy": [float(np.mean([p[i].held_out_accuracy for p in walked])) for i in range(len(values))],
    }
    say(f"folds, ours: {FOLDS} × {len(values)} values in {ours.wall:.1f} s ({ours.cpu:.1f} cpu)")
    entries = [] if one_split is None else one_split["values"]
    timed_at = {i: e["scikit_learn"] for i, e in enumerate(entries) if i and "scikit_learn" in e}
    # The largest that float32 serves: they take longest, and float64 would be another matter.
    chosen = [i for i, e in timed_at.items() if e["reached"] and e["dtype"] == "float32"][-options.fold_values :]
    if one_split is None or not chosen:
        return out
    train = fold != 0
    walker = Walker(Data(data.X[train], data.y[train], data.X_test, data.y_test))
    measured = []
    sums = [Time(0.0, 0.0), Time(0.0, 0.0)]
    for i in chosen:
        there = timed_at[i]
        walker.start_from(walked[0][i - 1])
        walker.tol = there["tol"]
        other = walker.step(values[i], walked[0][i].objective, options.most)
        measured.append(other)
        sums[0] += (other["wall_s"], other["cpu_s"])
        sums[1] += (there["wall_s"], there["cpu_s"])
        say(f"  fold 0, C {values[i]:.3g}: scikit-learn {other['wall_s']:.1f} s ({other['cpu_s']:.1f} cpu)")
    share = ratio(sums[0], sums[1])
    whole = one_split["scikit_learn"]
    theirs = Time(FOLDS * share["wall"] * whole["wall_s"], FOLDS * share["cpu"] * whole["cpu_s"])
    return out | {
        "scikit_learn_measured": measured,
        "fold_to_split": share,
        "scikit_learn": theirs.as_dict(),
        "ratio": ratio(theirs, ours),
        "how": f"ours measured; scikit-learn measured on one fold at {len(chosen)} values, and all folds taken as "
        f"{FOLDS} × (time of that fold / time of the one split at those values) × its one-split sweep",
    }


def cross_validated(data: Data, options: Any) -> dict[str, Any]:
    """LogisticRegressionCV against LogisticSweep over the same few values."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    from pipeline.heads import LogisticSweep

    values = (0.01, 0.03, 0.1)
    ours, mine = timed(lambda: LogisticSweep(Cs=values, cv=FOLDS).fit(data.X, data.y))
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    theirs, other = timed(
        lambda: LogisticRegressionCV(
            Cs=list(values), cv=split, tol=options.cv_tol, max_iter=10_000, scoring="accuracy"
        ).fit(data.X, data.y)
    )
    chosen = float(np.ravel(theirs.C_)[0])
    return {
        "values": values, "ours": mine.as_dict(), "scikit_learn": other.as_dict(), "ratio": ratio(other, mine),
        "C": ours.C_, "C_scikit_learn": chosen, "tol": options.cv_tol,
        "accuracy": ours.score(data.X_test, data.y_test),
        "accuracy_scikit_learn": float((theirs.predict(data.X_test) == data.y_test).mean()),
    }  # fmt: skip


def ridge(data: Data, options: Any) -> dict[str, Any]:
    """RidgeClassifierCV against RidgeHead over the same strengths."""
    from sklearn.linear_model import RidgeClassifierCV

    from pipeline.heads import RidgeHead

    alphas = RidgeHead().alphas
    times = []
    for _ in range(options.repeats):
        ours, mine = timed(lambda: RidgeHead().fit(data.X, data.y))
        theirs, other = timed(lambda: RidgeClassifierCV(alphas=alphas).fit(data.X, data.y))
        times.append((mine, other))
    ratios = [ratio(other, mine) for mine, other in times]
    return {
        "alphas": len(alphas),
        "ours": [mine.as_dict() for mine, _ in times],
        "scikit_learn": [other.as_dict() for _, other in times],
        "alpha": float(ours.alpha_),
        "alpha_scikit_learn": float(theirs.alpha_),
        "accuracy": ours.score(data.X_test, data.y_test),
        "accuracy_scikit_learn": theirs.score(data.X_test, data.y_test),
        "ratio": {kind: statistics.median(r[kind] for r in ratios) for kind in ("wall", "cpu")},
    }


def heads(data: Data, options: Any) -> list[dict[str, Any]]:
    """Every head at its defaults: accuracy on the test rows with its interval."""
    from pipeline.evaluation.classification import classification_metrics
    from pipeline.heads.fit import FitOptions
    from pipeline.heads.registry import HEADS, STREAMED, find_head
    from pipeline.heads.streamed_rows import StreamedRows

    out = []
    for name in options.heads.split(",") if options.heads else HEADS:
        rows = StreamedRows(data.X) if name in STREAMED else data.X
        fit = find_head(name)
        fitted, took = timed(lambda fit=fit, rows=rows: fit(rows, data.y, None, FitOptions(calibrate=False)))
        found = classification_metrics(data.y_test, fitted.model.predict_proba(data.X_test))["accuracy"]
        chosen = {key: value for key, value in fitted.chosen.items() if isinstance(value, (int, float))}
        out.append({"head": name, "accuracy": found.as_dict(), **took.as_dict(), "chosen": chosen})
        say(f"{name}: accuracy {found}, {took.wall:.1f} s ({took.cpu:.1f} cpu) {chosen}")
    return out


def markdown(found: dict[str, Any]) -> str:
    """Lay the figures out as tables."""
    facts = found["settings"]
    lines = [
        f"{facts['rows']} × {facts['width']}, {facts['classes']} classes, {facts['threads']} threads, "
        f"{facts['processor']}, scikit-learn {facts['scikit_learn']}, torch {facts['torch']}.",
        "",
        "| what | ours, s (processor) | scikit-learn, s (processor) | ratio (processor) |",
        "|---|---|---|---|",
    ]

    def seconds(entry: Any) -> str:
        if isinstance(entry, list):
            entry = {kind: statistics.median(e[kind] for e in entry) for kind in entry[0]}
        return f"{entry['wall_s']:.1f} ({entry['cpu_s']:.1f})"

    names = {
        "single": lambda e: f"single fit at C = {e['C']:g}",
        "sweep": lambda e: f"{len(e['values'])} values, one split",
        "folds": lambda e: f"{len(e['converged'])} values, {FOLDS} folds",
        "cv": lambda e: f"LogisticRegressionCV, {len(e['values'])} values, {FOLDS} folds",
        "ridge": lambda e: f"RidgeClassifierCV, {e['alphas']} strengths",
    }
    for key, name in names.items():
        entry = found.get(key)
        if entry is None or "scikit_learn" not in entry:
            continue
        r = entry["ratio"]
        sides = f"{seconds(entry['ours'])} | {seconds(entry['scikit_learn'])}"
        lines.append(f"| {name(entry)} | {sides} | {r['wall']:.1f} ({r['cpu']:.1f}) |")
    for key in ("sweep", "folds"):
        if "how" in found.get(key, {}):
            lines += ["", f"{key}: {found[key]['how']}."]
    if "sweep" in found:
        lines += [
            "",
            "| C | passes | gap (estimate) | accuracy | scikit-learn, s (processor) | its gap to ours | same |",
            "|---|---|---|---|---|---|---|",
        ]
        for e in found["sweep"]["values"]:
            short = "" if e["converged"] else ", not converged"
            line = f"| {e['C']:.3g} | {e['passes']} | {e['gap_estimate']:.1e}{short} | {e['accuracy']:.4f} | "
            if "scikit_learn" in e:
                other = e["scikit_learn"]
                line += (
                    f"{other['wall_s']:.1f} ({other['cpu_s']:.1f}) | {other['gap_to_ours']:+.1e}"
                    f"{'' if other['reached'] else ', not reached'}{'' if other['dtype'] == 'float32' else ', float64'}"
                    f" | {e['same_predictions']:.2%} |"
                )
            else:
                line += "| | |"
            lines.append(line)
    if "heads" in found:
        lines += ["", "| head | test accuracy | 95 % interval | fit, s (processor) |", "|---|---|---|---|"]
        for e in found["heads"]:
            a = e["accuracy"]
            interval = f"{a['low']:.4f} to {a['high']:.4f}"
            lines.append(f"| {e['head']} | {a['value']:.4f} | {interval} | {e['wall_s']:.1f} ({e['cpu_s']:.1f}) |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(text, flush=True)


def load(path: str, rows: int) -> Data:
    from pipeline.cache import open_cache

    cache = open_cache(path)
    labels = np.asarray(cache.labels).astype(np.int64)
    split = cache.columns.get("split")
    train = np.flatnonzero((split == "train") if split is not None else np.arange(len(cache)) % 6 > 0)
    test = np.setdiff1d(np.arange(len(cache)), train)
    train = np.sort(np.random.default_rng(0).permutation(train)[:rows])
    X, X_test = (np.ascontiguousarray(cache.embeddings[index], dtype=np.float32) for index in (train, test))
    return Data(X, labels[train], X_test, labels[test])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--values", type=int, default=45, help="values of C over 1e-6 to 1e5 that both sides walk up")
    parser.add_argument("--largest", type=float, default=1e5, help="leave larger values of C out")
    parser.add_argument("--single", type=float, default=0.056, help="C of the single fit")
    parser.add_argument("--fold-values", type=int, default=4, help="values that scikit-learn is timed at on a fold")
    parser.add_argument("--cv-tol", type=float, default=1e-3, help="tolerance of LogisticRegressionCV")
    parser.add_argument("--repeats", type=int, default=1, help="of the single fit and of ridge, alternating")
    parser.add_argument("--every", type=int, default=1, help="time scikit-learn at every Nth value")
    parser.add_argument("--most", type=float, default=np.inf, metavar="SECONDS", help="for scikit-learn, of one value")
    parser.add_argument("--heads", help="only these heads, comma-separated")
    parser.add_argument("--what", default="single,sweep,folds,cv,ridge,heads")
    parser.add_argument("--out", metavar="FILE", help="write FILE.json and FILE.md")
    options = parser.parse_args()

    import sklearn
    import torch
    from threadpoolctl import threadpool_limits

    from pipeline.heads.logistic import FULL_SWEEP

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    data = load(options.cache, options.rows)
    at = np.unique(np.linspace(0, len(FULL_SWEEP) - 1, options.values).round().astype(int))
    values = [FULL_SWEEP[i] for i in at if FULL_SWEEP[i] <= options.largest * 1.001]
    found: dict[str, Any] = {
        "settings": {
            **vars(options), "rows": len(data.X), "width": data.X.shape[1], "classes": int(data.y.max()) + 1,
            "processor": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
            "scikit_learn": sklearn.__version__, "torch": torch.__version__, "numpy": np.__version__,
        }
    }  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "single": lambda: single(data, options),
        "sweep": lambda: sweep(data, options, values),
        "folds": lambda: folds(data, options, values, found.get("sweep")),
        "cv": lambda: cross_validated(data, options),
        "ridge": lambda: ridge(data, options),
        "heads": lambda: heads(data, options),
    }
    with threadpool_limits(options.threads):
        for name in options.what.split(","):
            found[name] = parts[name]()
            if options.out:
                # Written after every part: whoever stops a long run keeps what is done.
                Path(f"{options.out}.json").write_text(
                    json.dumps(found, indent=1, default=lambda value: value.item()) + "\n"
                )
                Path(f"{options.out}.md").write_text(markdown(found))
    say(markdown(found))


if __name__ == "__main__":
    main()
