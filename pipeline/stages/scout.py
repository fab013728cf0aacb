"""Before stage 1: which of several networks, and which of their layers, are best for these images, and what they cost.

The same labelled images go through every network; a head is fitted on each candidate with the same folds. Caches are
ordinary ones: extracting the whole archive into the one that was chosen adds its other images.
"""

from __future__ import annotations

import json
import shlex
import threading
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.backbones import load_backbone
from pipeline.backbones.layers import AUTO
from pipeline.cache import open_cache
from pipeline.core.callbacks import Callbacks, Progress, Say, ignore
from pipeline.core.files import replacing
from pipeline.core.outputs import check_folder
from pipeline.core.results import Result, page_of
from pipeline.embedding.settings import RunSettings
from pipeline.errors import BackboneError, EngineError, OptionError, PipelineError
from pipeline.fitting.run_folder import REPORT_FILE
from pipeline.report.scouting import write_scout_page
from pipeline.scouting.budget import FIRST_ROWS, Pace, next_round
from pipeline.scouting.comparison import (
    AS_GOOD,
    DROPPED,
    Line,
    best_accuracies,
    cheapest_of_the_best,
    compare,
    write_csv,
)
from pipeline.scouting.networks import DEFAULT, SETS, Network, named_networks, resolve_layers
from pipeline.scouting.sample import Sample, common_rows, draw_sample
from pipeline.sources import Source, open_source, public
from pipeline.sources.subset import SubsetSource
from pipeline.stages.extract import ExtractSettings, Summary, extract

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import pandas as pd

TABLE_FILE = "scout.csv"
FACTS_FILE = "scout.json"
FORMAT = "embedding-pipeline scout"

_LEAST_MEASURED = 8
"""Speeds of fewer images say nothing."""
_AT_ONCE = 1e9
"""Images a second of a network whose cache is complete already."""


@dataclass(frozen=True, slots=True)
class ScoutSettings:
    """The settings of `scout`.

    Attributes
    ----------
    backbones : tuple of str
        ``NAME`` or ``NAME=WEIGHTS``; see `pipeline.backbones.load_backbone`.
    named_set : str or None
        A name in ``pipeline.scouting.networks.SETS``, instead. Without either, the bundled network.
    layers : tuple of str
        Layers to compare besides ``penultimate``, where a network has them; ``("auto",)`` for the ends of its blocks
        at several depths. Empty: ``auto`` where there is one network.
    rows : int
        Labelled images to compare on, at most.
    minutes : float or None
        Time after which the weakest networks are dropped for; None for any time.
    labels : str or None
        See `pipeline.sources.open_source`.
    folds, seed : int
        Of the heads, and of the choice of images.
    run : RunSettings
        Engine, device, precision, batch size, workers, limits.
    report : bool
        Whether to write ``report.html``.
    """

    backbones: tuple[str, ...] = ()
    named_set: str | None = None
    layers: tuple[str, ...] = ()
    rows: int = 2000
    minutes: float | None = None
    labels: str | None = None
    folds: int = 5
    seed: int = 0
    run: RunSettings = field(default_factory=RunSettings)
    report: bool = True


