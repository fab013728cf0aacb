"""Run architectures of torchvision and timm with random weights, each in a process of its own; write the table.

    python scripts/backbone_table.py rows.jsonl --set timm-modules        # the smallest of each module of timm
    python scripts/backbone_table.py rows.jsonl --set torchvision
    python scripts/backbone_table.py rows.jsonl --set timm                # all: many hours
    python scripts/backbone_table.py rows.jsonl --table                   # print the rows as Markdown

A row is written as soon as its architecture is through; rows that the file has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_PARAMETERS = 120e6
BATCH = 2
MEASURED_S = 2.0
SETS = ("timm-modules", "torchvision", "timm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--set", choices=SETS, default=SETS[0])
    parser.add_argument("--limit-s", type=float, default=240, help="seconds for one architecture")
    parser.add_argument("--until", metavar="HH:MM", help="start no further architecture after this time")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read(arguments.rows)))
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "torchvision", "pipeline.backbones.timm"])
    done = {row["name"] for row in read(arguments.rows)}
    for name, parameters in candidates(arguments.set):
        if arguments.until and time.strftime("%H:%M") >= arguments.until:
            break
        if name in done:
            continue
        row = {"name": name, "parameters": parameters, **in_a_process(context, name, arguments.limit_s)}
        with arguments.rows.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(row, flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def candidates(which: str) -> Iterator[tuple[str, int]]:
    """Yield names and numbers of parameters, the smallest first."""
    import timm
    import torchvision.models as models

    if which == "torchvision":
        # With the classifier, as published: some cannot be built without numbers.
        entries = ((name, models.get_model_weights(name).DEFAULT) for name in models.list_models(module=models))
        counted = [(entry.meta["num_params"], f"torchvision/{name}") for name, entry in entries]
    elif which == "timm":
        counted = [(count(timm.create_model, name), f"timm/{name}") for name in timm.list_models()]
    else:
        counted = []
        for module in timm.list_modules():
            sizes = [(count(timm.create_model, name), f"timm/{name}") for name in timm.list_models(module=module)]
            counted += sorted(sizes)[:1]
    for parameters, name in sorted(counted):
        if parameters <= MOST_PARAMETERS:
            yield name, parameters


def count(create: Any, name: str) -> int:
    """Return the parameters of a network that is not filled with numbers; 0 where it cannot be built so."""
    import torch

    try:
        with torch.device("meta"):
            return sum(each.numel() for each in create(name).parameters())
    except Exception:  # it reads numbers while it is built
        return 0


def in_a_process(context: Any, name: str, limit_s: float) -> dict[str, Any]:
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=measure_and_send, args=(name, sender))
    child.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(limit_s) else {"refused": f"not through after {limit_s:.0f} s"}
    except EOFError:
        found = {"refused": "its process ended: not enough memory?"}
    child.kill()
    child.join()
    return dict(found)


def measure_and_send(name: str, sender: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            sender.send(measure(name))
        except Exception as error:  # whatever it is, it is this architecture's row
            sender.send({"refused": " ".join(str(error).split())[:200] or type(error).__name__})


def measure(name: str) -> dict[str, Any]:
    import numpy as np

    from pipeline.backbones import load_backbone
    from pipeline.engines import selfcheck
    from pipeline.engines.agreement import LEAST_COSINE
    from pipeline.engines.openvino import OpenVinoEngine
    from pipeline.engines.torch import TorchEngine
    from pipeline.errors import EngineError

    backbone = load_backbone(name, "random")
    row: dict[str, Any] = {"width": backbone.layers[0].width, "input": list(backbone.preprocess.crop)}
    try:
        engine: Any = OpenVinoEngine(backbone, precision="float32", batch_size=BATCH)
        cosine = selfcheck.check_probes(engine, *engine.probes)
        row |= {"cosine": round(cosine, 7), "converted": cosine >= LEAST_COSINE["float32"]}
    except EngineError as error:
        row |= {"converted": False, "reason": str(error)}
    if not row["converted"]:
        import torch

        engine = TorchEngine(backbone, device=torch.device("cpu"), precision="float32", batch_size=BATCH)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *backbone.preprocess.shape), np.uint8)
    engine.run(images)
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURED_S:
        for future in [engine.submit(images) for _ in range(engine.in_flight)]:
            future.result()
            batches += 1
    return row | {"engine": engine.name, "images_s": round(batches * BATCH / (time.perf_counter() - started), 1)}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| architecture | M par. | input | width | engine | cosine | images/s |", "|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["name"].partition("/")[0] != "torchvision", row["name"])):
        size = "×".join(map(str, dict.fromkeys(row.get("input", []))))
        cosine = f"{row['cosine']:.7f}" if "cosine" in row else "–"
        lines.append(
            f"| `{row['name']}` | {row['parameters'] / 1e6:.1f} | {size} | {row.get('width', '')} | "
            f"{row.get('engine', 'refused')} | {cosine} | {row.get('images_s', '')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
