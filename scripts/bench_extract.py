"""Measure extraction against the usual loop, against peers, and against the limit of this machine.

    python scripts/bench_extract.py [--backbone torchvision/resnet50 --weights random] [--size 500x375] [--images 400]
        [--repeats 3] [--peer thingsvision=PYTHON]... [--json FILE] [--markdown FILE]
    python scripts/bench_extract.py --all [...]

All contenders see the same JPEGs (crops of scikit-learn's photographs, made here) and the same network, one after
another and interleaved; the table gives medians, and the median of the ratios within each repeat:

- ours: `pipeline extract` in automatic precision, and in float32; whole calls, start-up included, and the loop alone
- naive: torchvision's or timm's own transform, a DataLoader with a worker per processor, eager PyTorch in inference
  mode; and the same with channels_last memory, the first thing one would tune
- peers named by --peer (thingsvision, img2vec-pytorch, embetter), under the interpreter that has them: bench_peers.py
- the limit: forward-only rate f and decode-only rate d of this project's parts; 1/(1/f + 1/d), as they share processors

--all measures the cases of docs/performance.md, one table each.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pipeline.backbones import Backbone, load_backbone
from pipeline.core.system import processor_count
from pipeline.decoding.image import DecodePolicy
from pipeline.decoding.pool import DecodePool
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.settings import RunSettings
from pipeline.sources import open_source
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Case:
    """What is measured: a network on images of one size."""

    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    size: str = "500x375"
    images: int = 400
    repeats: int = 3
    peers: dict[str, str] = field(default_factory=dict)


RESNET = {"backbone": "torchvision/resnet50", "weights": "random"}
ALL = (
    {"images": 400},
    {**RESNET, "images": 128, "peers": True},
    {"size": "3000x2000", "images": 100},
)
"""The cases of docs/performance.md."""


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEGs of real photographs: random crops, resized, quality 90."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % 2]
        share = float(rng.uniform(0.5, 1.0))
        w, h = int(photo.width * share), int(photo.height * share)
        left, top = int(rng.integers(0, photo.width - w + 1)), int(rng.integers(0, photo.height - h + 1))
        crop = photo.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
        crop.save(folder / f"{i:05d}.jpg", quality=90)


class Folder(torch.utils.data.Dataset[torch.Tensor]):
    """The usual data set: PIL, RGB, the weights' transform."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files = sorted(folder.glob("*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def own_transform(backbone: Backbone) -> Callable[[Image.Image], torch.Tensor]:
    """Return the library's own transform of these weights."""
    if backbone.name.startswith("torchvision/"):
        import torchvision.models as models

        return models.get_model_weights(backbone.name.partition("/")[2]).DEFAULT.transforms()  # type: ignore[no-any-return]
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    return create_transform(**resolve_model_data_config(backbone.network.body), is_training=False)  # type: ignore[no-any-return]


def naive(folder: Path, backbone: Backbone, memory_format: torch.memory_format) -> float:
    """Return images/s of the tutorial's loop; start-up of the workers included, as in every run of it."""
    data = Folder(folder, own_transform(backbone))
    body = copy.deepcopy(backbone.network.body).to(memory_format=memory_format)  # type: ignore[call-overload]
    started = time.perf_counter()
    loader = torch.utils.data.DataLoader(data, batch_size=32, num_workers=processor_count())
    rows = []
    with torch.inference_mode():
        for batch in loader:
            rows.append(body(batch.to(memory_format=memory_format)).numpy())
    np.concatenate(rows)
    return len(data) / (time.perf_counter() - started)


def ours(folder: Path, backbone: str, weights: str | None, precision: str) -> tuple[float, float, str]:
    """Return images/s of the whole call and of its loop, and the precision that was used."""
    settings = ExtractSettings(
        backbone=backbone,
        weights=weights,
        run=RunSettings(precision=precision, device="cpu"),
    )
    with tempfile.TemporaryDirectory() as out:
        summary = extract(str(folder), Path(out) / "c.h5", settings)
    return summary.computed / summary.seconds["total"], summary.computed / summary.seconds["loop"], summary.engine


def limits(folder: Path, backbone: Backbone, precision: str) -> tuple[float, float]:
    """Return images/s of the forward pass alone and of reading and decoding alone."""
    source, policy, run = (
        open_source(str(folder)),
        DecodePolicy(),
        RunSettings(precision=precision),
    )
    engine, _ = choose_engine(source, backbone, policy, run)
    images = np.random.default_rng(0).integers(0, 256, (engine.batch_size, *backbone.preprocess.shape), dtype=np.uint8)
    engine.run(images)
    count, started = max(8, len(source) // engine.batch_size), time.perf_counter()
    futures = [engine.submit(images) for _ in range(count)]
    for future in futures:
        future.result()
    forward = count * engine.batch_size / (time.perf_counter() - started)
    engine.close()
    workers = processor_count()
    with DecodePool(source.reader(), policy, backbone.preprocess, batch_size=8, workers=workers, slots=8) as pool:
        started = 0.0
        for number, batch in enumerate(pool.batches(np.arange(len(source)), source.locator)):
            batch.release()
            if number == 0:  # the workers have started
                started = time.perf_counter()
    return forward, (len(source) - 8) / (time.perf_counter() - started)


def peer_rate(peer: str, python: str, folder: Path, backbone: str) -> tuple[float, str] | None:
    """Return images/s of a peer under an interpreter, and its name with versions; None where it is not installed."""
    script = Path(__file__).with_name("bench_peers.py")
    # Its own interpreter is to find its own packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script), peer, str(folder), backbone], capture_output=True, text=True, check=False, env=environment
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("images/s ")), None)
    if done.returncode:
        raise SystemExit(f"{peer} failed under {python}: {done.stderr.strip().splitlines()[-1]}")
    if line is None:
        print(f"{peer} is not installed for {python}: left out", file=sys.stderr)
        return None
    _, rate, name = line.split(" ", 2)
    return float(rate), name


