"""Compare each built-in head with what a scikit-learn user would tune in its place, on small data.

    python scripts/bench_small.py [--cache fashion.h5] [--heads logistic,knn] [--sets digits,blobs] [--seeds 5]
                                  [--fresh 5000] [--out FILE.json]

Every head is fitted as `pipeline fit-head` fits it, temperature included; every counterpart by a search over its usual
settings (`counterparts`), scored by accuracy on five stratified folds. Both see the same training rows, and both are
measured on the same fresh rows. A set is a source of rows and how many of each class are drawn; fresh rows of a source
are what is left, so that after an imbalanced draw they hold other shares of the classes. ``--cache`` adds embeddings
with labels, such as those of Fashion-MNIST; its fresh rows are those whose keys begin with ``test``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LOGS = {name: [10.0**e for e in ends] for name, ends in {"C": range(-4, 5), "alpha": range(-3, 6)}.items()}


@dataclass(frozen=True)
class Draw:
    """Training and fresh rows of one set and seed."""

    name: str
    seed: int
    X: Any
    y: Any
    fresh: Any
    truth: Any


# --- data ----------------------------------------------------------------------------------------------------


def standardised(X: Any) -> Any:
    spread = X.std(axis=0)
    return ((X - X.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


def blobs(classes: int, width: int, apart: float, rows: int = 8000) -> tuple[Any, Any]:
    rng = np.random.default_rng([classes, width])
    y = np.arange(rows) % classes
    return (rng.normal(size=(classes, width))[y] * apart + rng.normal(size=(rows, width))).astype(np.float32), y


def tables() -> dict[str, tuple[Any, Any]]:
    from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

    loaders = {"digits": load_digits, "cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris}
    found = {name: load(return_X_y=True) for name, load in loaders.items()}
    return {name: (standardised(X), y) for name, (X, y) in found.items()}


def embeddings(cache: Path) -> tuple[Any, Any, Any]:
    """Return rows, classes and which rows are fresh."""
    from pipeline import open_cache

    opened = open_cache(cache)
    fresh = np.asarray([str(key).startswith("test") for key in opened.keys])
    return opened.embeddings, np.asarray(opened.labels), fresh


SETS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("digits", (2, 3, 5, 10, 20, 40, (5, 10, 20, 40, 80, 5, 10, 20, 40, 80))),
    ("cancer", (5, 20, 60, (20, 80))),
    ("wine", (4, 15)),
    ("iris", (5, 20)),
)
BLOBS: tuple[tuple[str, tuple[int, int, float], Any], ...] = (
    ("2 classes", (2, 64, 0.3), 100),
    ("5 classes", (5, 20, 0.6), 80),
    ("5 imbalanced", (5, 20, 0.6), (100, 50, 25, 12, 6)),
    ("10 classes", (10, 30, 0.5), 10),
    ("20 classes", (20, 50, 0.4), 20),
    ("50 classes", (50, 64, 0.5), 6),
    ("separable", (3, 8, 6.0), 20),
    ("no signal", (4, 30, 0.0), 30),
    ("no signal, imbalanced", (3, 30, 0.0), (80, 15, 5)),
)
EMBEDDED = (2, 3, 5, 10, 20, 50, 100, 200, (80, 40, 20, 10, 5, 80, 40, 20, 10, 5))


def drawn(y: Any, counts: Any, rng: np.random.Generator) -> Any:
    classes = np.unique(y)
    counts = (counts,) * len(classes) if isinstance(counts, int) else counts
    return np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k, n in zip(classes, counts, strict=True)])


def draws(seeds: int, wanted: Sequence[str], fresh: int, cache: Path | None) -> Iterator[Draw]:
    def is_wanted(name: str) -> bool:
        return not wanted or any(word in name for word in wanted)

    def named(source: str, counts: Any) -> str:
        return f"{source}, {counts} a class" if isinstance(counts, int) else f"{source}, {min(counts)} to {max(counts)}"

    found = tables()
    plain = [(named(source, counts), *found[source], counts) for source, several in SETS for counts in several]
    plain += [(f"blobs, {name}", *blobs(*shape), counts) for name, shape, counts in BLOBS]
    for name, X, y, counts in plain:
        for seed in range(seeds if is_wanted(name) else 0):
            rng = np.random.default_rng(seed)
            train = drawn(y, counts, rng)
            rest = rng.permutation(np.setdiff1d(np.arange(len(y)), train))[:fresh]
            yield Draw(name, seed, X[train], y[train], X[rest], y[rest])
    if cache is None or not is_wanted("embeddings"):
        return
    E, y, is_fresh = embeddings(cache)
    rest = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(is_fresh))[:fresh])
    X_fresh = np.asarray(E[rest], dtype=np.float32)
    for counts in EMBEDDED:
        for seed in range(seeds):
            train = np.flatnonzero(~is_fresh)
            train = np.sort(train[drawn(y[train], counts, np.random.default_rng(seed))])
            yield Draw(
                named("embeddings", counts), seed, np.asarray(E[train], dtype=np.float32), y[train], X_fresh, y[rest]
            )


# --- both sides ----------------------------------------------------------------------------------------------


def ours(head: str, draw: Draw) -> dict[str, Any]:
    """Fit a head as `pipeline fit-head` does, and return probabilities of the fresh rows, before and after."""
    from dataclasses import replace

    from pipeline.evaluation.calibration import softmax
    from pipeline.evaluation.splits import fold_count
    from pipeline.fitting.measure import fitted_temperature
    from pipeline.heads.fit import FitOptions
    from pipeline.heads.registry import STREAMED, find_head
    from pipeline.heads.streamed_rows import StreamedRows

    X = StreamedRows(draw.X) if head in STREAMED else draw.X
    fitted = find_head(head)(X, draw.y.astype(np.int64), None, FitOptions(folds=fold_count(draw.y, 5)))
    temperature = fitted_temperature("classification", fitted, draw.y)
    scores = fitted.model.scores(draw.fresh)
    model = replace(fitted.model, temperature=temperature)
    return {
        "probabilities": model.link_scores(scores),
        "before": softmax(scores),
        "C": fitted.chosen.get("C"),
        "temperature": temperature,
    }


def searched(estimator: Any, grid: dict[str, Any]) -> Callable[[Draw], Any]:
    def fit(draw: Draw) -> Any:
        from sklearn.base import clone
        from sklearn.model_selection import GridSearchCV, StratifiedKFold

        folds = StratifiedKFold(min(5, np.bincount(draw.y).min()), shuffle=True, random_state=0)
        return GridSearchCV(clone(estimator), grid, cv=folds).fit(draw.X, draw.y)

    return fit


def counterparts() -> dict[str, Callable[[Draw], Any]]:
    """Return what a scikit-learn user would fit in place of each head."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    def logistic(draw: Draw) -> Any:
        folds = StratifiedKFold(min(5, np.bincount(draw.y).min()), shuffle=True, random_state=0)
        search = LogisticRegressionCV(Cs=LOGS["C"], cv=folds, max_iter=2000, scoring="accuracy")
        return search.fit(draw.X.astype(np.float64), draw.y)

    neighbours = {
        "n_neighbors": [1, 3, 5, 7, 11, 15, 21],
        "weights": ["uniform", "distance"],
        "metric": ["cosine", "euclidean"],
    }
    network = make_pipeline(StandardScaler(), MLPClassifier(max_iter=500, random_state=0))
    layers = {"mlpclassifier__alpha": [1e-4, 1e-2, 1.0], "mlpclassifier__hidden_layer_sizes": [(64,), (256,)]}
    return {
        "logistic": logistic,
        "linear": logistic,
        "ridge": lambda draw: RidgeClassifierCV(alphas=LOGS["alpha"]).fit(draw.X.astype(np.float64), draw.y),
        "lda": searched(
            LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": ["auto", 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.6, 0.9]}
        ),
        "svm": searched(LinearSVC(dual="auto", max_iter=5000), {"C": LOGS["C"]}),
        "knn": searched(KNeighborsClassifier(), neighbours),
        "centroid": lambda draw: NearestCentroid().fit(draw.X, draw.y),
        "mlp": searched(network, layers),
    }


