"""Stage 2: fit a head on a cache, measure it on rows it has not seen, write the run folder.

Axes: N rows used, D features, K classes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline import evaluate
from pipeline.errors import HeadError, near_names
from pipeline.heads.registry import STREAMED, FitOptions, FittedHead, find_head
from pipeline.heads.saved import ESTIMATOR_FILE, HEAD_FILE, LoadedHead, save_head
from pipeline.heads.streaming import StreamedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.heads.model import HeadModel

RUN_FILE = "run.json"
RUN_FORMAT = "embedding-pipeline run"

_DONE = 1


@dataclass(frozen=True)
class FitSettings:
    """All settings of a fit.

    Attributes
    ----------
    head : str
        A name in ``pipeline.heads.registry.HEADS``.
    layer : str
        ``"penultimate"`` or another layer of the cache.
    target : str or None
        A column of the cache to learn; None for its labels.
    Cs : "auto", "full" or tuple of float
        Values of C of the logistic head.
    folds : int
        Folds of the cross-validation on the training rows.
    scoring : {"accuracy", "log_loss"}
        What chooses C.
    scaling : {"none", "standard"}
        Whether weights are penalised in units of the features' standard deviations.
    class_weight : "balanced" or None
        Whether rare classes weigh more.
    test_share : float
        Share held out where the cache has no split column.
    seed : int
        Seed of the hold-out, the folds and the bootstrap.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    replicates : int
        Bootstrap resamples.
    calibrate : bool
        Whether probabilities are divided by the temperature found on the out-of-fold scores.
    learning_curve : bool
        Whether to fit on growing shares of the training rows, at the chosen settings.
    report : bool
        Whether to write ``report.html``.
    params : dict
        Further settings of the head.
    """

    head: str = "logistic"
    layer: str = "penultimate"
    target: str | None = None
    Cs: Literal["auto", "full"] | tuple[float, ...] = "auto"
    folds: int = 5
    scoring: Literal["accuracy", "log_loss"] = "accuracy"
    scaling: Literal["none", "standard"] = "none"
    class_weight: Literal["balanced"] | None = None
    test_share: float = 0.2
    seed: int = 0
    device: str = "auto"
    replicates: int = 1000
    calibrate: bool = True
    learning_curve: bool = True
    report: bool = True
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """What a fit gave.

    Attributes
    ----------
    run_dir : Path
        The run folder.
    metrics : dict
        What ``metrics.json`` holds.
    notes : list of str
        What was left out or should be known.
    seconds : dict of str to float
        Time of every step.
    """

    run_dir: Path
    metrics: dict[str, Any]
    notes: list[str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Rows:
    """The rows of a cache that take part: their numbers in the cache, classes, groups and split."""

    index: NDArray[np.int64]
    y: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[Any] | None
    split: NDArray[np.str_]
    split_kind: str

    def of(self, split: str) -> NDArray[np.int64]:
        """Return positions (not cache rows) of one split."""
        return np.flatnonzero(self.split == split)


def fit_head(
    cache_path: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    settings: FitSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit a head on the embeddings of a cache and write the run folder.

    Parameters
    ----------
    cache_path : str or Path
        The cache.
    run_dir : str or Path
        The run folder: new, empty, or a former run, which is replaced in one step.
    settings : FitSettings, optional
        All settings.
    say : callable, optional
        Takes lines for the user.
    progress : callable, optional
        Called with (solved, all) while the sweep runs.

    Returns
    -------
    FitResult
        The metrics, and what the user should know.

    Raises
    ------
    HeadError
        For labels or splits nothing can be learned from, and for an output that cannot be written.
    CacheError
        Where ``cache_path`` is not a cache.
    """
    from pipeline.cache import open_cache

    settings = settings or FitSettings()
    find_head(settings.head)
    clock = _Clock()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if say is not None:
            say(text)

    with new_run_folder(run_dir) as folder:
        cache = open_cache(cache_path)
        rows = select_rows(cache, settings, note)
        embeddings = _layer(cache, settings.layer)
        with clock("read"):
            train, y_train = rows.of("train"), rows.y[rows.of("train")]
            groups = None if rows.groups is None else rows.groups[train]
            folds = possible_folds(y_train, groups, rows.class_names, settings.folds, note)
            X: NDArray[np.float32] | StreamedRows
            if settings.head in STREAMED:
                X = StreamedRows(embeddings, rows.index[train])
            else:
                X = read_rows(embeddings, rows.index[train])
        with clock("fit"):
            fitted = find_head(settings.head)(X, y_train, groups, _options(settings, folds, progress))
        del X
        for text in fitted.warnings:
            note(text)
        with clock("evaluate"):
            temperature = _temperature(fitted, y_train, settings)
            results = _evaluate(cache, rows, embeddings, fitted, temperature, settings)
        if settings.learning_curve:
            with clock("learning curve"):
                results["learning_curve"] = results["metrics"]["learning_curve"] = _learning_curve(
                    rows, embeddings, fitted, settings
                )
        head = _saved_head(cache, rows, fitted, temperature, settings)
        with clock("write"):
            _write(folder, head, fitted, results, rows, cache)
            run = _run_facts(cache, rows, settings, fitted, temperature, notes)
        if settings.report:
            with clock("report"):
                from pipeline.report import write_report

                write_report(folder / "report.html", cache=cache, rows=rows, results=results, run=run)
        run["seconds"] = {name: round(value, 3) for name, value in clock.seconds.items()}
        _write_json(folder / RUN_FILE, run)
    return FitResult(Path(run_dir), results["metrics"], notes, clock.seconds)


