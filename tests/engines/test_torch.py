"""The torch engine's parts that matter on GPUs, on the CPU: the same code with stand-ins where CUDA would be."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backbones import Backbone, load_backbone
from pipeline.core.devices import device_precisions, pick_devices
from pipeline.engines import open_engine
from pipeline.engines.cuda_graph import WARM_UP_PASSES, capture_graph
from pipeline.engines.multi_device import MultiEngine
from pipeline.engines.selfcheck import least_cosine
from pipeline.engines.torch import TorchEngine, _parts, default_batch
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("timm/test_efficientnet", "random")


@pytest.fixture(scope="module")
def images(backbone: Backbone) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (24, *backbone.preprocess.shape), dtype=np.uint8)


def engine_of(backbone: Backbone, batch_size: int = 4) -> TorchEngine:
    return TorchEngine(backbone, device=CPU, precision="float32", batch_size=batch_size)


@given(st.integers(1, 300), st.integers(1, 300))
def test_parts_cover_a_batch_in_passes_of_one_size(count: int, at_once: int) -> None:
    at_once = min(count, at_once)
    parts = _parts(count, at_once)
    covered = np.zeros(count, dtype=bool)
    for part in parts:
        assert len(range(count)[part]) == at_once
        covered[part] = True
    assert covered.all()
    assert len(parts) == -(-count // at_once)


def test_passes_of_any_size_give_the_same_rows(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    engine = engine_of(backbone, batch_size=7)
    whole = engine.run(images[:7])["penultimate"]
    for at_once in (1, 2, 3, 4, 5):
        engine._at_once = at_once
        assert least_cosine(engine.run(images[:7])["penultimate"], whole) >= 0.99999
    engine.close()


def test_two_devices_give_the_rows_of_one_in_the_same_order(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    one, two = engine_of(backbone), MultiEngine([engine_of(backbone), engine_of(backbone)])
    assert two.in_flight == 2 * one.in_flight
    assert len(two.replicas) == 2
    assert two.precisions == ("float32",)
    batches = [images[start : start + 4] for start in range(0, 24, 4)]
    slow = threading.Event()  # the first device finishes last
    launch = two.replicas[0]._launch  # type: ignore[attr-defined]
    two.replicas[0]._launch = lambda batch: slow.wait() and launch(batch)  # type: ignore[attr-defined]
    futures = [two.submit(batch) for batch in batches]
    wait(futures[1::2])
    assert not any(future.done() for future in futures[::2])
    slow.set()
    for batch, future in zip(batches, futures, strict=True):
        assert np.array_equal(future.result()["penultimate"], one.run(batch)["penultimate"])
    for each in (one, two):
        each.close()


def test_closing_calls_off_what_was_not_started(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    engine = engine_of(backbone)
    futures = [engine.submit(images[:4]) for _ in range(30)]
    engine.close()
    assert all(future.done() for future in futures)
    assert any(future.exception() is not None for future in futures if not future.cancelled())


class Streams:
    """Stands in for `torch.cuda`: notes who records, waits and synchronises, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.notes.append(f"on {stream.name}")
        yield

    def event(self, name: str) -> Any:
        notes = self.notes

        class Event:
            def __repr__(self) -> str:
                return name

            def record(self, stream: Stream) -> None:
                notes.append(f"{name} recorded on {stream.name}")

            def synchronize(self) -> None:
                notes.append(f"{name} awaited")

        return Event()


class Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_event(self, event: Any) -> None:
        self.notes.append(f"{self.name} waits for {event}")


def test_computing_waits_for_the_upload_and_collecting_for_the_computation(
    backbone: Backbone, images: NDArray[np.uint8]
) -> None:
    from dataclasses import replace

    engine, streams = engine_of(backbone), Streams()
    engine._streams = streams
    engine._uploading, engine._computing = Stream("copies", streams.notes), Stream("network", streams.notes)
    slots = [engine._slots.get() for _ in range(engine.in_flight)]
    engine._slots.put(replace(slots[0], uploaded=streams.event("uploaded"), computed=streams.event("computed")))
    engine.run(images[:4])
    engine.close()
    assert streams.notes == [
        "on copies",
        "uploaded recorded on copies",
        "on network",
        "network waits for uploaded",
        "computed recorded on network",
        "computed awaited",
    ]


