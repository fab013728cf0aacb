"""Reading and decoding beside the forward pass: worker processes fill a ring of batches in shared memory.

The ring bounds the memory for any number of images. Batches come out in order. A worker that dies or hangs is
replaced. The worker status, a line of shared memory per worker, gives the image that it was decoding.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any

from pipeline.core.items import HASH_BYTES, Status
from pipeline.core.system import child_environment, child_signals_held, package_stamp
from pipeline.decoding.read_ahead import InFlight
from pipeline.decoding.worker import (
    IDLE,
    NO_ROW,
    READING,
    ROW,
    SINCE,
    STAMP,
    TASK_IMAGES,
    Outcome,
    Setup,
    Task,
    shared_bytes,
    views,
)
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.core.items import Reader
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.preprocess import Preprocess

TASKS_PER_WORKER = 2
"""While reads are fast; see `pipeline.decoding.read_ahead.InFlight`."""
RING_BYTES, RING_IMAGES = 256 << 20, 1024
"""What slow reads may make of the ring."""
CRASHES_TO_BLAME = 2
"""Deaths of a worker after which its image fails: one death may come from outside."""
KILLS_TO_BLAME = 3
"""The same for SIGKILL and SIGTERM, which no decoder sends itself."""
MAX_DEATHS_WITHOUT_PROGRESS = 20
"""Consecutive deaths of workers without progress after which the cause is the machine, not an image."""
CHECK_EVERY_S = 0.25
# Not ``-m``: its classes would be those of ``__main__``, and could not be sent back.
WORKER = "import sys; from pipeline.decoding.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one image.

    Attributes
    ----------
    seconds : float
        For reading and decoding, once its turn comes; prefetching it does not count.
    memory : int
        Bytes, per worker.
    """

    seconds: float = 60.0
    memory: int = 3 << 30


