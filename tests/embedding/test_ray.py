"""Ray on one machine: two logical nodes, each lending one processor; workers and nodes are taken away in the middle."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline import open_cache
from pipeline.cache.verify import verify
from pipeline.core.items import Status
from pipeline.embedding import ray as ray_module
from pipeline.embedding.ray import RayExecutor
from pipeline.embedding.settings import RunSettings
from pipeline.errors import EngineError
from pipeline.sources import open_source
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = ExtractSettings(
    backbone="timm/test_vit",
    weights="random",
    run=RunSettings(engine="torch", device="cpu", precision="float32", batch_size=4, workers=1),
)
COPIES = 30
BROKEN = "copy03/bee/broken.jpg"


def test_without_ray_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'embedding-pipeline\[ray\]'") as caught:
        RayExecutor()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused"), ("ray://head:10001", "ray job submit")],
)
def test_an_address_where_no_cluster_is_fails_at_once(
    address: str, message: str, image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.raises(EngineError, match=message):
        extract(str(image_folder), tmp_path / "c.h5", SETTINGS, executor=RayExecutor(address))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def archive(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    for copy in range(COPIES):
        shutil.copytree(image_folder, root / f"copy{copy:02d}")
    (root / BROKEN).write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    return root


@pytest.fixture(scope="module")
def plain(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "c.h5"
    extract(str(archive), path, SETTINGS)
    return path


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a cluster of a head that lends nothing and two nodes, and these two."""
    for name, value in ray_module.QUIET.items():
        monkeypatch.setenv(name, value)
    ray: Any = pytest.importorskip("ray", reason="needs the extra 'ray'")
    Cluster: Any = pytest.importorskip("ray.cluster_utils").Cluster
    monkeypatch.setattr(ray_module, "CHUNK_IMAGES", 16)
    monkeypatch.setattr(ray_module, "CHUNK_BATCHES", 1)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        both = [made.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
        ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made, both
    finally:
        ray.shutdown()
        made.shutdown()


def run_with(archive: Path, path: Path, event: Any) -> Any:
    """Extract on the cluster; call ``event`` once, when the first rows are there."""
    came: list[int] = []

    def progress(ready: int, failed: int, total: int) -> None:
        if ready and not came:
            came.append(ready)
            event()

    summary = extract(str(archive), path, SETTINGS, executor=RayExecutor(), progress=progress)
    assert came
    assert came[0] < summary.total / 2, "it happened too late to tell anything"
    return summary


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
def test_two_nodes_make_the_file_that_one_run_makes(
    archive: Path, plain: Path, tmp_path: Path, nodes: tuple[Any, list[Any]]
) -> None:
    said: list[str] = []
    path, stop = tmp_path / "c.h5", threading.Event()
    executor = RayExecutor()

    def stop_soon(ready: int, failed: int, total: int) -> None:
        if ready >= 100:
            stop.set()

    first = extract(str(archive), path, SETTINGS, executor=executor, stop=stop, progress=stop_soon, say=said.append)
    assert first.stopped
    assert 100 <= first.computed < first.total - 100
    assert said == ["cluster: up to 2 engines, each on 1 processors"]
    second = extract(str(archive), path, SETTINGS, executor=RayExecutor())
    assert second.computed == second.total - first.computed - 1
    assert path.read_bytes() == plain.read_bytes()
    assert open_cache(path).reasons() == open_cache(plain).reasons()
    assert verify(path).failed == 1
    assert second.bottleneck is not None


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(
    archive: Path, plain: Path, tmp_path: Path, nodes: tuple[Any, list[Any]]
) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.extend(_actors()[:1])
        os.kill(killed[0], signal.SIGKILL)

    run_with(archive, tmp_path / "c.h5", kill)
    assert killed
    assert (tmp_path / "c.h5").read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_a_node_that_goes_costs_nothing(
    archive: Path, plain: Path, tmp_path: Path, nodes: tuple[Any, list[Any]]
) -> None:
    made, both = nodes
    run_with(archive, tmp_path / "c.h5", lambda: made.remove_node(both[0], allow_graceful=False))
    assert both[0] not in made.worker_nodes
    assert (tmp_path / "c.h5").read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_paths_that_a_node_does_not_see_are_rows_that_say_so(
    archive: Path, tmp_path: Path, nodes: tuple[Any, list[Any]]
) -> None:
    source = open_source(str(archive / "copy00"))
    (tmp_path / "here").mkdir()
    source._root = os.fsencode(tmp_path / "here")  # type: ignore[attr-defined]
    extract(source, tmp_path / "c.h5", SETTINGS, executor=RayExecutor())
    cache = open_cache(tmp_path / "c.h5")
    assert (cache.status == Status.UNREADABLE).all()
    assert cache.reasons()[0] == "No such file or directory"
    assert not np.any(cache.embeddings)


def number(text: str) -> int:
    """Fail, or end the process, where a locator is unpickled: on the cluster."""
    if text == "dies":
        os._exit(1)
    raise ValueError(f"a locator that {text}")


class Poison:
    """A locator that does not arrive."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return number, (self._what,)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "reason"), [("fails", "a locator that fails"), ("dies", "was lost 4 times")])
def test_a_chunk_that_always_fails_ends_by_itself_and_is_named(
    archive: Path,
    plain: Path,
    tmp_path: Path,
    nodes: tuple[Any, list[Any]],
    what: str,
    reason: str,
) -> None:
    source, bad, path, said = open_source(str(archive)), (40, 333), tmp_path / "c.h5", list[str]()
    right = source.locator
    source.locator = lambda i: Poison(what) if i in bad else right(i)  # type: ignore[method-assign]
    summary = extract(source, path, SETTINGS, executor=RayExecutor(), say=said.append)
    cache = open_cache(path)
    assert np.flatnonzero(cache.status == Status.OUT_OF_REACH).tolist() == list(bad)
    assert reason in cache.reasons()[bad[0]]
    assert not np.any(cache.status == Status.TODO)
    assert summary.failures["out_of_reach"] == 2
    assert any("images did not return from the cluster" in line for line in said)
    again = extract(str(archive), path, SETTINGS, executor=RayExecutor())
    assert again.computed == len(bad)
    assert path.read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_a_node_that_leaves_and_returns_costs_nothing(
    archive: Path, plain: Path, tmp_path: Path, nodes: tuple[Any, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes leave, so that for a while nothing can be computed."""
    monkeypatch.setattr(ray_module, "NO_NODE_SAY_S", 2.0)
    monkeypatch.setattr(ray_module, "IDLE_END_S", 20.0)
    made, both = nodes
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "no node" in text:
            made.add_node(num_cpus=1, include_dashboard=False)

    def leave(ready: int, failed: int, total: int) -> None:
        if ready:
            for node in list(made.worker_nodes):
                if node in both:
                    made.remove_node(node, allow_graceful=False)

    extract(str(archive), tmp_path / "c.h5", SETTINGS, executor=RayExecutor(), say=say, progress=leave)
    assert "no node of the cluster lends a processor now: waiting for one" in said
    assert (tmp_path / "c.h5").read_bytes() == plain.read_bytes()


def test_chunks_and_starts_without_a_chunk_are_counted() -> None:
    attempts = ray_module._Attempts(2)
    assert [attempts.start() for _ in range(3)] == [True, True, False]
    assert [attempts.begin(8), attempts.begin(9), attempts.begin(8)] == [1, 1, 2]
    assert attempts.start()


class OtherRay:
    """A cluster that says what a test wants."""

    def __init__(self) -> None:
        self.lent: tuple[dict[str, Any], ...] = (
            {"Alive": True, "Resources": {}}, {"Alive": False, "Resources": {"CPU": 4}},
        )  # fmt: skip
        self.idle = 0.0

    def nodes(self) -> Any:
        return self.lent

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.idle} if self.idle else {}