@dataclass(frozen=True, repr=False)
class ScoutResult(Result):
    """What scouting found.

    Attributes
    ----------
    folder : Path
        With ``scout.csv``, ``report.html`` and the caches.
    lines : tuple of Line
        Every candidate, the best first; empty after a stop.
    notes : tuple of str
        What was left out or dropped.
    seconds : float
        How long it took.
    stopped : bool
        The run was asked to stop before the end.
    """

    folder: Path
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    seconds: float
    stopped: bool = False

    @property
    def recommended(self) -> Line:
        """The cheapest candidate that cannot be distinguished from the best."""
        return next(line for line in self.lines if line.recommended)

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``scout.csv`` holds, by candidate."""
        return {line.candidate: asdict(line) for line in self.lines}

    @property
    def report(self) -> Path | None:
        """The page; None where it was not written."""
        return page_of(self.folder, REPORT_FILE)

    def headlines(self) -> list[str]:
        """Return what is recommended, what is as good, and where the table is."""
        if self.stopped:
            return ["stopped: the same command continues"]
        chosen = self.recommended
        equals = [line.candidate for line in self.lines if line.standing == AS_GOOD and line is not chosen]
        lines = [
            f"recommended: {chosen.candidate}: accuracy {chosen.accuracy:.4f} ({chosen.low:.4f} to {chosen.high:.4f}) "
            f"on {chosen.rows} images, {chosen.images_per_second:.0f} images/s, {chosen.width} features"
        ]
        if chosen is not self.lines[0]:
            best = self.lines[0]
            lines.append(
                f"the best, {best.candidate}, has {best.accuracy:.4f}: a difference of {chosen.difference:+.4f} "
                f"({chosen.difference_low:+.4f} to {chosen.difference_high:+.4f})"
            )
        if equals:
            lines.append(f"not distinguishable from the best either: {', '.join(equals)}")
        return [*lines, f"{len(self.lines)} candidates in {self.folder / TABLE_FILE}, in {self.seconds:.0f} s"]

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with a line for each candidate, indexed by its name."""
        import pandas as pd  # takes a second

        return pd.DataFrame([asdict(line) for line in self.lines]).set_index("candidate")

    def _figures(self) -> dict[str, dict[str, Any]]:
        return {
            f"{line.candidate}: accuracy": {"value": line.accuracy, "low": line.low, "high": line.high}
            for line in self.lines
        }


def scout(
    images: str | Source,
    output: str | os.PathLike[str],
    settings: ScoutSettings = ScoutSettings(),
    *,
    stop: threading.Event | None = None,
    say: Say = ignore,
    progress: Progress = ignore,
) -> ScoutResult:
    """Compare networks and their layers on a sample of an archive; continue where an earlier run stopped.

    Parameters
    ----------
    images : str or Source
        What `pipeline.sources.open_source` takes, or a source; with labels.
    output : path
        The folder to write: new, empty, or that of an earlier run, whose caches are used again.
    settings : ScoutSettings
    stop : threading.Event, optional
        When set, what is embedded is committed and the run ends.
    say, progress : callable
        Receive lines for people and counts.

    Returns
    -------
    ScoutResult

    Raises
    ------
    PipelineError
        Images, labels, a backbone or the output cannot be used.
    """
    started = monotonic()
    folder = _check_scout_folder(output)
    networks = named_networks(_names(settings), folder)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    source = open_source(images, labels=settings.labels) if isinstance(images, str) else images
    sample = draw_sample(source.items, settings.rows, settings.seed, note)
    callbacks = Callbacks(stop or threading.Event(), say, progress)
    job = _Job(folder, source, sample, networks, settings, callbacks, notes, started)
    _resume(job)
    try:
        for network in networks:
            _resolve(job, network)
        folder.mkdir(parents=True, exist_ok=True)  # not before all networks are known to be there
        _save(job)
        lines = _run_rounds(job)
    except _StopRequested:
        return ScoutResult(folder, (), tuple(notes), monotonic() - started, stopped=True)
    chosen = cheapest_of_the_best(lines)
    lines = [replace(line, recommended=line is chosen) for line in lines]
    result = ScoutResult(folder, tuple(lines), tuple(notes), monotonic() - started)
    _write(job, result)
    return result


def _names(settings: ScoutSettings) -> tuple[str, ...]:
    """Return the networks as they were named."""
    if settings.backbones and settings.named_set:
        raise OptionError("name networks with --backbones or a list with --set: leave one of the two out")
    return settings.backbones or (SETS[settings.named_set] if settings.named_set else DEFAULT)


class _StopRequested(Exception):
    """A stop came; what is embedded is in the caches."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What is compared, on which images, how, and what was noted."""

    folder: Path
    source: Source
    sample: Sample
    networks: list[Network]
    settings: ScoutSettings
    callbacks: Callbacks
    notes: list[str]
    started: float
    ready: dict[str, int] = field(default_factory=dict)

    @property
    def compared(self) -> list[Network]:
        return [network for network in self.networks if not network.dropped]

    @property
    def asked_layers(self) -> tuple[str, ...]:
        return self.settings.layers or ((AUTO,) if len(self.networks) == 1 else ())

    def note(self, text: str) -> None:
        """Keep a line for the page, and pass it to the user."""
        self.notes.append(text)
        self.callbacks.say(text)

    def seconds_left(self) -> float:
        """Return the time left; without a limit, for ever."""
        if self.settings.minutes is None:
            return float("inf")
        return 60 * self.settings.minutes - (monotonic() - self.started)

    def check_stop(self) -> None:
        if self.callbacks.stop.is_set():
            raise _StopRequested


