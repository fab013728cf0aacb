"""The run folder: what a fit writes, all of it or nothing.

Axes: N rows, K classes.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.csv_rows import csv_writer
from pipeline.core.files import replacing_folder
from pipeline.core.names import SHOWN
from pipeline.core.outputs import check_folder
from pipeline.core.system import DISTRIBUTION, versions_of
from pipeline.errors import HeadError, first_line
from pipeline.evaluation import classification
from pipeline.evaluation.splits import shown_group
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.confusion_png import save_confusion
from pipeline.heads.saved import ESTIMATOR_FILE, HEAD_FILE, RUN_FILE, SEPARATOR, LoadedHead, save_head

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
GROUPS_FILE = "predictions-per-group.csv"
CONFUSION_FILE = "confusion.png"
REPORT_FILE = "report.html"
RUN_FORMAT = "embedding-pipeline run"

SEVERAL = "several"
"""The task in the ``run.json`` of a folder that holds a run for each target."""

_PACKAGES = (DISTRIBUTION, "numpy", "scikit-learn", "scipy", "torch")
"""What fits heads: a run holds the versions."""


@contextlib.contextmanager
def new_run_folder(run_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a folder to fill, which replaces ``run_dir`` when the block ends, and is removed if it raises.

    Raises
    ------
    HeadError
        ``run_dir`` cannot be written, or holds something that is not a run.
    """
    check_run_folder(run_dir)
    with replacing_folder(run_dir, HeadError) as folder:
        yield folder


def check_run_folder(run_dir: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds something that is not a run, or that cannot be written.

    Raises
    ------
    HeadError
        It does, or cannot.
    """
    target = check_folder(run_dir, HeadError)
    if target.exists() and not _may_replace(target):
        raise HeadError(f"{target} exists and is not a run folder: give a new folder with -o, or remove it yourself")


def _may_replace(target: Path) -> bool:
    if not target.is_dir():
        return False
    try:
        return not any(target.iterdir()) or read_run(target).get("format") == RUN_FORMAT
    except (OSError, HeadError):
        return False


def read_run(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the ``run.json`` of a run folder holds.

    Raises
    ------
    HeadError
        There is none, or it is not a JSON object.
    """
    try:
        found = json.loads((Path(run_dir) / RUN_FILE).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{RUN_FILE} holds {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise HeadError(
            f"expected a run of pipeline fit-head at {run_dir}, found none ({first_line(error)}): fit the head again"
        ) from None
    return found


def write_fit(
    folder: Path, head: LoadedHead | None, estimator: Any, results: dict[str, Any], rows: Rows, cache: Cache
) -> None:
    """Write head, figures and predictions.

    Parameters
    ----------
    folder : Path
        Where to.
    head : LoadedHead or None
        None where only the estimator can predict: then there is no ``head.safetensors``.
    estimator : object
        The fitted scikit-learn estimator.
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
    joblib.dump(estimator, folder / ESTIMATOR_FILE)
    write_json(folder / METRICS_FILE, results["metrics"])
    write_predictions(folder / PREDICTIONS_FILE, results["predictions"], rows, cache)
    if rows.task == "classification":
        split = results["held_out"]
        predicted = results["predictions"][split].argmax(axis=1)
        results["confusion"] = classification.confusion_matrix(rows.y[rows.of(split)], predicted, len(rows.class_names))
        save_confusion(folder / CONFUSION_FILE, results["confusion"], rows.class_names)


def write_predictions(path: Path, predictions: dict[str, NDArray[np.float64]], rows: Rows, cache: Cache) -> None:
    """Write one line for every held-out row, in the order of the cache."""
    task = TASKS[rows.task]
    with path.open("w", encoding="utf-8", errors=SHOWN, newline="") as file:
        writer = csv_writer(file)
        further = {"group": rows.groups, "per": rows.per}
        named = {name: groups for name, groups in further.items() if groups is not None}
        writer.writerow(["key", "split", "label", *task.header(rows.class_names), *named])
        for split, of_split in predictions.items():
            at = rows.of(split)
            for key, row, predicted in zip(cache.keys_of(rows.index[at]), at, of_split, strict=True):
                cells = [task.label(rows.y[row], rows.class_names), *task.cells(predicted, rows.class_names)]
                writer.writerow([key, split, *cells, *(shown_group(groups[row]) for groups in named.values())])


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What ``run.json`` holds about the head: its name, layers, choices and temperature."""

    head: str | None
    layers: tuple[str, ...]
    chosen: Mapping[str, Any]
    temperature: float


def run_facts(
    cache: Cache, rows: Rows, settings: Any, head: HeadFacts, notes: Sequence[str], packages: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what ``run.json`` holds, except for the timings.

    Parameters
    ----------
    cache, rows, head, notes
        What the run is about.
    settings : dataclass
        All settings of the stage.
    packages : sequence of str
        Distributions whose versions matter, besides those of every run.
    """
    return {
        "format": RUN_FORMAT,
        "format_version": 1,
        "task": rows.task,
        "target": rows.target,
        "head": head.head,
        "layer": SEPARATOR.join(head.layers),
        "layers": list(head.layers),
        "class_names": list(rows.class_names),
        "settings": asdict(settings),
        "chosen": dict(head.chosen),
        "temperature": head.temperature,
        "cache": cache_facts(cache),
        "rows": {name: len(rows.of(name)) for name in ("train", "val", "test")},
        "split": rows.split_kind,
        "grouped": rows.groups is not None,
        "notes": list(notes),
        "versions": versions_of((*_PACKAGES, *packages)),
    }


def several_facts(cache: Cache, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the ``run.json`` above the runs of several targets holds."""
    return {
        "format": RUN_FORMAT,
        "format_version": 1,
        "task": SEVERAL,
        "cache": cache_facts(cache),
        "runs": list(runs),
        "versions": versions_of(_PACKAGES),
    }


def cache_facts(cache: Cache) -> dict[str, Any]:
    """Return which cache a run belongs to."""
    return {
        "path": str(cache.path),
        "fingerprint": cache.fingerprint,
        "spec": dict(cache.spec),
        "versions": dict(cache.versions),
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any reader takes: a figure that is not defined is null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    # A byte that is not UTF-8 becomes an escape of JSON, from which its readers make it again.
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


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
