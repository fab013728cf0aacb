"""Try shapes and hints of the network on this processor, forward only: batches, streams, OpenVINO's properties.

    python scripts/bench_openvino.py [--backbone efficientnet_lite0] [--precision float32] [--repeats 3] [--seconds 1.5]

All trials are compiled first and then measured in turn, several times; the table gives each median and the median of
its ratios to the engine's own settings. With the environment of ``make test-avx2`` it measures a processor without
AVX-512.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import Backbone, load_backbone
from pipeline.core.system import processor_count
from pipeline.engines.openvino import DEFAULT_BATCH, OpenVinoEngine
from pipeline.engines.openvino_quiet import ov

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Trial:
    """A batch size, and what differs from the engine's properties."""

    name: str
    batch: int = DEFAULT_BATCH
    properties: dict[str, Any] = field(default_factory=dict)


CORES = processor_count()
TRIALS = (
    Trial(f"the engine: batch {DEFAULT_BATCH}, a stream per core"),
    *(Trial(f"batch {batch}", batch) for batch in (1, 2, 8, 16)),
    Trial("one stream, batch 4", 4, {"NUM_STREAMS": 1}),
    Trial("one stream, batch 16", 16, {"NUM_STREAMS": 1}),
    Trial("two streams per core", properties={"NUM_STREAMS": 2 * CORES}),
    Trial(
        "two streams per core, a thread for each",
        properties={"NUM_STREAMS": 2 * CORES, "INFERENCE_NUM_THREADS": 2 * CORES},
    ),
    Trial("hint for latency", properties={"PERFORMANCE_HINT": "LATENCY"}),
    Trial("no pinning of threads", properties={"ENABLE_CPU_PINNING": False}),
    Trial("no hyper-threading", properties={"ENABLE_HYPER_THREADING": False}),
    Trial("denormals flushed to zero", properties={"CPU_DENORMALS_OPTIMIZATION": True}),
    Trial("hint for accuracy", properties={"EXECUTION_MODE_HINT": "ACCURACY"}),
)


def compiled(backbone: Backbone, trial: Trial, precision: str) -> Any:
    """Return the network of the engine, compiled with a trial's properties."""
    compile_model, taken = ov.Core.compile_model, {}

    def changed(core: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        taken["compiled"] = compile_model(core, model, device, {**config, **trial.properties})
        return taken["compiled"]

    ov.Core.compile_model = changed
    try:
        OpenVinoEngine(backbone, precision=precision, batch_size=trial.batch).close()
    finally:
        ov.Core.compile_model = compile_model
    return taken["compiled"]


def rate(network: Any, images: NDArray[np.uint8], seconds: float) -> float:
    """Return images/s with twice as many requests as streams."""
    queue: Any = ov.AsyncInferQueue(network, 2 * int(network.get_property("NUM_STREAMS")))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        queue.start_async([images], share_inputs=True)
        count += len(images)
    queue.wait_all()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone, arguments.weights)
    networks = []
    for trial in TRIALS:
        try:
            networks.append((trial, compiled(backbone, trial, arguments.precision)))
        except Exception as error:  # a property that this version or processor lacks
            print(f"{trial.name}: {str(error).splitlines()[0]}")
    batches = {
        trial.batch: np.random.default_rng(0).integers(0, 256, (trial.batch, *backbone.preprocess.shape), np.uint8)
        for trial in TRIALS
    }
    for trial, network in networks:
        rate(network, batches[trial.batch], 0.2)
    rates: dict[str, list[float]] = {trial.name: [] for trial, _ in networks}
    for _ in range(arguments.repeats):
        for trial, network in networks:
            rates[trial.name].append(rate(network, batches[trial.batch], arguments.seconds))
    own = rates[networks[0][0].name]
    print(f"{arguments.backbone}, {arguments.precision}, {CORES} processors\n")
    print("| trial | images/s | ratio |\n|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(value / first for value, first in zip(values, own, strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f}× |")


if __name__ == "__main__":
    main()