def test_the_weights_are_there_before_anything_is_computed(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams other than the default one do not wait for what was started on it."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cpu, "synchronize", waited.append)
    engine_of(backbone).close()
    assert waited == [CPU]


class Graph:
    """Stands in for a CUDA graph: keeps the function recorded, and writes into the same outputs again."""

    def __init__(self) -> None:
        self.replay = lambda: None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    modes: list[str] = []

    @contextlib.contextmanager
    def graph(graph: Graph, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        modes.append(capture_error_mode)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return modes


class Idle:
    def synchronize(self) -> None:
        pass


def test_a_recording_is_made_once_after_warming_up(recorder: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def network(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(batch)
        return (batch.float().mean((1, 2)),)

    first, second = (torch.full((2, 4, 4, 3), value, dtype=torch.uint8) for value in (1, 2))
    replay = capture_graph(network, first, Idle())  # type: ignore[arg-type]
    assert recorder == ["thread_local"]
    assert len(seen) == WARM_UP_PASSES + 1
    assert seen[-1] is not first  # the recording has inputs of its own, into which every batch is copied
    replay(second)
    assert torch.equal(seen[-1], second)
    assert len(seen) == WARM_UP_PASSES + 1


def test_what_cannot_be_recorded_runs_as_it_is(recorder: list[str]) -> None:
    calls = 0

    def network(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls > WARM_UP_PASSES:
            raise error
        return (batch,)

    error: Exception = RuntimeError("operation not permitted when stream is capturing")
    assert capture_graph(network, torch.zeros(1, 2, 2, 3), Idle()) is network  # type: ignore[arg-type]
    calls, error = 0, torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        capture_graph(network, torch.zeros(1, 2, 2, 3), Idle())  # type: ignore[arg-type]


def test_an_error_of_the_device_is_one_line(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    engine = engine_of(backbone)

    def fail(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand much more")

    network, engine._network = engine._network, fail
    for _ in range(3):  # more often than there are slots: a failed batch gives its own back
        with pytest.raises(EngineError, match="PyTorch failed on cpu") as caught:
            engine.run(images[:1])
        assert "\n" not in str(caught.value)
    engine._network = network
    assert np.isfinite(engine.run(images[:1])["penultimate"]).all()
    engine.close()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("auto", ["cuda:0"]),
        ("cuda", ["cuda:0"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:all", ["cuda:0", "cuda:1"]),
        ("cuda:1, cuda:0", ["cuda:1", "cuda:0"]),
        ("cpu", ["cpu"]),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_devices_by_name(name: str, found: list[str]) -> None:
    assert [str(device) for device in pick_devices(name)] == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "no device cuda:2"),
        ("cuda:0,cuda:0", "expected distinct GPUs"),
        ("cuda,cpu", "expected distinct GPUs"),
        ("cuda:0,", "expected a device such as"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_devices_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        pick_devices(name)


def test_all_gpus_of_a_machine_without_any(backbone: Backbone) -> None:
    with pytest.raises(EngineError, match="there is no device cuda:all"):
        open_engine(backbone, device="cuda:all")


@pytest.mark.parametrize(
    ("capability", "found"),
    [
        ((9, 0), ("bfloat16", "float16", "float32")),
        ((7, 5), ("float16", "float32")),
        ((6, 1), ("float32",)),
    ],
)
def test_precisions_by_capability(
    capability: tuple[int, int], found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device_precisions(torch.device("cuda:0")) == found
    assert device_precisions(CPU) == ("float32",)


def test_batches_shrink_with_memory_and_grow_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    found = []
    for gigabytes in (0, 1, 8, 80):
        Properties.total_memory = gigabytes << 30
        found.append(default_batch(torch.device("cuda:0"), (224, 224, 3)))
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == 256
    assert default_batch(CPU, (224, 224, 3)) == 16