# --- the folder ----------------------------------------------------------------------------------------------


def _check_scout_folder(output: str | os.PathLike[str]) -> Path:
    """Return the folder, and refuse one that holds something else than an earlier run."""
    folder = check_folder(output)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _facts(folder))):
        raise PipelineError(
            f"{folder} exists and is no folder of pipeline scout: give a new folder with -o, or remove it yourself"
        )
    return folder


def _facts(folder: Path) -> dict[str, Any]:
    """Return what an earlier run left; nothing where it is no such folder."""
    try:
        found = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}


def _resume(job: _Job) -> None:
    """Take over what an earlier run found out about these networks: their speeds, and the layers asked for."""
    known = _facts(job.folder).get("networks", {})
    for network in job.networks:
        facts = known.get(network.path.name, {})
        network.images, network.seconds = int(facts.get("images", 0)), float(facts.get("seconds", 0.0))
        if facts.get("asked") == list(job.asked_layers):
            network.layers = tuple(facts["layers"])


def _save(job: _Job) -> None:
    """Keep what a later run needs."""
    networks = _facts(job.folder).get("networks", {}) | {
        network.path.name: {
            "network": network.name,
            "asked": list(job.asked_layers),
            "layers": list(network.layers),
            "images": network.images,
            "seconds": network.seconds,
        }
        for network in job.networks
    }
    with replacing(job.folder / FACTS_FILE) as part:
        part.write_text(json.dumps({"format": FORMAT, "networks": networks}, indent=2) + "\n", encoding="utf-8")


def _resolve(job: _Job, network: Network) -> None:
    """Settle the layers of a network, which also shows that it can be built, before hours of work."""
    job.check_stop()
    trust = job.settings.run.trust_remote_code
    if network.inner or not job.asked_layers:
        load_backbone(network.backbone, network.weights, network.inner, trust_remote_code=trust)
        return
    network.layers = resolve_layers(network, job.asked_layers, job.note, trust_remote_code=trust)
    if not network.inner and job.asked_layers != (AUTO,):
        job.note(f"{network.name} has none of the layers {', '.join(job.asked_layers)}")


# --- the rounds ----------------------------------------------------------------------------------------------


def _run_rounds(job: _Job) -> list[Line]:
    """Embed and compare, in a limited time on more and more images of fewer and fewer networks; the best first."""
    most = len(job.sample.order)
    rows = most if job.settings.minutes is None else min(FIRST_ROWS, most)
    dropped: list[Line] = []
    while True:
        for position, network in enumerate(waiting := job.compared):
            _embed(job, network, rows, job.seconds_left() / (len(waiting) - position))
        begun = monotonic()
        lines = _compare(job, rows)
        if rows >= most:
            break
        seconds = job.seconds_left() - (monotonic() - begun) * most / rows  # less what the heads will take
        accuracy = best_accuracies(lines)
        paces = {network.name: Pace(_speed(network, most), accuracy[network.name]) for network in job.compared}
        coming = next_round(rows, most, paces, seconds)
        for network in job.compared:
            if network.name not in coming.kept:
                network.dropped = f"dropped after {rows} images, to save time"
                job.note(f"{network.name}: {network.dropped}")
                dropped += [replace(line, standing=DROPPED) for line in lines if line.network == network.name]
        if coming.rows == rows:
            lines = [line for line in lines if line.network in coming.kept]
            break
        rows = coming.rows
    if rows < most:
        job.note(f"compared on {rows} of {most} images: --minutes {job.settings.minutes:g} allows no more")
    return [*lines, *sorted(dropped, key=lambda line: -line.accuracy)]


def _speed(network: Network, most: int) -> float:
    if len(open_cache(network.path)) >= most or network.images < _LEAST_MEASURED:
        return _AT_ONCE
    return network.images_per_second


