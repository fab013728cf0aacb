"""Measure what an image costs in each part of the pipeline, on one machine: the figures of docs/scale.md.

    python scripts/bench_scale.py IMAGES [--backbone efficientnet_lite0] [--images 2000] [--rows 100000]

Listing is measured on all of IMAGES; reading, decoding and the forward pass on some of them, one after the other and
not side by side; writing, verifying and merging on made-up rows of the backbone's width. Processor time is of all
threads and processes; reading from a cold disk or a network takes longer than it takes processor time.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbones import load_backbone
from pipeline.cache import CacheWriter
from pipeline.cache.merge import merge
from pipeline.cache.replace import lay_out
from pipeline.cache.verify import verify
from pipeline.core.items import ItemTable
from pipeline.core.shards import ShardRecord, items_sha256
from pipeline.core.spec import canonical_json, fingerprint
from pipeline.decoding.image import DecodePolicy
from pipeline.decoding.worker import prepare
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.settings import RunSettings
from pipeline.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.backbones import Backbone

SHARDS = 4
BATCH = 4096


def cost(what: str, count: int, work: Callable[[], object]) -> float:
    """Print the time and the processor time of one of ``count`` in microseconds; return the latter."""
    before, started = processor_seconds(), time.perf_counter()
    work()
    wall, busy = time.perf_counter() - started, processor_seconds() - before
    print(f"| {what} | {wall / count * 1e6:.1f} | {busy / count * 1e6:.1f} |", flush=True)
    return busy / count


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def network(location: str, backbone: Backbone, count: int) -> None:
    """Read, decode and embed some images of a source, part by part."""
    source, policy = open_source(location), DecodePolicy()
    rows = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)).tolist()
    reader, files, images = source.reader(), list[bytes](), list[np.ndarray]()
    cost("read a file", len(rows), lambda: files.extend(reader(source.locator(row)) for row in rows))
    cost("decode and prepare", len(rows), lambda: images.extend(prepare(f, policy, backbone.preprocess) for f in files))
    engine, _ = choose_engine(source, backbone, policy, RunSettings(precision="float32"))
    batches = [np.stack(images[i : i + engine.batch_size]) for i in range(0, len(images), engine.batch_size)]
    batches = [batch for batch in batches if len(batch) == engine.batch_size]
    engine.run(batches[0])

    def forward() -> None:
        for future in [engine.submit(batch) for batch in batches]:
            future.result()

    cost(f"forward, {engine.name} {engine.precision}", len(batches) * engine.batch_size, forward)
    engine.close()


def cache(folder: Path, rows: int, width: int) -> None:
    """Write, verify and merge made-up rows; say what one takes on the disk."""
    spec = {"backbone": "synthetic", "layers": [{"name": "penultimate", "width": width}], "dtype": "float32"}
    attributes = {
        "spec": canonical_json(spec),
        "fingerprint": fingerprint(spec),
        "versions": "{}",
        "self_check": "{}",
        "source": canonical_json({"kind": "synthetic", "location": "none"}),
    }
    numbers = np.char.zfill(np.arange(rows).astype("S9"), 9)
    whole = ItemTable(
        keys=np.char.add(np.char.add(b"class/folder/", numbers), b".jpg"),
        labels=np.zeros(rows, dtype=np.int32),
        label_names=("class",),
        sizes=np.full(rows, 50_000),
        mtimes_ns=np.arange(rows),
        columns={},
    )
    sha256 = items_sha256(whole)
    values = np.random.default_rng(0).standard_normal((BATCH, width), dtype=np.float32)
    parts = [folder / f"{number}.h5" for number in range(1, SHARDS + 1)]

    def write() -> None:
        for number, path in enumerate(parts, 1):
            record = ShardRecord(number, SHARDS, rows, sha256)
            own = record.rows
            lay_out(
                path,
                ItemTable(whole.keys[own], whole.labels[own], ("class",), whole.sizes[own], whole.mtimes_ns[own], {}),
                widths={"penultimate": width},
                dtype="float32",
                attributes={**attributes, "shard": record.to_json()},
            )
            writer = CacheWriter(path)
            for start in range(0, own.stop - own.start, BATCH):
                mine = np.arange(start, min(start + BATCH, own.stop - own.start))
                writer.write(mine, {"penultimate": values[: len(mine)]}, np.ones((len(mine), 16), np.uint8))
                writer.commit()
            writer.close()

    cost("write a row", rows, write)
    cost("merge a row", rows, lambda: merge(parts, folder / "merged.h5"))
    cost("verify a row", rows, lambda: verify(folder / "merged.h5"))
    print(f"\na row takes {(folder / 'merged.h5').stat().st_size / rows:.0f} bytes on the disk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("location", metavar="IMAGES")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    print("| part | µs | µs of a processor |\n|---|---|---|")
    source = open_source(arguments.location)
    cost("list an image", len(source), lambda: open_source(arguments.location))
    cost("hash the list, per image (shards)", len(source), lambda: items_sha256(source.items))
    network(arguments.location, backbone, arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        cache(Path(folder), arguments.rows, backbone.layers[0].width)


if __name__ == "__main__":
    main()