def measured(probabilities: Any, truth: Any) -> dict[str, float]:
    from pipeline.evaluation.choice import hits
    from pipeline.evaluation.classification import row_losses

    return {
        "accuracy": float(hits(probabilities, truth).mean()),
        "log_loss": float(row_losses(truth, probabilities).mean()),
    }


def compared(head: str, theirs: Callable[[Draw], Any], draw: Draw) -> dict[str, Any] | None:
    """Return what both reach on one draw; None where the search cannot be run on so few rows."""
    clock = time.process_time
    started = clock()
    found = ours(head, draw)
    middle = clock()
    try:
        other = theirs(draw)
    except ValueError:
        return None
    accuracy = float((other.predict(draw.fresh) == draw.truth).mean())
    row: dict[str, Any] = {
        "head": head, "set": draw.name, "seed": draw.seed, "rows": len(draw.y), "C": found["C"],
        "temperature": found["temperature"], **measured(found["probabilities"], draw.truth),
        "log_loss_before": measured(found["before"], draw.truth)["log_loss"],
        "counterpart_accuracy": accuracy, "cpu_s": middle - started, "counterpart_cpu_s": clock() - middle,
    }  # fmt: skip
    # The counterpart of margins has no probabilities; that of ridge, svm and centroid is measured by accuracy alone.
    if hasattr(other, "predict_proba") and head != "centroid":
        row["counterpart_log_loss"] = measured(other.predict_proba(draw.fresh), draw.truth)["log_loss"]
    return row


