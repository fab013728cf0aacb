"""Measure extraction against the usual loop, against peers, and against the limit of this machine.

    python scripts/bench_extract.py [--backbone torchvision/resnet50] [--size 500x375] [--images 400] [--repeats 3]
        [--weights random] [--json FILE] [--markdown FILE]

All contenders see the same JPEGs (crops of scikit-learn's photographs, made here) and the same network, in one process
after another, interleaved; the table gives medians and ratios:

- ours: `pipeline extract` in automatic precision, and in float32; whole calls, start-up included, and the loop alone
- naive: torchvision's or timm's own transform, a DataLoader with a worker per processor, eager PyTorch in inference
mode
- thingsvision, img2vec-pytorch, embetter: where installed
- the limit: forward-only rate f and decode-only rate d of this project's parts; 1/(1/f + 1/d) where they share
processors
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pipeline.backbones import Backbone, load_backbone
from pipeline.decode import DecodePolicy
from pipeline.decode_pool import DecodePool
from pipeline.embed import RunSettings, choose_engine
from pipeline.extract import ExtractSettings, extract
from pipeline.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable


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


def naive(folder: Path, backbone: Backbone) -> float:
    """Return images/s of the tutorial's loop; start-up of the workers included, as in every run of it."""
    data = Folder(folder, own_transform(backbone))
    started = time.perf_counter()
    loader = torch.utils.data.DataLoader(data, batch_size=32, num_workers=os.cpu_count() or 1)
    rows = []
    with torch.inference_mode():
        for batch in loader:
            rows.append(backbone.network.body(batch).numpy())
    np.concatenate(rows)
    return len(data) / (time.perf_counter() - started)


def ours(folder: Path, backbone: str, weights: str | None, precision: str, jpeg_scale: str) -> tuple[float, float, str]:
    """Return images/s of the whole call and of its loop, and the precision that was used."""
    settings = ExtractSettings(
        backbone=backbone,
        weights=weights,
        decode=DecodePolicy(jpeg_scale=jpeg_scale),
        run=RunSettings(precision=precision, device="cpu"),
    )
    with tempfile.TemporaryDirectory() as out:
        summary = extract(str(folder), Path(out) / "c.h5", settings)
    return summary.computed / summary.seconds["total"], summary.computed / summary.seconds["loop"], summary.engine


def limits(folder: Path, backbone: Backbone, precision: str, jpeg_scale: str) -> tuple[float, float]:
    """Return images/s of the forward pass alone and of reading and decoding alone."""
    source, policy, run = (
        open_source(str(folder)),
        DecodePolicy(jpeg_scale=jpeg_scale),
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
    workers = os.cpu_count() or 1
    with DecodePool(source.reader(), policy, backbone.preprocess, batch_size=8, workers=workers, slots=8) as pool:
        started = 0.0
        for number, batch in enumerate(pool.batches(np.arange(len(source)), source.locator)):
            batch.release()
            if number == 0:  # the workers have started
                started = time.perf_counter()
    return forward, (len(source) - 8) / (time.perf_counter() - started)


def thingsvision(folder: Path, backbone: Backbone) -> float | None:
    """Return images/s of thingsvision with the same torchvision network; None where it is not installed."""
    try:
        from thingsvision import get_extractor
        from thingsvision.utils.data import DataLoader, ImageDataset
    except ImportError:
        return None
    if not backbone.name.startswith("torchvision/"):
        return None
    extractor = get_extractor(backbone.name.partition("/")[2], source="torchvision", device="cpu", pretrained=False)
    started = time.perf_counter()
    data = ImageDataset(
        root=str(folder), out_path=tempfile.mkdtemp(), backend="pt", transforms=extractor.get_transformations()
    )
    loader = DataLoader(dataset=data, batch_size=32, backend="pt")
    extractor.extract_features(batches=loader, module_name="avgpool", flatten_acts=True, output_type="ndarray")
    return len(data) / (time.perf_counter() - started)


def median(values: list[float]) -> float:
    """Return the median, rounded for reading."""
    return round(statistics.median(values), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jpeg-scale", default="full", choices=["full", "half"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    width, height = (int(n) for n in arguments.size.split("x"))
    backbone = load_backbone(arguments.backbone, arguments.weights)
    rates: dict[str, list[float]] = {}
    note = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, arguments.images, width, height)
        for _ in range(arguments.repeats):
            for precision in ("auto", "float32"):
                whole, loop, engine = ours(
                    folder, arguments.backbone, arguments.weights, precision, arguments.jpeg_scale
                )
                rates.setdefault(f"ours, {precision}, whole call", []).append(whole)
                rates.setdefault(f"ours, {precision}, loop", []).append(loop)
                note = engine if precision == "auto" else note
            rates.setdefault("naive loop", []).append(naive(folder, backbone))
            if (peer := thingsvision(folder, backbone)) is not None:
                rates.setdefault("thingsvision", []).append(peer)
            used = note.rpartition(", ")[2]
            forward, decode = limits(folder, backbone, used, arguments.jpeg_scale)
            rates.setdefault(f"forward only, {used}", []).append(forward)
            rates.setdefault("decode only", []).append(decode)
            rates.setdefault(f"limit of both, {used}", []).append(1 / (1 / forward + 1 / decode))
    base = median(rates["naive loop"])
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}"
    title = f"{arguments.backbone}, {arguments.size} JPEG, {arguments.images} images, auto = {note}"
    lines = [f"{title} ({machine})", "", "| what | images/s | against the naive loop |", "|---|---|---|"]
    lines += [f"| {what} | {median(values)} | {median(values) / base:.1f}× |" for what, values in rates.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        facts: dict[str, Any] = {"title": title, "machine": machine, "rates": rates}
        arguments.json.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
