"""Why a head predicts what it predicts: maps of contributions over the images, and the nearest training images.

Axes: N images, D features, K classes, T classes shown, h w positions, k neighbours.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.nearest import nearest
from pipeline.cache import open_cache
from pipeline.core.files import replacing_folder
from pipeline.core.items import Status
from pipeline.core.names import shown
from pipeline.core.outputs import check_folder
from pipeline.embedding.feature_maps import feature_map_of, feature_maps
from pipeline.errors import AnalysisError, BackboneError, CacheError, HeadError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.calibration import hash_of_keys
from pipeline.heads.contributions import Contributions, check_linear

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.embedding.embedder import Embedder
    from pipeline.embedding.feature_maps import MappedBatch
    from pipeline.heads import LoadedHead
    from pipeline.heads.calibration import Calibration
    from pipeline.sources import Source

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

INDEX_FILE, MAPS_FILE, PAGE_FILE, IMAGES_FOLDER = "explanations.json", "maps.npz", "report.html", "images"
FORMAT = "embedding-pipeline explanations"
MOST_IMAGES = 10_000
"""Images that are explained at once: their embeddings and maps are kept in memory."""
CLASSES_SHOWN = 3
NEIGHBOURS = 5
TOLERANCE = 1e-4
"""Largest difference between a map's mean and the score, as a share of the largest score of the image."""
_LONGEST_NAME = 60
_SHADE = 0.7


@dataclass(frozen=True)
class Predicted:
    """What was predicted, collected while the table is written.

    Attributes
    ----------
    keys : list of str
    reasons : list of str
        Why an image has no prediction; empty where it has one.
    features : list of ndarray
        Blocks (n, D).
    predictions : list of ndarray
        Blocks (n, K).
    """

    keys: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    features: list[NDArray[Any]] = field(default_factory=list)
    predictions: list[Floats] = field(default_factory=list)

    def add(self, keys: Sequence[str], features: NDArray[Any], reasons: Sequence[str], predictions: Floats) -> None:
        """Keep a batch."""
        self.keys.extend(keys)
        self.reasons.extend(reasons)
        self.features.append(np.array(features, dtype=np.float32))
        self.predictions.append(np.array(predictions))


@dataclass(frozen=True)
class Neighbour:
    """A training image near an image.

    Attributes
    ----------
    row : int
        Of the training cache.
    key, label : str
    cosine : float
    """

    row: int
    key: str
    label: str
    cosine: float


@dataclass
class Explanation:
    """The explanation of one prediction.

    Attributes
    ----------
    row : int
        Of the images.
    key : str
    predicted : str
    probability : float or None
        None of numbers.
    score : float or None
        What the map is the mean of; None without a map.
    picture : str
        Name of the file with the map over the image, in the folder; empty without a map.
    thumbnail : bytes or None
        The image as the network takes it, as JPEG.
    neighbours : list of Neighbour
    """

    row: int
    key: str
    predicted: str
    probability: float | None
    score: float | None = None
    picture: str = ""
    thumbnail: bytes | None = None
    neighbours: list[Neighbour] = field(default_factory=list)


@dataclass(frozen=True)
class Explanations:
    """What was explained.

    Attributes
    ----------
    items : list of Explanation
        Images that have a prediction.
    layer : str
        What the head takes, and of which network.
    notes : list of str
        Why there are no maps, or no neighbours.
    training : Cache or None
        The cache with the nearest training images.
    """

    items: list[Explanation]
    layer: str
    notes: list[str]
    training: Cache | None


def check_explained(folder: str | os.PathLike[str], images: int) -> None:
    """Refuse a folder that holds something else, and more images than can be explained, before the work begins.

    Raises
    ------
    AnalysisError
    """
    path = check_folder(folder, AnalysisError)
    if images > MOST_IMAGES:
        raise AnalysisError(
            f"--explain: expected at most {MOST_IMAGES} images, got {images}: predict those to be explained alone"
        )
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or _is_own(path))):
        raise AnalysisError(f"--explain: {path} exists and holds something else: name a new folder")