# --- which rows ----------------------------------------------------------------------------------------------


def select_rows(cache: Any, settings: FitSettings, note: Callable[[str], None]) -> Rows:
    """Choose the rows that are done and labelled, and split them.

    Parameters
    ----------
    cache : Cache
        The cache.
    settings : FitSettings
        ``target``, ``test_share`` and ``seed`` count.
    note : callable
        Told what is left out.

    Raises
    ------
    HeadError
        No label, one class only, or an unusable split column.
    """
    labels, names = _labels(cache, settings.target)
    done = np.asarray(cache.status) == _DONE
    labelled = labels >= 0
    if not done.any():
        raise HeadError(f"none of the {len(cache)} rows of {cache.path} is done: finish pipeline extract first")
    if not (done & labelled).any():
        raise HeadError(
            f"none of the {int(done.sum())} rows that are done has a label: put the images into class folders, "
            "or give a table with a column 'label', and extract again"
        )
    if not done.all():
        note(f"left out: {int((~done).sum())} of {len(cache)} rows that failed or are still to do")
    if not labelled[done].all():
        note(f"left out: {int((done & ~labelled).sum())} of {int(done.sum())} rows without a label")
    index = np.flatnonzero(done & labelled)
    columns = cache.columns
    groups = np.asarray(columns["group"])[index] if "group" in columns else None
    split: NDArray[np.str_] | None
    if "split" in columns:
        split, kind = evaluate.named_split(np.asarray(columns["split"])[index]), "column"
        if not (split == "train").any():
            raise HeadError("the split column has no labelled row that says train: mark the training rows")
        if not np.isin(split, ("test", "val")).any():
            note(f"the split column says train only: {settings.test_share:.0%} of its rows are held out instead")
            index, groups = index[split == "train"], None if groups is None else groups[split == "train"]
            split, kind = None, "hold-out"
        elif (split == "").any():
            note(f"left out: {int((split == '').sum())} rows whose split is empty")
    else:
        split, kind = None, "hold-out"
    if split is not None and (split == "").any():
        kept = split != ""
        index, split = index[kept], split[kept]
        groups = None if groups is None else groups[kept]
    used, y = np.unique(labels[index], return_inverse=True)
    y = y.ravel().astype(np.int64)
    class_names = tuple(names[i] for i in used)
    _at_least_two(class_names)
    if split is None:
        split = evaluate.hold_out(y, share=settings.test_share, seed=settings.seed, groups=groups)
    rows = Rows(index, y, class_names, groups, split, kind)
    if groups is not None and kind == "column":
        _note_shared_groups(rows, note)
    return _known_classes(rows, note)