def test_without_a_node_the_run_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said, ray = [0.0], list[str](), OtherRay()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = ray_module._NodeWatch(ray, said.append)
    for minute in range(60):
        now[0] = 60.0 * minute
        assert not watch.all_idle()
    assert len(said) == 1
    now[0] = 3700.0
    with pytest.raises(EngineError, match=r"no node of the cluster has lent a processor for 60 minutes.*rows are kept"):
        watch.all_idle()
    ray.lent = ({"Alive": True, "Resources": {"CPU": 4}},)
    assert not watch.all_idle()


def test_a_cluster_that_computes_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ray Data starts no actor on a node that came back."""
    now, ray = [0.0], OtherRay()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ray.lent = ({"Alive": True, "Resources": {"CPU": 4}},)
    watch = ray_module._NodeWatch(ray, print)

    def idle_at(seconds: float, processors: float) -> bool:
        now[0], ray.idle = seconds, processors
        return watch.all_idle()

    assert not idle_at(100, 4)
    assert not idle_at(200, 3)  # an actor is there
    assert not idle_at(310, 4)
    assert idle_at(400, 4)


def _actors() -> list[int]:
    """Return the processes of this test's actors, which Ray names."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if name.startswith(b"ray::") and b"_Embedder" in name:
            actors.append(int(folder.name))
    return [actor for actor in actors if _descends(actor, parents)]


def _descends(process: int, parents: dict[int, int]) -> bool:
    while process in parents and process != os.getpid():
        process = parents[process]
    return process == os.getpid()