class _Deadline(threading.Event):
    """A stop that comes by itself after some seconds, or with the user's."""

    def __init__(self, asked: threading.Event, seconds: float) -> None:
        super().__init__()
        self._asked, self._end = asked, monotonic() + seconds

    def is_set(self) -> bool:
        return super().is_set() or self._asked.is_set() or monotonic() > self._end


def _embed(job: _Job, network: Network, rows: int, seconds: float) -> None:
    """Embed the first images of the sample, and keep how fast that was; drop the network where it is too slow."""
    job.check_stop()
    if network.path.exists():  # rows that an earlier run embedded are kept
        rows = max(rows, min(len(open_cache(network.path)), len(job.sample.order)))
    settings = ExtractSettings(
        backbone=network.backbone,
        weights=network.weights,
        layers=network.inner,
        run=job.settings.run,
        allow_removed="100%",  # another sample may be another part of the archive
    )
    source = SubsetSource(job.source, job.sample.first(rows))
    job.callbacks.say(f"{network.name}: {rows} images")
    try:
        summary = extract(
            source,
            network.path,
            settings,
            stop=_Deadline(job.callbacks.stop, seconds),
            say=job.callbacks.say,
            progress=_progress(job, network),
        )
    except (BackboneError, EngineError) as error:
        network.dropped = f"it does not run: {error}"
        job.note(f"{network.name}: {network.dropped}")
        return
    _measure(job, network, summary)
    job.check_stop()
    if summary.stopped:
        done = summary.already + summary.computed
        network.dropped = f"too slow: {done} of {rows} images in {seconds:.0f} s"
        job.note(f"{network.name}: {network.dropped}")


def _measure(job: _Job, network: Network, summary: Summary) -> None:
    if summary.computed:
        network.images += summary.computed
        network.seconds += summary.seconds.get("loop", 0.0)
    _save(job)


def _progress(job: _Job, network: Network) -> Progress:
    """Return a callback that counts the images of all networks together."""

    def count(ready: int, failed: int, total: int) -> None:
        job.ready[network.name] = ready
        job.callbacks.progress(sum(job.ready.values()), failed, len(job.networks) * len(job.sample.order))

    return count


def _compare(job: _Job, rows: int) -> list[Line]:
    networks = job.compared
    if not networks:
        reasons = "; ".join(f"{network.name}: {network.dropped}" for network in job.networks)
        raise PipelineError(f"expected a network that embeds the images in time, found none ({reasons}): allow more")
    caches = [open_cache(network.path) for network in networks]
    common = common_rows(job.sample, rows, job.source.items.keys, caches)
    count = sum(len(network.candidates()) for network in networks)
    job.callbacks.say(f"fitting {count} heads on {len(common.y)} images")
    return compare(
        networks,
        caches,
        common,
        len(job.source),
        folds=job.settings.folds,
        seed=job.settings.seed,
        check=job.check_stop,
    )


# --- what is written -----------------------------------------------------------------------------------------


def _write(job: _Job, result: ScoutResult) -> None:
    write_csv(job.folder / TABLE_FILE, result.lines)
    if job.settings.report:
        facts = {
            "images": public(job.source.location),
            "images in all": len(job.source),
            "classes": job.sample.classes,
            "folds": job.settings.folds,
            "seed": job.settings.seed,
            "then": " && ".join(_next_commands(job, result.recommended)),
        }
        with replacing(job.folder / REPORT_FILE) as part:
            write_scout_page(part, result.lines, notes=result.notes, facts=facts)


def _next_commands(job: _Job, line: Line) -> list[str]:
    """Return the commands that go on with a candidate."""
    network = next(network for network in job.networks if network.name == line.network)
    embed = [
        "pipeline",
        "extract",
        public(job.source.location),
        "-o",
        str(network.path),
        "--backbone",
        network.backbone,
    ]
    embed += ["--weights", network.weights] if network.weights else []
    embed += [word for layer in network.inner for word in ("--layer", layer)]
    embed += ["--labels", public(job.settings.labels)] if job.settings.labels else []
    layers = line.layers.split(" + ")
    which = ["--layer", layers[0]] if len(layers) == 1 else ["--layers", ",".join(layers)]
    fit = ["pipeline", "fit-head", str(network.path), "-o", f"{network.path.with_suffix('')}-head", *which]
    return [shlex.join(embed), shlex.join(fit)]