# --- what came of it -----------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line a head: differences to the counterpart, averaged over seeds, then over sets."""
    lines = [
        "| head | sets | accuracy, difference | worst set | log loss, difference | worst set | temperature: log loss "
        "after against before | worst set | processor time against counterpart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for head in dict.fromkeys(row["head"] for row in rows):
        sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["head"] == head:
                sets[row["set"]].append(row)

        def over_sets(value: Callable[[dict[str, Any]], float], sets: Any = sets) -> dict[str, float]:
            return {name: float(np.mean([value(row) for row in those])) for name, those in sets.items()}

        accuracy = over_sets(lambda row: row["accuracy"] - row["counterpart_accuracy"])
        tempered = over_sets(lambda row: row["log_loss"] - row["log_loss_before"])
        has_loss = all("counterpart_log_loss" in row for those in sets.values() for row in those)
        loss = over_sets(lambda row: row["log_loss"] - row["counterpart_log_loss"]) if has_loss else {}
        worst, worst_t = min(accuracy, key=accuracy.__getitem__), max(tempered, key=tempered.__getitem__)
        cells = [head, str(len(sets)), f"{np.mean(list(accuracy.values())):+.4f}", f"{accuracy[worst]:+.4f} ({worst})"]
        if loss:
            worst_loss = max(loss, key=loss.__getitem__)
            cells += [f"{np.mean(list(loss.values())):+.3f}", f"{loss[worst_loss]:+.3f} ({worst_loss})"]
        else:
            cells += ["–", "–"]
        cells += [f"{np.mean(list(tempered.values())):+.4f}", f"{tempered[worst_t]:+.4f} ({worst_t})"]
        spent = [sum(row[name] for those in sets.values() for row in those) for name in ("cpu_s", "counterpart_cpu_s")]
        cells.append(f"{spent[0]:.0f} s, {spent[1]:.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--heads", default="logistic,linear,ridge,lda,svm,knn,centroid,mlp")
    parser.add_argument("--sets", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    others = counterparts()
    rows = []
    for draw in draws(arguments.seeds, [s for s in arguments.sets.split(",") if s], arguments.fresh, arguments.cache):
        for head in arguments.heads.split(","):
            row = compared(head, others[head], draw)
            if row is None:
                print(f"{head:9} {draw.name:32} seed {draw.seed}: its counterpart cannot be searched", flush=True)
                continue
            rows.append(row)
            print(
                f"{head:9} {draw.name:32} seed {draw.seed}: {row['accuracy']:.4f} "
                f"({row['accuracy'] - row['counterpart_accuracy']:+.4f}) log loss {row['log_loss']:.3f} "
                f"({row['log_loss'] - row.get('counterpart_log_loss', np.nan):+.3f}; T {row['temperature']:.3g}: "
                f"{row['log_loss'] - row['log_loss_before']:+.3f}) C {row['C']}",
                flush=True,
            )
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