def _is_own(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def explain(
    folder: Path,
    head: LoadedHead,
    calibration: Calibration | None,
    found: Predicted,
    source: Source | None,
    embedder: Callable[[], Embedder],
    *,
    own: Cache | None = None,
    stop: threading.Event | None = None,
) -> Explanations:
    """Explain predictions: write pictures, ``maps.npz`` and the index into a folder; the page is the report's.

    Parameters
    ----------
    folder : Path
        Of `new_folder`.
    head : LoadedHead
    calibration : Calibration or None
        Of its run: which rows it was fitted on.
    found : Predicted
    source : Source or None
        The images, item i of prediction i; None where they cannot be read any more.
    embedder : callable
        Returns that of the network, which is built where there are maps.
    own : Cache, optional
        The cache whose rows were predicted: a row is not its own neighbour.
    stop : threading.Event, optional
        When set, the images that follow get no map.
    """
    notes: list[str] = []
    predictions = np.concatenate(found.predictions) if found.predictions else np.zeros((0, len(head.class_names)))
    items = [
        Explanation(row, found.keys[row], *_decided(head, predictions[row]))
        for row in range(len(found.keys))
        if not found.reasons[row]
    ]
    training = _add_neighbours(head, calibration, found, items, own, notes)
    by_row = {item.row: item for item in items}
    try:
        batches = _mapped_batches(head, source, embedder, np.array(sorted(by_row), dtype=np.int64), stop)
    except (HeadError, BackboneError, AnalysisError) as error:
        notes.append(f"No maps: {error}.")
    else:
        _add_maps(folder, head, predictions, batches, by_row, notes)
    result = Explanations(items, f"layer {head.layer} of {head.spec['backbone']}", notes, training)
    _write_index(folder, result)
    return result


def _write_index(folder: Path, found: Explanations) -> None:
    index = {
        "format": FORMAT,
        "format_version": 1,
        "layer": found.layer,
        "notes": found.notes,
        "images": [
            {
                "row": item.row,
                "key": item.key,
                "predicted": item.predicted,
                "probability": item.probability,
                "score": item.score,
                "picture": item.picture or None,
                "neighbours": [
                    {"key": near.key, "label": near.label, "cosine": near.cosine} for near in item.neighbours
                ],
            }
            for item in found.items
        ],
    }
    # ASCII: a byte of a key that is not UTF-8 becomes an escape of JSON, from which its readers make it again.
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="ascii")


def new_folder(folder: str | os.PathLike[str]) -> Any:
    """Return a context that gives a folder to fill, which then stands at ``folder``."""
    return replacing_folder(folder, AnalysisError)


# --- neighbours ----------------------------------------------------------------------------------------------


def _add_neighbours(
    head: LoadedHead,
    calibration: Calibration | None,
    found: Predicted,
    items: list[Explanation],
    own: Cache | None,
    notes: list[str],
) -> Cache | None:
    """Give each image its nearest training images; return the cache that holds them."""
    try:
        cache = _training_cache(head, calibration)
    except (HeadError, CacheError) as error:
        notes.append(f"No nearest training images: {error}.")
        return None
    assert calibration is not None
    training = calibration.training
    features = np.concatenate(found.features)[[item.row for item in items]] if items else np.zeros((0, 1))
    order = np.argsort(training.rows, kind="stable")
    rows, labels = training.rows[order], training.labels[order]
    skip = None
    if own is not None and own.path.resolve() == cache.path.resolve():
        skip = np.array([item.row for item in items], dtype=np.int64)
    near, cosine = nearest(head.features(cache.layers), features, NEIGHBOURS, rows=rows, skip=skip)
    for item, of_item, its in zip(items, near, cosine, strict=True):
        there = of_item[of_item >= 0]
        names = cache.keys_of(there).tolist()
        item.neighbours = [
            Neighbour(int(row), name, _label(head, labels[np.searchsorted(rows, row)]), float(value))
            for row, name, value in zip(there, names, its, strict=False)
        ]
    return cache


def _training_cache(head: LoadedHead, calibration: Calibration | None) -> Cache:
    """Return the cache a head was fitted on, where it is still there and still holds the same rows.

    Raises
    ------
    HeadError, CacheError
        It is not, or the run does not name its rows.
    """
    if calibration is None:
        raise HeadError("the run does not name its training rows, as those of earlier versions: fit the head again")
    training = calibration.training
    cache = open_cache(training.cache)
    rows = training.rows
    same = cache.fingerprint == training.fingerprint and rows.max(initial=-1) < len(cache)
    if not same or hash_of_keys(cache.keys_of(rows)) != training.keys:
        raise CacheError(f"{training.cache} no longer holds the rows the head was fitted on: fit the head again")
    if not (np.asarray(cache.status)[rows] == Status.DONE).all():
        raise CacheError(f"{training.cache} lacks training rows: finish pipeline extract, then fit the head again")
    return cache


def _label(head: LoadedHead, label: Any) -> str:
    return TASKS[head.task].label(label != 0 if head.task == "multilabel" else label, head.class_names)


def _decided(head: LoadedHead, prediction: Floats) -> tuple[str, float | None]:
    """Return what was predicted, and with which probability."""
    if head.task == "regression":
        return f"{prediction[0]:.10g}", None
    best = int(prediction.argmax())
    return head.class_names[best], float(prediction[best])