def measure(case: Case) -> dict[str, Any]:
    """Return a case's rates by contender, a value per repeat, and which engine and precision ``auto`` took."""
    width, height = (int(n) for n in case.size.split("x"))
    backbone = load_backbone(case.backbone, case.weights)
    rates: defaultdict[str, list[float]] = defaultdict(list)
    auto = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, case.images, width, height)
        for _ in range(case.repeats):
            for precision in ("auto", "float32"):
                whole, loop, engine = ours(folder, case.backbone, case.weights, precision)
                rates[f"ours, {precision}, whole call"].append(whole)
                rates[f"ours, {precision}, loop"].append(loop)
                auto = engine if precision == "auto" else auto
            rates["naive loop"].append(naive(folder, backbone, torch.contiguous_format))
            rates["naive loop, channels_last"].append(naive(folder, backbone, torch.channels_last))
            for peer, python in case.peers.items():
                if (found := peer_rate(peer, python, folder, case.backbone)) is not None:
                    rates[found[1]].append(found[0])
            for used in dict.fromkeys((auto.rpartition(", ")[2], "float32")):
                forward, decode = limits(folder, backbone, used)
                rates[f"forward only, {used}"].append(forward)
                rates[f"decode only, beside {used}"].append(decode)
                rates[f"limit of both, {used}"].append(1 / (1 / forward + 1 / decode))
    return {"case": asdict(case), "auto": auto, "rates": dict(rates)}


def table(found: dict[str, Any]) -> str:
    """Return a case's Markdown table: medians, and medians of the ratios within each repeat."""
    rates, case = found["rates"], found["case"]

    def ratio(over: str, under: str) -> str:
        pairs = [a / b for a, b in zip(rates[over], rates[under], strict=True)]
        return f"{statistics.median(pairs):.2f}×"

    used = found["auto"].rpartition(", ")[2]
    lines = [
        f"{case['backbone']}, {case['size']}, {case['images']} images, {case['repeats']} repeats, auto = {used}",
        "",
        "| what | images/s | against the naive loop | ours, auto, against it |",
        "|---|---|---|---|",
    ]
    for name, values in rates.items():
        ratios = f"{ratio(name, 'naive loop')} | {ratio('ours, auto, loop', name)}"
        lines.append(f"| {name} | {statistics.median(values):.1f} | {ratios} |")
    return "\n".join(
        [*lines, "", f"float32 against its limit: {ratio('ours, float32, loop', 'limit of both, float32')}"]
    )


def machine() -> str:
    """Return the processor and the versions of what counts."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    parts = ("embedding-pipeline", "torch", "torchvision", "timm", "openvino", "pillow", "numpy")
    versions = ", ".join(f"{part} {metadata.version(part)}" for part in parts)
    return f"{processor}, {processor_count()} processors; Python {platform.python_version()}, {versions}"


def peers_of(texts: list[str]) -> dict[str, str]:
    """Return interpreter by peer of ``NAME`` or ``NAME=PYTHON`` texts."""
    pairs = (text.partition("=") for text in texts)
    return {name: python or sys.executable for name, _, python in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--backbone", default=Case.backbone)
    parser.add_argument("--weights")
    parser.add_argument("--size", default=Case.size)
    parser.add_argument("--images", type=int, default=Case.images)
    parser.add_argument("--repeats", type=int, default=Case.repeats)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    peers = peers_of(arguments.peer)
    if arguments.all:
        cases = [
            Case(**{**options, "repeats": arguments.repeats, "peers": peers if options.get("peers") else {}})
            for options in ALL
        ]
    else:
        names = ("backbone", "weights", "size", "images", "repeats")
        cases = [Case(**{name: getattr(arguments, name) for name in names}, peers=peers)]
    where = machine()
    texts, found = [where], []
    print(where)
    for case in cases:
        found.append(measure(case))
        texts.append(table(found[-1]))
        print(f"\n{texts[-1]}", flush=True)
        if arguments.markdown:  # after each case: a run that is cut short leaves what it has
            arguments.markdown.write_text("\n\n".join(texts) + "\n")
        if arguments.json:
            arguments.json.write_text(json.dumps({"machine": where, "cases": found}, indent=2))


if __name__ == "__main__":
    main()
