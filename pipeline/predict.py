"""Apply a fitted head to new images: the same decoding, backbone and preprocessing as the cache it was fitted on."""

from __future__ import annotations

import csv
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.embed import embed
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.embedding.settings import AUTO, RunSettings
from pipeline.errors import PipelineError
from pipeline.evaluate_labels import THRESHOLD, joined
from pipeline.heads import load_head
from pipeline.sources import open_source

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.heads import LoadedHead


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """How a run went: images in all, how many failed, whether it was stopped, seconds, on what."""

    total: int
    failed: int
    stopped: bool
    seconds: float
    engine: str


def predict(
    run_dir: str | os.PathLike[str],
    images: str,
    output: str | os.PathLike[str],
    settings: RunSettings = RunSettings(),
    *,
    weights: str | None = None,
    trust: bool = False,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, int], None] = lambda ready, failed, total: None,
) -> PredictSummary:
    """Write a table with a line per image: key, prediction, and why it failed if it did.

    The prediction is a class with a probability per class, the labels of a set joined by ``|`` with a probability per
    label, or a number.

    Parameters
    ----------
    run_dir : path
        A run folder, or its ``head.safetensors``.
    images : str
        What `pipeline.sources.open_source` takes.
    output : path
        The CSV file; appears when it is whole.
    settings : RunSettings
        ``precision`` is that of the cache unless given.
    weights : str, optional
        The backbone's weights, when the cache was made with those of a file.
    trust : bool
        See `pipeline.heads.load_head`.
    stop, say, progress
        As in `pipeline.extract.extract`; a stopped run writes nothing.

    Raises
    ------
    PipelineError
        Head, weights, images, device or output cannot be used.
    """
    started = time.perf_counter()
    stop = stop or threading.Event()
    path = Path(output)
    if path.is_dir() or not path.parent.is_dir():
        raise PipelineError(
            f"expected a file name for the predictions, found {path}: name a file in a folder that exists"
        )
    from pipeline.backbones.finetuned import weights_of_run

    head = load_head(run_dir, trust=trust)
    source = open_source(images)
    backbone = backbone_of_spec(head.spec, weights or weights_of_run(run_dir))
    decode = decode_of_spec(head.spec)
    if settings.precision == AUTO:
        settings = settings.of_cache(head.spec["precision"])
    engine, _ = choose_engine(source, backbone, decode, settings, stop=stop, say=say)
    unfinished = path.with_name(path.name + ".new")
    ready = failed = 0
    progress(0, 0, len(source))
    try:
        with unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["key", *_header(head), "error"])
            rows = np.arange(len(source), dtype=np.int64)
            for batch, outputs in embed(source, rows, backbone, engine, decode, settings, stop=stop):
                # The cache's type is part of the numbers: what it would have rounded is rounded here.
                with np.errstate(over="ignore"):
                    embeddings = outputs[head.layer][: len(batch.rows)].astype(head.spec["dtype"])
                finite = np.isfinite(embeddings).all(axis=1)
                cells_of = _cells(head, np.where(finite[:, None], embeddings, 0))
                for row, outcome, sound, cells in zip(
                    batch.rows.tolist(), batch.outcomes, finite, cells_of, strict=True
                ):
                    reason = outcome.reason
                    if outcome.status == Status.DONE and not sound:
                        reason = "the network gave a value that is not finite"
                    failed += bool(reason)
                    lines.writerow([source[row].key, *([""] * len(cells) if reason else cells), reason])
                ready += len(batch.rows)
                progress(ready, failed, len(source))
        if not stop.is_set():
            unfinished.replace(path)
    except OSError as error:
        raise PipelineError(f"cannot write {path}: {error.strerror}: choose another output") from None
    finally:
        unfinished.unlink(missing_ok=True)
        engine.close()
    where = f"{engine.name}, {engine.device}, {engine.precision}"
    return PredictSummary(len(source), failed, stop.is_set(), time.perf_counter() - started, where)


def _header(head: LoadedHead) -> list[str]:
    if head.task == "regression":
        return ["predicted"]
    return ["predicted", *(f"p_{name}" for name in head.class_names)]


def _cells(head: LoadedHead, embeddings: NDArray[Any]) -> Iterator[list[str]]:
    """Yield the cells of each image between its key and its error."""
    if head.task == "regression":
        yield from ([f"{value:.10g}"] for value in head.predict(embeddings)[:, 0])
        return
    for probabilities in head.predict_proba(embeddings):
        if head.task == "multilabel":
            predicted = joined(probabilities >= THRESHOLD, head.class_names)
        else:
            predicted = head.class_names[int(probabilities.argmax())]
        yield [predicted, *(f"{p:.6g}" for p in probabilities)]