def _labels(cache: Any, target: str | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if target is None:
        return np.asarray(cache.labels, dtype=np.int64), tuple(cache.label_names)
    if target not in cache.columns:
        raise HeadError(f"the cache has no column {target!r}: {near_names(target, cache.columns)}")
    values = np.asarray(cache.columns[target])
    words = values.astype(str)
    names, codes = np.unique(words, return_inverse=True)
    codes = codes.ravel().astype(np.int64)
    empty = np.isin(names, ("", "nan", "None"))
    codes[empty[codes]] = -1
    return codes, tuple(names.tolist())


def _at_least_two(class_names: tuple[str, ...]) -> None:
    if len(class_names) < 2:
        raise HeadError(
            f"expected labelled rows of at least 2 classes, found only {class_names[0]!r}: "
            "add images of another class and extract again"
        )


def _note_shared_groups(rows: Rows, note: Callable[[str], None]) -> None:
    assert rows.groups is not None
    shared = np.intersect1d(rows.groups[rows.of("train")], rows.groups[rows.split != "train"])
    if len(shared):
        note(
            f"{len(shared)} groups (such as {shared[0]!r}) lie on both sides of the split column: "
            "the figures may flatter"
        )


def _known_classes(rows: Rows, note: Callable[[str], None]) -> Rows:
    """Drop held-out rows of classes that no training row has."""
    known = np.unique(rows.y[rows.of("train")])
    if len(known) == len(rows.class_names):
        return rows
    kept = np.isin(rows.y, known)
    if not kept[rows.split != "train"].any():
        raise HeadError(
            "no held-out row is of a class that the training rows have: mark other rows in the split column"
        )
    missing = [name for k, name in enumerate(rows.class_names) if k not in known]
    note(f"left out: {int((~kept).sum())} held-out rows of classes without a training row ({', '.join(missing[:5])})")
    class_names = tuple(rows.class_names[k] for k in known)
    _at_least_two(class_names)
    return replace(
        rows,
        index=rows.index[kept],
        y=np.searchsorted(known, rows.y[kept]),
        class_names=class_names,
        groups=None if rows.groups is None else rows.groups[kept],
        split=rows.split[kept],
    )


def possible_folds(
    y: NDArray[np.int64],
    groups: NDArray[Any] | None,
    class_names: tuple[str, ...],
    wanted: int,
    note: Callable[[str], None],
) -> int:
    """Return how many folds the training rows allow, at most ``wanted``.

    Raises
    ------
    HeadError
        Where a class has a single training row or group, or fewer than 2 folds are wanted.
    """
    if wanted < 2:
        raise HeadError(f"cross-validation needs at least 2 folds, got {wanted}")
    most = evaluate.largest_fold_count(y, groups)
    what = "row" if groups is None else "group"
    if most < 2:
        counts = [
            len(np.unique(groups[y == k])) if groups is not None else int((y == k).sum())
            for k in range(len(class_names))
        ]
        short = [name for name, count in zip(class_names, counts, strict=True) if count < 2]
        raise HeadError(
            f"expected at least 2 training {what}s of every class, found 1 of {', '.join(map(repr, short[:5]))}"
            f"{' and others' if len(short) > 5 else ''}: add images, or leave the class out"
        )
    if most < wanted:
        note(f"{most} folds instead of {wanted}: the smallest class has {most} training {what}s")
    return min(most, wanted)


def _layer(cache: Any, name: str) -> NDArray[Any]:
    if name == "penultimate":
        return cache.embeddings  # type: ignore[no-any-return]
    if name not in cache.layers:
        raise HeadError(f"the cache has no layer {name!r}: {near_names(name, ['penultimate', *cache.layers])}")
    return cache.layers[name]  # type: ignore[no-any-return]


def read_rows(embeddings: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy rows of the map into memory as float32.

    Raises
    ------
    HeadError
        Where a value is not finite.
    """
    X = np.asarray(embeddings[index], dtype=np.float32)
    if not np.isfinite(X).all():
        bad = int(index[np.flatnonzero(~np.isfinite(X).all(axis=1))[0]])
        raise HeadError(f"row {bad} of the cache holds values that are not finite: extract it again, in float32")
    return X


def _options(settings: FitSettings, folds: int, progress: Callable[[int, int], None] | None) -> FitOptions:
    device = settings.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return FitOptions(
        Cs=settings.Cs,
        folds=folds,
        scoring=settings.scoring,
        scaling=settings.scaling,
        class_weight=settings.class_weight,
        seed=settings.seed,
        device=device,
        calibrate=settings.calibrate,
        params=settings.params,
        progress=progress,
    )


# --- what came out -------------------------------------------------------------------------------------------


def _temperature(fitted: FittedHead, y: NDArray[np.int64], settings: FitSettings) -> float:
    if not settings.calibrate:
        return 1.0
    if fitted.oof_scores is None:
        return 1.0 if fitted.model is None else fitted.model.temperature
    return evaluate.fit_temperature(fitted.oof_scores, y)


def _evaluate(
    cache: Any,
    rows: Rows,
    embeddings: NDArray[Any],
    fitted: FittedHead,
    temperature: float,
    settings: FitSettings,
) -> dict[str, Any]:
    """Measure every split that was held out, and keep what the report shows."""
    held_out = [name for name in ("test", "val") if len(rows.of(name))]
    metrics: dict[str, Any] = {}
    results: dict[str, Any] = {"metrics": metrics, "temperature": temperature, "sweep": fitted.sweep}
    results["probabilities"] = {}
    for name in held_out:
        at = rows.of(name)
        scores = _scores(fitted, embeddings, rows.index[at])
        probabilities = _probabilities(fitted, scores, temperature)
        groups = None if rows.groups is None else rows.groups[at]
        intervals = evaluate.classification_metrics(
            rows.y[at], probabilities, seed=settings.seed, replicates=settings.replicates, groups=groups
        )
        metrics[name] = {key: value.as_dict() for key, value in intervals.items()}
        metrics[name]["rows"] = len(at)
        results["probabilities"][name] = probabilities
        if temperature != 1.0:
            before = _probabilities(fitted, scores, 1.0)
            hit = before.argmax(1) == rows.y[at]
            metrics[name]["before_calibration"] = {
                "ece": evaluate.expected_calibration_error(before.max(1), hit),
                "log_loss": float(evaluate.row_losses(rows.y[at], before).mean()),
            }
            results.setdefault("uncalibrated", {})[name] = before
    if fitted.oof_scores is not None:
        results["oof_probabilities"] = _probabilities(fitted, fitted.oof_scores, temperature)
    results["held_out"] = held_out[0]
    results["chosen"] = fitted.chosen
    metrics["chosen"] = fitted.chosen
    metrics["temperature"] = temperature
    metrics["sweep"] = fitted.sweep
    return results


def _scores(fitted: FittedHead, embeddings: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scores of rows of the cache, which may be more than fit into memory."""
    blocks = [index[start : start + _SCORED_ROWS] for start in range(0, len(index), _SCORED_ROWS)]
    return np.concatenate([_block_scores(fitted, read_rows(embeddings, block)) for block in blocks])


def _block_scores(fitted: FittedHead, X: NDArray[np.float32]) -> NDArray[np.float64]:
    if fitted.model is not None:
        return fitted.model.scores(X)
    return np.log(np.clip(np.asarray(fitted.estimator.predict_proba(X), dtype=np.float64), 1e-12, 1.0))


def _probabilities(fitted: FittedHead, scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    if fitted.model is not None:
        return replace(fitted.model, temperature=temperature).link_scores(scores)
    return evaluate.softmax(scores / temperature)


_SCORED_ROWS = 32_768

_LEARNING_SHARES = (0.01, 0.03, 0.1, 0.3)
_LEARNING_ROWS = 20_000
"""Rows of the held-out split that measure a point of the learning curve: its interval is then below ±0.7 points."""


def _learning_curve(
    rows: Rows, embeddings: NDArray[Any], fitted: FittedHead, settings: FitSettings
) -> list[dict[str, Any]]:
    """Fit the same head on growing shares of the training rows, every class in each of them."""
    if fitted.refit is None or fitted.model is None:
        return []
    train = rows.of("train")
    order = _stratified_order(rows.y[train], settings.seed)
    n_classes = len(rows.class_names)
    test = rows.of("test") if len(rows.of("test")) else rows.of("val")
    test = np.sort(np.random.default_rng(settings.seed).permutation(test)[:_LEARNING_ROWS])
    X_test = read_rows(embeddings, rows.index[test])
    groups = None if rows.groups is None else rows.groups[test]
    curve = []
    for share in (*_LEARNING_SHARES, 1.0):
        count = round(share * len(train))
        if count < 2 * n_classes:
            continue
        model: HeadModel | None = fitted.model
        if share < 1.0:
            at = np.sort(order[:count])
            part = train[at]
            model = fitted.refit(read_rows(embeddings, rows.index[part]), rows.y[part])
        if model is None:
            continue
        hit = (model.scores(X_test).argmax(1) == rows.y[test]).astype(np.float64)

        def accuracy(weight: NDArray[np.float64], hit: NDArray[np.float64] = hit) -> dict[str, float]:
            return {"accuracy": float(weight @ hit / weight.sum())}

        interval = evaluate.bootstrap_intervals(
            accuracy, len(test), seed=settings.seed, replicates=settings.replicates, groups=groups
        )
        curve.append({"rows": count, "accuracy": interval["accuracy"].as_dict()})
    return curve


def _stratified_order(y: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Order rows so that every beginning of the order has the classes in their shares, and each at least once early."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        place[rows] = np.arange(len(rows)) / len(rows)
    return np.lexsort((rng.random(len(y)), place))


def _saved_head(
    cache: Any, rows: Rows, fitted: FittedHead, temperature: float, settings: FitSettings
) -> LoadedHead | None:
    if fitted.model is None:
        return None
    return LoadedHead(
        model=replace(fitted.model, temperature=temperature),
        class_names=rows.class_names,
        layer=settings.layer,
        spec=dict(cache.spec),
        fingerprint=cache.fingerprint,
        head=settings.head,
    )


# --- the run folder ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_run_folder(run_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling folder that takes ``run_dir``'s place when all went well, and vanishes otherwise.

    Raises
    ------
    HeadError
        Where ``run_dir`` cannot be written, or holds something that is not a run.
    """
    target = Path(run_dir)
    if target.exists() and not _may_replace(target):
        raise HeadError(f"{target} exists and is no run folder: give a new folder with -o, or remove it yourself")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        folder.chmod(0o777 & ~_umask())
    except OSError as error:
        raise HeadError(f"cannot write to {target.parent} ({error.strerror}): give another folder with -o") from None
    try:
        yield folder
        if target.exists():
            former = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.rename(former / target.name)
            folder.rename(target)
            shutil.rmtree(former)
        else:
            folder.rename(target)
    except OSError as error:
        raise HeadError(f"cannot write {target} ({error}): free space, or give another folder with -o") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _may_replace(target: Path) -> bool:
    if not target.is_dir() or target.is_symlink():
        return False
    try:
        if not any(target.iterdir()):
            return True
        found = json.loads((target / RUN_FILE).read_text(encoding="utf-8"))
        return isinstance(found, dict) and found.get("format") == RUN_FORMAT
    except (OSError, ValueError):
        return False


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write(
    folder: Path, head: LoadedHead | None, fitted: FittedHead, results: dict[str, Any], rows: Rows, cache: Any
) -> None:
    import joblib

    if head is not None:
        save_head(folder / HEAD_FILE, head)
    joblib.dump(fitted.estimator, folder / ESTIMATOR_FILE)
    _write_json(folder / "metrics.json", results["metrics"])
    _write_predictions(folder / "predictions.csv", results, rows, cache.keys)
    split = results["held_out"]
    at = rows.of(split)
    confusion = evaluate.confusion_matrix(rows.y[at], results["probabilities"][split].argmax(1), len(rows.class_names))
    results["confusion"] = confusion
    from pipeline.report import save_confusion

    save_confusion(folder / "confusion.png", confusion, rows.class_names)


def _write_predictions(path: Path, results: dict[str, Any], rows: Rows, keys: NDArray[np.str_]) -> None:
    """Write one line for every held-out row, in the order of the cache."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "split", "label", "predicted", *(f"p_{name}" for name in rows.class_names)])
        for split, probabilities in results["probabilities"].items():
            at = rows.of(split)
            predicted = probabilities.argmax(1)
            for position, row in enumerate(at):
                writer.writerow(
                    [
                        keys[rows.index[row]],
                        split,
                        rows.class_names[rows.y[row]],
                        rows.class_names[predicted[position]],
                        *(f"{p:.6g}" for p in probabilities[position]),
                    ]
                )


def _run_facts(
    cache: Any,
    rows: Rows,
    settings: FitSettings,
    fitted: FittedHead,
    temperature: float,
    notes: list[str],
) -> dict[str, Any]:
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for name in ("embedding-pipeline", "numpy", "scikit-learn", "scipy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "format": RUN_FORMAT,
        "format_version": 1,
        "task": "classification",
        "head": settings.head,
        "layer": settings.layer,
        "class_names": list(rows.class_names),
        "settings": asdict(settings),
        "chosen": fitted.chosen,
        "temperature": temperature,
        "cache": {
            "path": str(cache.path),
            "fingerprint": cache.fingerprint,
            "spec": dict(cache.spec),
            "versions": dict(cache.versions),
        },
        "rows": {name: len(rows.of(name)) for name in ("train", "val", "test")},
        "split": rows.split_kind,
        "grouped": rows.groups is not None,
        "notes": notes,
        "versions": versions,
    }


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False, default=_plain)
    path.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


class _Clock:
    """Times named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
