"""The run folder: what a fit writes, all of it or nothing.

Axes: N rows, K classes.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation import classification
from pipeline.fitting.measure import TASKS
from pipeline.heads.saved import ESTIMATOR_FILE, HEAD_FILE, LoadedHead, save_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.fitting.rows import Rows
    from pipeline.heads.fit import FittedHead

RUN_FILE = "run.json"
RUN_FORMAT = "embedding-pipeline run"


@contextlib.contextmanager
def new_run_folder(run_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling folder that takes ``run_dir``'s place when all went well, and vanishes otherwise.

    Raises
    ------
    HeadError
        Where ``run_dir`` cannot be written, or holds something that is not a run.
    """
    target = Path(run_dir)
    check_run_folder(target)
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


def check_run_folder(run_dir: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds something that is not a run.

    Raises
    ------
    HeadError
        It does.
    """
    target = Path(run_dir)
    if target.exists() and not _may_replace(target):
        raise HeadError(f"{target} exists and is no run folder: give a new folder with -o, or remove it yourself")


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


def write_fit(
    folder: Path, head: LoadedHead | None, fitted: FittedHead, results: dict[str, Any], rows: Rows, cache: Any
) -> None:
    """Write head, figures and predictions.

    Parameters
    ----------
    folder : Path
        Where to.
    head : LoadedHead or None
        None where only the estimator can predict: then there is no ``head.safetensors``.
    fitted : FittedHead
        For the estimator.
    results : dict
        Of `pipeline.fitting.measure.measure_splits`; for classes, ``confusion`` is added.
    rows : Rows
        The rows used.
    cache : Cache
        For the keys.
    """
    import joblib

    if head is not None:
        save_head(folder / HEAD_FILE, head)
    joblib.dump(fitted.estimator, folder / ESTIMATOR_FILE)
    write_json(folder / "metrics.json", results["metrics"])
    write_predictions(folder / "predictions.csv", results["predictions"], rows, cache)
    if rows.task == "classification":
        from pipeline.fitting.confusion_png import save_confusion

        split = results["held_out"]
        predicted = results["predictions"][split].argmax(axis=1)
        results["confusion"] = classification.confusion_matrix(rows.y[rows.of(split)], predicted, len(rows.class_names))
        save_confusion(folder / "confusion.png", results["confusion"], rows.class_names)


def write_predictions(path: Path, predictions: dict[str, NDArray[np.float64]], rows: Rows, cache: Any) -> None:
    """Write one line for every held-out row, in the order of the cache."""
    task = TASKS[rows.task]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        group = [] if rows.groups is None else ["group"]
        writer.writerow(["key", "split", *task.header(rows.class_names), *group])
        for split, of_split in predictions.items():
            at = rows.of(split)
            for key, row, predicted in zip(cache.keys_of(rows.index[at]), at, of_split, strict=True):
                cells = task.cells(rows.y[row], predicted, rows.class_names)
                writer.writerow([key, split, *cells, *([] if rows.groups is None else [rows.groups[row]])])


def run_facts(
    cache: Any,
    rows: Rows,
    settings: Any,
    *,
    head: str | None,
    layer: str,
    chosen: Mapping[str, Any],
    temperature: float,
    notes: Sequence[str],
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what ``run.json`` holds, but for the timings; ``packages`` are those whose versions matter besides."""
    return {
        "format": RUN_FORMAT,
        "format_version": 1,
        "task": rows.task,
        "target": rows.target,
        "head": head,
        "layer": layer,
        "class_names": list(rows.class_names),
        "settings": asdict(settings),
        "chosen": dict(chosen),
        "temperature": temperature,
        "cache": cache_facts(cache),
        "rows": {name: len(rows.of(name)) for name in ("train", "val", "test")},
        "split": rows.split_kind,
        "grouped": rows.groups is not None,
        "notes": list(notes),
        "versions": versions(*packages),
    }


def cache_facts(cache: Any) -> dict[str, Any]:
    """Return which cache a run belongs to."""
    return {
        "path": str(cache.path),
        "fingerprint": cache.fingerprint,
        "spec": dict(cache.spec),
        "versions": dict(cache.versions),
    }


def versions(*further: str) -> dict[str, str]:
    """Return the versions of what fits heads, and of further packages."""
    found = {"python": platform.python_version()}
    for name in ("embedding-pipeline", "numpy", "scikit-learn", "scipy", "torch", *further):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any reader takes: a figure that is not defined is null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)  # a setting from --set, such as a set of names
