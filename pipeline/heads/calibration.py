"""What a run keeps of its training rows, so that later predictions can be doubted, explained and bounded.

It is a file of its own beside the head, ``calibration.safetensors``: heads stay readable by earlier versions, and runs
without it predict as before.

Axes: M training rows, n calibration rows, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.evaluation import conformal
from pipeline.heads.novelty import NOVELTY_ARRAYS, Novelty
from pipeline.heads.strict_arrays import read_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

CALIBRATION_FILE = "calibration.safetensors"
FORMAT = "embedding-pipeline calibration"
FORMAT_VERSION = 1
_TRAINING = ("train_rows", "train_labels")
_SCORES = ("scores", "score_labels", "score_groups")


@dataclass(frozen=True)
class TrainingRows:
    """Which rows of which cache a head was fitted on.

    Attributes
    ----------
    cache : str
        Path of the cache.
    fingerprint : str
        Of the cache.
    keys : str
        `hash_of_keys` of the rows: a cache that was since brought up to date has other rows.
    rows : ndarray of shape (M,), int64
    labels : ndarray of shape (M,) or (M, K)
        Classes int64, numbers float64, or label sets as 0 and 1.
    """

    cache: str
    fingerprint: str
    keys: str
    rows: Ints
    labels: NDArray[Any]


@dataclass(frozen=True)
class ConformalScores:
    """Nonconformity scores of rows that the head was not fitted on; see `pipeline.evaluation.conformal`.

    Attributes
    ----------
    scores : ndarray of shape (n,)
    labels : ndarray of shape (n,), int64
        Classes of the rows; 0 of numbers.
    groups : ndarray of shape (n,), int64
        Rows of one group are not independent; each row has its own where there are no groups.
    source : str
        Where the rows come from: ``"out-of-fold"`` or ``"val"``.
    """

    scores: Floats
    labels: Ints
    groups: Ints
    source: str

    @property
    def independent(self) -> int:
        """How many rows, or groups, count."""
        return len(np.unique(self.groups))

    @property
    def counted(self) -> str:
        """What counts: rows or groups."""
        return "rows" if self.independent == len(self.groups) else "groups"

    def thresholds(self, coverage: float, n_classes: int, *, by_class: bool) -> float | Floats:
        """Return the largest usual score, or that of each class."""
        if by_class:
            return conformal.class_thresholds(self.scores, self.labels, n_classes, coverage, self.groups)
        return conformal.threshold(self.scores, coverage, self.groups)

    def warnings(self, coverage: float, class_names: Sequence[str], *, by_class: bool) -> list[str]:
        """Return what is to be known where the calibration rows are few."""
        if not by_class:
            text = conformal.few_rows(coverage, self.independent, self.counted)
            return [text] if text else []
        counts = [len(np.unique(self.groups[self.labels == k])) for k in range(len(class_names))]
        least = conformal.least_rows(coverage)
        few = [name for name, count in zip(class_names, counts, strict=True) if count < least]
        found = []
        if few:
            names = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
            found.append(
                f"{len(few)} of {len(class_names)} classes have fewer than the {least} calibration {self.counted} that "
                f"a coverage of {coverage:g} takes, so every set holds them: {names}"
            )
        rest = [count for count in counts if count >= least]
        if rest and (text := conformal.few_rows(coverage, min(rest), f"{self.counted} of a class")):
            found.append(text)
        return found


@dataclass(frozen=True)
class Calibration:
    """What a run keeps of its training rows.

    Attributes
    ----------
    training : TrainingRows
    novelty : Novelty or None
        None where there are too few rows.
    conformal : ConformalScores or None
        None where no row was held out.
    """

    training: TrainingRows
    novelty: Novelty | None
    conformal: ConformalScores | None


def hash_of_keys(keys: NDArray[np.str_]) -> str:
    """Return a hash of keys in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys.tolist():
        data = os.fsencode(key)
        digest.update(len(data).to_bytes(4, "little"))
        digest.update(data)
    return digest.hexdigest()


def save_calibration(path: str | os.PathLike[str], found: Calibration) -> None:
    """Write one safetensors file."""
    from safetensors.numpy import save

    training, conform = found.training, found.conformal
    arrays: dict[str, NDArray[Any]] = {
        "train_rows": training.rows.astype(np.int64),
        "train_labels": training.labels.astype(np.float64 if training.labels.dtype.kind == "f" else np.int64),
    }
    facts: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "cache": training.cache,
        "fingerprint": training.fingerprint,
        "keys": training.keys,
    }
    if found.novelty is not None:
        arrays |= found.novelty.arrays()
    if conform is not None:
        arrays |= dict(zip(_SCORES, (conform.scores, conform.labels, conform.groups), strict=True))
        facts["source"] = conform.source
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    packed = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    Path(path).write_bytes(save(packed, metadata={"calibration": text}))


def load_calibration(run: str | os.PathLike[str]) -> Calibration | None:
    """Load what a run keeps of its training rows; None for a run of an earlier version, which keeps nothing.

    Parameters
    ----------
    run : str or Path
        A run folder, or the head in it.

    Raises
    ------
    HeadError
        The file is damaged, foreign or of a newer version.
    """
    folder = Path(run)
    file = (folder if folder.is_dir() else folder.parent) / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        facts, arrays = read_arrays(file.read_bytes(), "calibration")
        return _build(facts, arrays)
    except HeadError as error:
        raise HeadError(f"cannot load {file}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
        raise HeadError(
            f"cannot load {file}: expected what pipeline fit-head wrote, found something else "
            f"({type(error).__name__}): fit the head again, or remove the file to predict without it"
        ) from None


def _build(facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Calibration:
    """Check everything, and put it together."""
    if facts.get("format") != FORMAT or facts.get("format_version") != FORMAT_VERSION:
        raise HeadError(
            f"expected {FORMAT} of version {FORMAT_VERSION}, found {facts.get('format')!r} of version "
            f"{facts.get('format_version')!r}: use the version of this program that wrote it, or fit the head again"
        )
    groups = (_TRAINING, NOVELTY_ARRAYS, _SCORES)
    known = [set(names) for names in groups if set(names) & arrays.keys()]
    if set(_TRAINING) not in known or set().union(*known) != arrays.keys():
        raise HeadError(f"expected other arrays than {', '.join(sorted(arrays))}: the file is damaged")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise HeadError(f"{name} holds values that are not finite")
    rows, labels = arrays["train_rows"], arrays["train_labels"]
    if rows.ndim != 1 or rows.dtype.kind != "i" or len(labels) != len(rows) or rows.min(initial=0) < 0:
        raise HeadError("expected as many labels as training rows")
    training = TrainingRows(str(facts["cache"]), str(facts["fingerprint"]), str(facts["keys"]), rows, labels)
    novelty = Novelty.of_arrays(arrays) if NOVELTY_ARRAYS[0] in arrays else None
    conform = None
    if _SCORES[0] in arrays:
        parts = [arrays[name] for name in _SCORES]
        if any(part.ndim != 1 or len(part) != len(parts[0]) for part in parts) or not len(parts[0]):
            raise HeadError("expected a label and a group for each score")
        conform = ConformalScores(parts[0], parts[1], parts[2], str(facts["source"]))
    return Calibration(training, novelty, conform)