@dataclass(slots=True)
class Batch:
    """Prepared images of consecutive work.

    Attributes
    ----------
    rows : (n,) int64
        Their rows; n is the batch size but for the last one.
    images : (B, H, W, 3) uint8
        Shared memory, valid until `release`; positions from n on, and those that failed, are undefined.
    encoded : (B, E) uint8
        The same for JPEGs that were left to the GPU, as many bytes of each as its outcome says.
    outcomes : list of Outcome
        Of the n images, in order.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    encoded: NDArray[np.uint8]
    outcomes: list[Outcome]
    release: Callable[[], None]


@dataclass(slots=True)
class _Filling:
    number: int
    slot: int
    rows: NDArray[np.int64]
    outcomes: dict[int, Outcome] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)
    ready: bool = False


class DecodePool:
    """Worker processes that read and decode images into batches.

    Parameters
    ----------
    reader : Reader
        Locator → bytes; pickled to the workers.
    policy : DecodePolicy
    preprocess : Preprocess
    batch_size : int
        B.
    workers : int
        Processes.
    slots : int
        Batches in the ring: what bounds memory and read-ahead. While reads are slow there are more, up to
        `RING_IMAGES` images of `RING_BYTES`.
    limits : Limits
        Per image.

    Attributes
    ----------
    replaced : int
        Workers that died or hung, so far.
    notes : dict of str to None
        What the workers had to say about themselves, in a line each.
    """

    def __init__(
        self,
        reader: Reader,
        policy: DecodePolicy,
        preprocess: Preprocess,
        *,
        batch_size: int,
        workers: int,
        slots: int = 4,
        limits: Limits = Limits(),
    ) -> None:
        self._slots, self._open = slots, slots
        self._ahead = InFlight(workers * TASKS_PER_WORKER * TASK_IMAGES, RING_IMAGES)
        slots = max(slots, min(RING_IMAGES, RING_BYTES // math.prod(preprocess.shape)) // batch_size)
        self._shape = (slots, batch_size, *preprocess.shape)
        self._setup = (reader, policy, preprocess, self._shape, workers)
        self._limits = limits
        self._memory_fd = _shared_memory_file(shared_bytes(self._shape, workers, policy))
        self._memory = mmap.mmap(self._memory_fd, 0)
        self._worker_status, self._images, self._encoded = views(self._memory, self._shape, workers, policy)
        for number in range(workers):
            self._clear_line(number)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self._open):
            self._free.put(slot)
        self._spare = list(range(self._open, slots))
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_out, False)
        self._ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._workers: dict[int, _Worker] = {}
        self.replaced = 0
        self.notes: dict[str, None] = {}  # a set that keeps the order
        self._deaths_without_progress = 0
        for number in range(workers):
            self._start(number)

    def batches(
        self, rows: NDArray[np.int64], locator: Callable[[int], Any], stop: threading.Event | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of ``rows``, in order; release each when the engine has finished with it.

        Parameters
        ----------
        rows : (n,) int64
            Which items.
        locator : callable
            Row → what the reader takes.
        stop : threading.Event, optional
            When set, no more batches come, even if one is being waited for.

        Raises
        ------
        PipelineError
            The workers do not start, or die one after the other on all images.
        """
        self._thread = threading.Thread(
            target=self._pump_guarded, args=(rows, locator), daemon=True, name="decode-pool"
        )
        self._thread.start()
        while stop is None or not stop.is_set():
            try:
                batch = self._ready.get(timeout=None if stop is None else CHECK_EVERY_S)
            except queue.Empty:
                continue
            if isinstance(batch, BaseException):
                raise batch
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers at once."""
        self._stopped = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        for worker in self._workers.values():
            _end(worker)
        self._workers.clear()
        for fd in (self._memory_fd, self._wake_in, self._wake_out):
            if fd >= 0:
                os.close(fd)
        self._memory_fd = self._wake_in = self._wake_out = -1

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- the pump: one thread that talks to all workers ----

    def _pump_guarded(self, rows: NDArray[np.int64], locator: Callable[[int], Any]) -> None:
        try:
            self._pump(rows, locator)
        except BaseException as error:  # passed to the consumer, which raises it
            self._ready.put(error)

    def _pump(self, rows: NDArray[np.int64], locator: Callable[[int], Any]) -> None:
        size = self._shape[1]
        numbers = itertools.count()
        starts = iter(range(0, len(rows), size))
        filling: dict[int, _Filling] = {}
        pending: deque[Task] = deque()
        crashes: dict[int, int] = {}
        emitted, total = 0, -(-len(rows) // size)
        self._ahead.restart()
        while emitted < total and not self._stopped:
            self._resize_ring()
            self._plan(rows, locator, starts, numbers, filling, pending)
            for worker in self._workers.values():
                while pending and len(worker.tasks) * TASK_IMAGES * len(self._workers) < self._ahead.images:
                    self._send(worker, pending.popleft())
            by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers.values()}
            for ready in wait([*by_connection, self._wake_in], timeout=CHECK_EVERY_S):
                if ready == self._wake_in:
                    os.read(self._wake_in, 4096)
                    continue
                worker = by_connection[ready]
                try:
                    outcomes = worker.connection.recv()
                except (EOFError, OSError):
                    self._replace_dead_worker(worker, filling, pending, crashes)
                    continue
                if isinstance(outcomes, int):
                    _check_stamp(outcomes)
                    worker.ready = True
                elif isinstance(outcomes, str):
                    self.notes[outcomes] = None
                else:
                    filling[worker.tasks.popleft().slot].outcomes.update((o.position, o) for o in outcomes)
                    self._ahead.done([outcome.fetch_s for outcome in outcomes])
                    self._deaths_without_progress = 0
            self._end_hung_workers(filling, pending)
            emitted += self._emit(filling, emitted)
        self._ready.put(None)

    def _resize_ring(self) -> None:
        """Use as many slots as hold the images that are to be in flight; those that are not used take no memory."""
        more = -(-(self._ahead.images - self._ahead.least) // self._shape[1])
        wanted = min(self._slots + more, self._shape[0])
        while self._open < wanted:
            self._free.put(self._spare.pop())
            self._open += 1
        while self._open > wanted and not self._free.empty():
            self._spare.append(self._free.get())
            self._open -= 1

    def _plan(
        self,
        rows: NDArray[np.int64],
        locator: Callable[[int], Any],
        starts: Iterator[int],
        numbers: Iterator[int],
        filling: dict[int, _Filling],
        pending: deque[Task],
    ) -> None:
        """Give every free slot a batch, cut into tasks."""
        while not self._free.empty() and (start := next(starts, None)) is not None:
            slot = self._free.get()
            batch = rows[start : start + self._shape[1]]
            filling[slot] = _Filling(next(numbers), slot, batch)
            items = [(position, row, locator(row)) for position, row in enumerate(batch.tolist())]
            pending.extend(
                Task(slot, tuple(items[first : first + TASK_IMAGES])) for first in range(0, len(items), TASK_IMAGES)
            )

    def _emit(self, filling: dict[int, _Filling], number: int) -> int:
        """Pass on complete batches in order; return how many."""
        count = 0
        while True:
            turn = next((f for f in filling.values() if f.number == number + count), None)
            if turn is None or len(turn.outcomes) < len(turn.rows):
                return count
            del filling[turn.slot]
            outcomes = [turn.outcomes[position] for position in range(len(turn.rows))]
            images, encoded = self._images[turn.slot], self._encoded[turn.slot]
            self._ready.put(Batch(turn.rows, images, encoded, outcomes, self._releaser(turn.slot)))
            count += 1

    def _releaser(self, slot: int) -> Callable[[], None]:
        def release() -> None:
            self._free.put(slot)
            self._wake()

        return release

    def _wake(self) -> None:
        try:
            os.write(self._wake_out, b"!")
        except (BlockingIOError, OSError):
            return  # full, so it will wake anyway; or closed

    # ---- workers ----

    def _clear_line(self, number: int) -> None:
        self._worker_status[number] = NO_ROW
        self._worker_status[number, SINCE] = IDLE

    def _start(self, number: int) -> None:
        _check_stamp(package_stamp())
        ours, theirs = Pipe()
        with child_signals_held():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER, str(theirs.fileno()), str(self._memory_fd)],
                pass_fds=(theirs.fileno(), self._memory_fd),
                stdin=subprocess.DEVNULL,
                env={**child_environment(), "OPENBLAS_NUM_THREADS": "1"},
            )
        theirs.close()
        reader, policy, preprocess, images, workers = self._setup
        worker = self._workers[number] = _Worker(number, process, ours)
        try:
            ours.send(
                Setup(
                    reader,
                    policy,
                    preprocess,
                    images,
                    workers,
                    number,
                    self._limits.memory,
                    self._limits.seconds,
                )
            )
        except OSError:
            worker.ready = False  # it died at once: the pump notices the closed connection

    def _send(self, worker: _Worker, task: Task) -> None:
        worker.tasks.append(task)
        try:
            worker.connection.send(task)
        except OSError:
            return  # it died: the pump notices the closed connection and reassigns the task

    def _replace_dead_worker(
        self, worker: _Worker, filling: dict[int, _Filling], pending: deque[Task], crashes: dict[int, int]
    ) -> None:
        """Replace a dead worker and record which image it was decoding."""
        _end(worker)
        if not worker.ready and worker.process.returncode >= 0 and package_stamp() == STAMP:
            raise PipelineError(
                f"expected decode workers to start, but one ended with exit code {worker.process.returncode}: its "
                "message is above: check that the installation is complete"
            )
        line = self._worker_status[worker.number]
        in_progress = {int(row) for row in (line[ROW], *line[READING])} - {NO_ROW}
        how, strikes = _manner_of_death(worker.process.returncode)
        outcomes: dict[int, Outcome | None] = dict.fromkeys(in_progress)
        if len(in_progress) == 1:  # with several candidates the cause is unknown: retry each image alone
            (row,) = in_progress
            crashes[row] = crashes.get(row, 0) + 1
            if crashes[row] >= strikes:
                outcomes[row] = _failed(Status.DECODER_CRASHED, how)
        self._deaths_without_progress = 0 if any(outcomes.values()) else self._deaths_without_progress + 1
        if self._deaths_without_progress >= MAX_DEATHS_WITHOUT_PROGRESS:
            raise PipelineError(
                f"expected decode workers to run, but {self._deaths_without_progress} ended one after the other "
                f"with no image done ({how}): check the memory of the machine, or use fewer --workers; "
                "everything before is committed"
            )
        self._replace(worker, outcomes, filling, pending)

    def _end_hung_workers(self, filling: dict[int, _Filling], pending: deque[Task]) -> None:
        now = time.monotonic_ns()
        for worker in list(self._workers.values()):
            since = int(self._worker_status[worker.number, SINCE])
            row = int(self._worker_status[worker.number, ROW])
            if since == IDLE or (now - since) < self._limits.seconds * 1e9:
                continue
            if int(self._worker_status[worker.number, SINCE]) != since:
                continue  # it proceeded between the two reads: the row is not the one that exceeded the limit
            _end(worker)
            reason = f"took longer than {self._limits.seconds:g} s"
            self._replace(worker, {row: _failed(Status.TIMED_OUT, reason)}, filling, pending)

    def _replace(
        self,
        worker: _Worker,
        in_progress: dict[int, Outcome | None],
        filling: dict[int, _Filling],
        pending: deque[Task],
    ) -> None:
        """Start a new worker; its predecessor's tasks return to the queue, each row in progress alone or as failed.

        ``in_progress`` are the rows that it was decoding or prefetching, with the outcome of those that fail.
        """
        for task in worker.tasks:
            requeue = []
            for item in task.items:
                position, row, _ = item
                if row not in in_progress:
                    requeue.append(item)
                elif (outcome := in_progress[row]) is not None:
                    filling[task.slot].outcomes[position] = replace(outcome, position=position)
                else:  # nothing is prefetched beside it: a second death is then due to this image
                    pending.append(Task(task.slot, (item,), alone=True))
            if requeue:
                pending.append(Task(task.slot, tuple(requeue)))
        self.replaced += 1
        self._clear_line(worker.number)
        self._start(worker.number)


def _check_stamp(stamp: int) -> None:
    """Refuse decode workers of another version, whose errors would be written down as those of images."""
    if stamp != STAMP:
        raise PipelineError(
            "the files of this package were replaced while it ran, and new decode workers would be of another "
            "version: run the same command again; everything before is committed"
        )


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()


def _failed(status: Status, reason: str) -> Outcome:
    return Outcome(-1, status, reason, bytes(HASH_BYTES), 0.0, 0.0)


def _manner_of_death(returncode: int) -> tuple[str, int]:
    """Return how a worker ended, for display, and after how many such deaths its image fails."""
    if returncode >= 0:
        return f"the decoder ended with exit code {returncode}", CRASHES_TO_BLAME
    from_outside = -returncode in (signal.SIGKILL, signal.SIGTERM)
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-returncode}"
    return f"the decoder was ended by {name}", KILLS_TO_BLAME if from_outside else CRASHES_TO_BLAME


def _shared_memory_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pipeline-images", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
