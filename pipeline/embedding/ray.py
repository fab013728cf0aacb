"""A cluster, through Ray Data: an engine with its decode workers per actor, one writer on the driver.

Ray Data distributes rows to a pool of actors, waits while the writer is behind, and redistributes the rows of lost
actors and nodes, a few times. Rows return in any order and are written by number; rows that have returned are in the
cache. Those that have not returned in the end are out of reach: the run ends, and the next one tries them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.callbacks import ignore
from pipeline.core.items import HASH_BYTES, Reader, Status
from pipeline.core.optional import optional_part
from pipeline.decoding.image import GPU
from pipeline.decoding.worker import Outcome
from pipeline.embedding.choose import choose_engine, sample_rows
from pipeline.embedding.embed import STOP_CHECK_S, STOP_WITHIN_S, embed_through
from pipeline.embedding.executor import Executor
from pipeline.embedding.pool import pool_for
from pipeline.engines import open_engine
from pipeline.errors import EngineError, PipelineError, first_line
from pipeline.sources.listed import ListedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.decoding.image import DecodePolicy
    from pipeline.embedding.executor import EmbeddedRows
    from pipeline.embedding.settings import RunSettings
    from pipeline.engines import Embeddings
    from pipeline.sources import Source

CHUNK_IMAGES = 256
"""Least number of rows per chunk: a chunk is computed again when its actor is lost."""
CHUNK_BATCHES = 8
CONNECT_WITHIN_S = 10.0
CHECK_RETRIES = 3
"""Retries of the self-check when its node is lost."""
CHUNK_RETRIES = 3
"""Retries of a chunk whose actor or node is lost, in each round; Ray Data alone would repeat it without end."""
ACTOR_RESTARTS = 5
"""Of every actor, in a row, without any chunk that began."""
ROUNDS = 3
"""How often rows that did not return are given out: in chunks, in batches, and at last one by one if they are few."""
FEW_ROWS = 256
ALL_FAILED = 5
"""Chunks without a single one that succeeded: the fault is not theirs."""
SEGMENT_ROWS = 1 << 19
"""Rows given to Ray Data at a time: it holds all of them, with their locators, from the beginning."""
NO_NODE_SAY_S, NO_NODE_END_S = 60.0, 3600.0
IDLE_END_S = 120.0
"""After so long with rows to do and no processor in use, what has not returned is given out again."""
"""Seconds without a node that lends anything: until a line says so, and until the run ends."""
DATA_SETTINGS = {"enable_progress_bars": False, "max_errored_blocks": -1, "max_consecutive_actor_init_deaths": 3}
"""Of Ray Data: no bars, lost chunks do not end the run, and nodes may leave while actors start on them."""
LAYER = "layer:"
ERROR = "error"
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, which it otherwise warns of
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # errors are raised as exceptions
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives a stop must not start another cluster
}
"""Settings that Ray reads from the environment when it is imported."""
WAITS = ("wait for decode", "wait for forward")


class RayExecutor(Executor):
    """Computes on a Ray cluster; the files must be at the same paths on all of its nodes.

    An actor takes the processors of the smallest node (or one GPU, where the cluster has any, and its share of the
    processors). The choice of engine and precision is made once, on a node of the cluster.

    Parameters
    ----------
    address : str or None
        Of the cluster. None takes that of ``RAY_ADDRESS`` or of a cluster that runs on this machine, and starts one
        on this machine where there is none.
    actors : int
        How many at most; 0 for as many as the cluster has room for now.
    """

    def __init__(self, address: str | None = None, *, actors: int = 0) -> None:
        self._ray, self._address, self._actors = _import_ray(), address, actors
        self._quiet = contextlib.ExitStack()
        self._say: Callable[[str], None] = ignore
        self._pump: threading.Thread | None = None

    def open(
        self,
        sampled: Source,
        among: NDArray[np.int64],
        backbone: Backbone,
        decode: DecodePolicy,
        run: RunSettings,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Connect, and choose the engine on a node of the cluster; see `Executor.open`.

        Raises
        ------
        EngineError
            The cluster cannot be reached or has no processor, the images are to be decoded on the GPU, or as
            `Executor.open` says.
        """
        if decode.jpeg_decoder == GPU:
            raise EngineError("--decode gpu is for this machine's GPU, found it with --ray: leave one of them out")
        self.decode, self._say = decode, say
        self._started = _connect(self._ray, self._address)
        self._quiet.enter_context(_configured(self._ray.data))
        try:
            if run.precision == "mixed" and run.device == "auto":
                run = replace(run, device="cpu")  # which alone has it
            room = _actor_resources(self._ray, run.device)
            run = replace(run, workers=run.workers or room.cpus)
            sample = ListedSource.sample(sampled, sample_rows(among))
            say(f"cluster: up to {self._actors or room.actors} engines, {room}")
            chosen = self._choose(sample, backbone, decode, run, room, stop)
        except BaseException:
            self.close()
            raise
        self._setup = _Setup(sampled.patient_reader(), backbone, decode, replace(run, **chosen.settings), room.cpus)
        self._actor_resources, self._batch_size = room, chosen.settings["batch_size"]
        self.name, self.device, self.precision = chosen.name, chosen.device, chosen.settings["precision"]
        self.workers = run.workers * (self._actors or room.actors)
        for text in chosen.said:
            say(text)
        return chosen.self_check

    def embed(
        self, source: Source, rows: NDArray[np.int64], *, stop: threading.Event, seconds: defaultdict[str, float]
    ) -> Iterator[tuple[EmbeddedRows, Embeddings]]:
        """Yield chunks of rows as they return; see `Executor.embed`.

        Raises
        ------
        EngineError
            An actor could not start, nothing can be computed, or the cluster is gone.
        """
        for start in range(0, len(rows), SEGMENT_ROWS):
            yield from self._segment(source, rows[start : start + SEGMENT_ROWS], stop, seconds)

    def _segment(
        self, source: Source, rows: NDArray[np.int64], stop: threading.Event, seconds: defaultdict[str, float]
    ) -> Iterator[tuple[EmbeddedRows, Embeddings]]:
        """Yield rows as they return, in several rounds, and those that never did as out of reach."""
        chunk = self._batch_size * -(-max(CHUNK_IMAGES, CHUNK_BATCHES * self._batch_size) // self._batch_size)
        reason = "the process or the node that computed it was lost"
        for number in range(ROUNDS):
            few = number == ROUNDS - 1 and len(rows) <= FEW_ROWS
            at_once = chunk if not number else 1 if few else self._batch_size
            returned, failed = np.zeros(len(rows), np.bool_), 0
            for result in self._until_stopped(self._submit(source, rows, at_once), stop) if not stop.is_set() else ():
                if result[ERROR][0]:
                    reason, failed = str(result[ERROR][0]), failed + 1
                    if failed >= ALL_FAILED and not returned.any() and not number:
                        raise EngineError(
                            f"the first {failed} chunks of images failed ({reason}): check one node alone"
                        )
                    continue
                returned[np.searchsorted(rows, result["row"])] = True
                yield self._unpack(result, seconds)
            rows = rows[~returned]
            if stop.is_set() or not len(rows):
                return
            self._say(f"{len(rows)} images did not return from the cluster ({reason})")
        for start in range(0, len(rows), chunk):
            lost = rows[start : start + chunk]
            outcomes = [Outcome(n, Status.OUT_OF_REACH, reason, bytes(HASH_BYTES), 0, 0) for n in range(len(lost))]
            yield _Result(lost, outcomes), {}

    def _submit(self, source: Source, rows: NDArray[np.int64], at_once: int) -> Any:
        """Give rows to the actors; return the dataset of their results."""
        data = self._ray.data
        actors = self._actors or self._actor_resources.actors
        self._attempts = self._ray.remote(num_cpus=0)(_Attempts).remote(actors * (1 + ACTOR_RESTARTS))
        chunks = data.from_arrow(_tables(source, rows, at_once))
        return chunks.map_batches(
            _Embedder,
            batch_size=None,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            fn_constructor_args=(self._ray.put(self._setup), self._attempts),
            num_cpus=self._actor_resources.cpus,
            num_gpus=self._actor_resources.gpus,
        )

    def _unpack(
        self, result: dict[str, NDArray[Any]], seconds: defaultdict[str, float]
    ) -> tuple[EmbeddedRows, Embeddings]:
        seconds["read"] += float(result["read_s"].sum())
        seconds["decode"] += float(result["decode_s"].sum())
        for name in WAITS:
            seconds[name] += float(result[name].sum()) / (self._actors or self._actor_resources.actors)
        outputs = {name.removeprefix(LAYER): rows for name, rows in result.items() if name.startswith(LAYER)}
        return _Result(result["row"], _outcomes(result)), outputs

    def close(self) -> None:
        """Disconnect; shut the cluster down if it was started here."""
        if self._started:
            self._ray.shutdown()
        if self._pump is not None:  # a shutdown wakes it, and it says so
            self._pump.join(STOP_WITHIN_S)
        self._quiet.close()

    def _until_stopped(self, results: Any, stop: threading.Event) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield results; a thread waits for them, so that a stop is noticed meanwhile."""
        ready: queue.Queue[dict[str, NDArray[Any]] | BaseException | None] = queue.Queue(1)
        ended = threading.Event()

        def put(result: dict[str, NDArray[Any]] | BaseException | None) -> None:
            while not ended.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(result, timeout=STOP_CHECK_S)
                    return

        def pump() -> None:
            try:
                for result in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                    put(result)
                    if ended.is_set():
                        return
                put(None)
            except BaseException as error:
                put(error)

        self._pump = threading.Thread(target=pump, daemon=True, name="ray-results")
        self._pump.start()
        nodes = _NodeWatch(self._ray, self._say)
        try:
            while not stop.is_set():
                try:
                    result = ready.get(timeout=STOP_CHECK_S)
                except queue.Empty:
                    if nodes.all_idle():
                        return
                    continue
                nodes.seen()
                if isinstance(result, self._ray.exceptions.RayError):
                    raise _as_ours(result) from None
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    return
                yield result
        finally:
            ended.set()

    def _choose(
        self,
        sample: Source,
        backbone: Backbone,
        decode: DecodePolicy,
        run: RunSettings,
        room: ActorResources,
        stop: threading.Event,
    ) -> _Chosen:
        ray = self._ray
        task = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_retries=CHECK_RETRIES)(_choose)
        chosen = task.remote(sample, backbone, decode, run, room.cpus)
        while not ray.wait([chosen], timeout=STOP_CHECK_S)[0]:
            if stop.is_set():  # nothing will be computed
                return _Chosen("none", "none", {"precision": "float32", "batch_size": 1}, {}, [])
        try:
            found: _Chosen = ray.get(chosen)
        except ray.exceptions.RayError as error:
            raise _as_ours(error) from None
        return found


@dataclass(frozen=True, slots=True)
class ActorResources:
    """The resources of an actor, and how many actors fit."""

    cpus: int
    gpus: int
    actors: int

    def __str__(self) -> str:
        return f"each on {self.cpus} processors" + (" and a GPU" if self.gpus else "")


@dataclass(frozen=True, slots=True)
class _Setup:
    """The settings of an actor, sent once; engine, device, precision and batch size are decided."""

    reader: Reader
    backbone: Backbone
    decode: DecodePolicy
    run: RunSettings
    cpus: int


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The result of `_choose` on a node of the cluster."""

    name: str
    device: str
    settings: dict[str, Any]
    self_check: dict[str, Any]
    said: list[str]


@dataclass(slots=True)
class _Result:
    rows: NDArray[np.int64]
    outcomes: list[Outcome]


# --- on the cluster ------------------------------------------------------------------------------------------


def _choose(sample: Source, backbone: Backbone, decode: DecodePolicy, run: RunSettings, cpus: int) -> _Chosen:
    """Run the self-check where the actors will run."""
    _take_processors(cpus)
    said: list[str] = []
    engine, self_check = choose_engine(sample, backbone, decode, run, say=said.append)
    try:
        device = "cuda" if engine.device.startswith("cuda") else "cpu"
        settings = {
            "engine": engine.name,
            "device": device,
            "precision": engine.precision,
            "batch_size": engine.batch_size,
        }
        return _Chosen(engine.name, engine.device, settings, self_check, said)
    finally:
        engine.close()


class _Attempts:
    """An actor that counts, where it outlives them, how often actors started and chunks began.

    Parameters
    ----------
    most_starts : int
        How many in a row are too many.
    """

    def __init__(self, most_starts: int) -> None:
        self._most_starts, self._starts, self._begun = most_starts, 0, Counter[int]()

    def start(self) -> bool:
        """Count the start of an actor; return whether it may go on."""
        self._starts += 1
        return self._starts <= self._most_starts

    def begin(self, row: int) -> int:
        """Count the chunk that begins with a row; return how often it has begun."""
        self._starts = 0
        self._begun[row] += 1
        return self._begun[row]


class _Embedder:
    """An actor: an engine and its decode workers, which serve successive chunks."""

    def __init__(self, setup: Any, attempts: Any) -> None:
        import ray

        self._get, self._attempts = ray.get, attempts
        if not ray.get(attempts.start.remote()):
            raise EngineError(
                "the processes of the cluster end while they start: check their memory, or one node alone"
            )
        given: _Setup = ray.get(setup) if isinstance(setup, ray.ObjectRef) else setup
        _take_processors(given.cpus)
        run, self._layers = given.run, given.backbone.layers
        self._engine = open_engine(
            given.backbone,
            engine=run.engine,
            device=run.device,
            precision=run.precision,
            batch_size=run.batch_size,
        )
        self._pool = pool_for(self._engine, given.reader, given.backbone, given.decode, run)

    def __call__(self, chunk: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            begun = self._get(self._attempts.begin.remote(int(chunk["row"][0])))
            if begun > 1 + CHUNK_RETRIES:
                return self._without(chunk["row"], f"the process that computed it was lost {begun - 1} times")
            return self._embed(chunk)
        except Exception as error:  # of any kind: the chunk is given out again, and other chunks go on
            return self._without(chunk["row"], first_line(error))

    def _without(self, rows: NDArray[np.int64], reason: str) -> dict[str, NDArray[Any]]:
        """Return the result of a chunk that failed, with the columns of one that did not."""
        count = len(rows)
        return {
            "row": rows,
            ERROR: np.full(count, reason or "unknown"),
            "status": np.zeros(count, np.uint8),
            "reason": np.zeros(count, np.str_),
            "content_hash": np.zeros((count, HASH_BYTES), np.uint8),
            **{name: np.zeros(count) for name in ("read_s", "decode_s", *WAITS)},
            **{LAYER + layer.name: np.zeros((count, layer.width), np.float32) for layer in self._layers},
        }

    def _embed(self, chunk: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = chunk["row"]
        locators = dict(zip(rows.tolist(), map(pickle.loads, chunk["locator"]), strict=True))
        seconds: defaultdict[str, float] = defaultdict(float)
        outcomes: list[Outcome] = []
        outputs: defaultdict[str, list[NDArray[Any]]] = defaultdict(list)
        for batch, embeddings in embed_through(self._pool, self._engine, rows, locators.__getitem__, seconds=seconds):
            outcomes += batch.outcomes
            for name, values in embeddings.items():
                outputs[name].append(values[: len(batch.rows)])
        hashes = b"".join(outcome.content_hash for outcome in outcomes)
        return {
            "row": rows,
            ERROR: np.zeros(len(rows), np.str_),
            "status": np.array([outcome.status for outcome in outcomes], dtype=np.uint8),
            "reason": np.array([outcome.reason for outcome in outcomes], dtype=np.str_),
            "content_hash": np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES),
            "read_s": np.array([outcome.read_s for outcome in outcomes]),
            "decode_s": np.array([outcome.decode_s for outcome in outcomes]),
            **{name: np.full(len(rows), seconds[name] / len(rows)) for name in WAITS},
            **{LAYER + name: np.concatenate(parts) for name, parts in outputs.items()},
        }


def _take_processors(cpus: int) -> None:
    """Use only the processors that Ray assigned: other actors may be on the same machine."""
    os.environ["PYTHON_CPU_COUNT"] = str(cpus)


# --- on the driver -------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    """Return Ray, configured to print nothing.

    Raises
    ------
    EngineError
        It is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with optional_part("--ray needs Ray", "pip install 'embedding-pipeline[ray]'", EngineError):
        import ray
        import ray.data
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """Connect to a cluster, or start one on this machine; return whether one was started."""
    if ray.is_initialized():
        return False
    _check_address(address or os.environ.get("RAY_ADDRESS", ""))
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"no Ray cluster at {address or 'this machine'} ({first_line(error)}): check 'ray status'"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray replaces them by its own
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
    return True


def _check_address(address: str) -> None:
    """Check the address at once, where Ray would retry for minutes.

    Raises
    ------
    EngineError
        Nothing answers there, or it is the address of a Ray client, which has no Ray Data.
    """
    if address.startswith("ray://"):
        raise EngineError(
            f"expected the address HOST:PORT of the cluster itself, found {address}: run the command on one of its "
            "nodes, for instance with 'ray job submit'"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return  # "auto" or "local", which Ray looks up
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster at {address} ({first_line(error)}): check the address, or 'ray status' on its head node"
        ) from None


class _NodeWatch:
    """Looks for nodes while nothing returns: they may leave and come back, but not be waited for without end."""

    def __init__(self, ray: Any, say: Callable[[str], None]) -> None:
        self._ray, self._say, self._said = ray, say, False
        self.seen()

    def seen(self) -> None:
        """Note that a node computes."""
        self._since = self._asked = self._idle_since = time.monotonic()

    def all_idle(self) -> bool:
        """Look, now and then, whether a node lends anything; return whether all of it is idle for `IDLE_END_S`.

        Ray Data may start no actor on a node that comes after all others have gone, and would wait for ever.

        Raises
        ------
        EngineError
            None did for `NO_NODE_END_S`.
        """
        now = time.monotonic()
        if now - self._asked < NO_NODE_SAY_S / 4:
            return False
        self._asked = now
        lent = sum(node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"])
        if lent:
            self._since = now
            if self._ray.available_resources().get("CPU", 0) < lent:
                self._idle_since = now
            return now - self._idle_since > IDLE_END_S
        self._idle_since = now
        if now - self._since > NO_NODE_END_S:
            raise EngineError(
                f"no node of the cluster has lent a processor for {NO_NODE_END_S / 60:.0f} minutes: finished rows are "
                "kept; start nodes, then run the same command again"
            )
        if now - self._since > NO_NODE_SAY_S and not self._said:
            self._said = True
            self._say("no node of the cluster lends a processor now: waiting for one")
        return False


def _actor_resources(ray: Any, device: str) -> ActorResources:
    """Return the resources of an actor on this cluster, and how many fit.

    Raises
    ------
    EngineError
        No node has a processor, or the requested GPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    if sum(gpus) and device != "cpu":
        return ActorResources(max(1, min(c // g for c, g in zip(cpus, gpus, strict=True) if g)), 1, sum(gpus))
    if device.startswith("cuda"):
        raise EngineError(f"there is no GPU on the {len(nodes)} nodes of the cluster: use --device cpu")
    if not any(cpus):
        raise EngineError("no node of the cluster has a processor to lend: start nodes with --num-cpus above 0")
    each = min(count for count in cpus if count)
    return ActorResources(each, 0, sum(count // each for count in cpus))


def _tables(source: Source, rows: NDArray[np.int64], at_once: int) -> list[Any]:
    """Return rows and locators as Arrow tables, one per call of an actor."""
    import pyarrow as pa

    def table(part: Sequence[int]) -> Any:
        locators = [pickle.dumps(source.locator(row)) for row in part]
        return pa.table({"row": pa.array(part, pa.int64()), "locator": pa.array(locators, pa.binary())})

    return [table(rows[start : start + at_once].tolist()) for start in range(0, len(rows), at_once)]


def _outcomes(result: dict[str, NDArray[Any]]) -> list[Outcome]:
    columns = (result["status"], result["reason"], result["content_hash"], result["read_s"], result["decode_s"])
    return [
        Outcome(position, int(status), str(reason), bytes(digest), float(read_s), float(decode_s))
        for position, (status, reason, digest, read_s, decode_s) in enumerate(zip(*columns, strict=True))
    ]


def _as_ours(error: Exception) -> PipelineError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, PipelineError):
        return cause
    lines = [line for line in str(cause or error).strip().splitlines() if line.strip()]
    return EngineError(
        f"the cluster gave up ({first_line(Exception(lines[-1] if lines else type(error).__name__))}): finished rows "
        "are kept; check the cluster with 'ray status', then run the same command again"
    )


@contextlib.contextmanager
def _configured(data: Any) -> Iterator[None]:
    """Silence Ray Data's messages and bars, in favour of those of this project; let it go on without a lost chunk."""
    context, logger = data.DataContext.get_current(), logging.getLogger("ray.data")
    level, before = logger.level, {name: getattr(context, name) for name in DATA_SETTINGS}
    for name, value in DATA_SETTINGS.items():
        setattr(context, name, value)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