# --- maps ----------------------------------------------------------------------------------------------------


def _mapped_batches(
    head: LoadedHead, source: Source | None, embedder: Callable[[], Embedder], rows: Ints, stop: threading.Event | None
) -> Iterator[MappedBatch]:
    """Return the images of some rows with their feature maps.

    Raises
    ------
    HeadError, BackboneError, AnalysisError
        There are none.
    """
    check_linear(head)
    if source is None:
        raise AnalysisError("the images of the cache can no longer be read: predict the images instead")
    of_head = embedder()
    found = feature_map_of(of_head.backbone, head.layer, of_head.settings.device)
    return feature_maps(source, rows, of_head.backbone, found, of_head.decode, of_head.settings, stop=stop)


def _add_maps(
    folder: Path,
    head: LoadedHead,
    predictions: Floats,
    batches: Iterator[MappedBatch],
    by_row: dict[int, Explanation],
    notes: list[str],
) -> None:
    """Give each image its map; write the pictures, and all maps as arrays."""
    (folder / IMAGES_FOLDER).mkdir()
    classes = np.argsort(-predictions, axis=1, kind="stable")[:, : min(CLASSES_SHOWN, len(head.class_names))]
    kept: list[tuple[Ints, Ints, Floats, Floats]] = []
    for batch, maps, scores in _mapped(batches, Contributions(head), classes):
        kept.append((batch.rows, classes[batch.rows], scores, maps.astype(np.float32)))
        for row, image, its, score in zip(batch.rows.tolist(), batch.images, maps, scores, strict=True):
            item = by_row[row]
            item.score, item.picture = float(score[0]), f"{IMAGES_FOLDER}/{_file_name(row, item.key)}"
            item.thumbnail = _jpeg(image)
            (folder / item.picture).write_bytes(overlay(image, its[0]))
    without = len(by_row) - sum(len(part[0]) for part in kept)
    if without:
        notes.append(f"{without} images have no map: they could not be read a second time, or the run was stopped.")
    if kept:
        rows, shown_classes, scores, maps = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        np.savez_compressed(
            folder / MAPS_FILE,
            rows=rows,
            keys=np.array([shown(by_row[row].key) for row in rows.tolist()]),
            class_names=np.array([shown(name) for name in head.class_names]),
            classes=shown_classes,
            scores=scores,
            maps=maps,
        )


def _mapped(
    batches: Iterator[MappedBatch], contributions: Contributions, classes: Ints
) -> Iterator[tuple[MappedBatch, Floats, Floats]]:
    """Yield batches with the maps and scores of some classes, each map checked against its score.

    Raises
    ------
    AnalysisError
        The mean of a map is not the score.
    """
    for batch in batches:
        asked = classes[batch.rows]
        maps = contributions.maps(batch.features, batch.outputs, asked)
        every = contributions.scores(batch.outputs)
        scores = np.take_along_axis(every, asked, axis=1)
        off = np.abs(maps.mean(axis=(2, 3)) - scores)
        if (off > TOLERANCE * np.maximum(np.abs(every).max(axis=1, keepdims=True), 1e-12)).any():
            raise AnalysisError(
                f"expected maps whose mean is the score, found a difference of {off.max():.2g}: report it, and predict "
                "without --explain"
            )
        yield batch, maps, scores


def _file_name(row: int, key: str) -> str:
    """Return a name that is a file's on every system, and of this image alone.

    Examples
    --------
    >>> _file_name(3, "ants/a b?.png")
    '000003-ants_a_b_.png'
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", shown(key).removesuffix(".png"))[-_LONGEST_NAME:].strip(".")
    return f"{row:06d}-{plain}.png"


def overlay(image: NDArray[np.uint8], contributions: Floats) -> bytes:
    """Return a PNG of an image (H, W, 3) in grey with its map (h, w) over it.

    Orange speaks for the class and blue against it; the colour is full at the largest contribution of the image.
    """
    from PIL import Image

    height, width = image.shape[:2]
    grid = Image.fromarray(contributions.astype(np.float32))
    wide = np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR))
    strength = wide / max(float(np.abs(contributions).max()), 1e-30)
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[:, :, None]
    orange, blue = np.array([217, 115, 13], np.float32), np.array([31, 95, 168], np.float32)
    colour = np.where(strength[:, :, None] > 0, orange, blue)
    share = _SHADE * np.clip(np.abs(strength), 0, 1)[:, :, None]
    mixed = grey * (1 - share) + colour * share
    return _encoded(Image.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8)), "PNG")


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((160, 160))
    return _encoded(small, "JPEG")


def _encoded(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()
