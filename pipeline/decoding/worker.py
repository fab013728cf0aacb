"""A decode worker: reads, hashes, decodes and prepares images into shared memory.

`pipeline.decoding.pool` starts it as a separate process: a decoder that crashes, hangs or uses up memory then costs one
image, not the run.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.core.items import HASH_BYTES, Changed, OutOfReach, Status, content_hash
from pipeline.core.system import limit_memory, memory_limit_lifted, package_stamp
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import GPU, GPU_BYTES, DecodePolicy, decode_image, is_plain_jpeg
from pipeline.decoding.jpeg import decode_plain, why_pillow
from pipeline.decoding.prefetch import Prefetcher
from pipeline.decoding.resample import RESAMPLER

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.core.items import Reader
    from pipeline.decoding.preprocess import Preprocess

TASK_IMAGES = 8
AHEAD_IMAGES = 256
"""Images that a worker may be reading at a time."""
NO_ROW, IDLE = -1, 0
STAMP = package_stamp()
"""Of the code that this process runs."""
ROW, SINCE, READING = 0, 1, slice(2, 2 + AHEAD_IMAGES)
"""Columns of the worker status: the row in progress, its start in monotonic nanoseconds, the prefetched rows."""
ORPHAN_AFTER = 2
"""After this many time limits on one image, the worker ends itself: its main process must be gone."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings of a worker, sent once.

    Attributes
    ----------
    reader : Reader
    policy : DecodePolicy
    preprocess : Preprocess
    images : (int, int, int, int, int)
        Shape (slots, B, H, W, 3) of the shared images, which follow the worker status in memory; see `views`.
    workers, number : int
        How many workers share the worker status, and which line is this one's.
    memory_limit : int
        Bytes this process may take beyond what it holds when it is ready; 0 for no limit.
    seconds : float
        What an image may take; the pool sees to it, and the kernel ends the worker when there is no pool any more.
    """

    reader: Reader
    policy: DecodePolicy
    preprocess: Preprocess
    images: tuple[int, int, int, int, int]
    workers: int
    number: int
    memory_limit: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """Images for one worker: (position in the batch, row, locator) each, all of one slot; ``alone``: none beside it."""

    slot: int
    items: tuple[tuple[int, int, Any], ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one image.

    Attributes
    ----------
    position : int
        In the batch.
    status, reason : int, str
        A `Status`, and what went wrong.
    content_hash : bytes
        See `pipeline.core.items.content_hash`.
    read_s, decode_s : float
        How long its worker waited for its bytes, and worked on them, in seconds.
    encoded : int
        Bytes of a JPEG that its worker left for the GPU to decode; 0 for an image that it decoded itself.
    fetch_s : float
        Seconds that its read took, also while its worker did something else.
    """

    position: int
    status: int
    reason: str
    content_hash: bytes
    read_s: float
    decode_s: float
    encoded: int = 0
    fetch_s: float = 0.0


def worker_status_bytes(workers: int) -> int:
    """Size of the worker status: a line of int64 per worker; rounded up to a page."""
    return -(-workers * READING.stop * 8 // mmap.PAGESIZE) * mmap.PAGESIZE


def _encoded_shape(images: tuple[int, ...], policy: DecodePolicy) -> tuple[int, int, int]:
    return images[0], images[1], GPU_BYTES if policy.jpeg_decoder == GPU else 0


def shared_bytes(images: tuple[int, ...], workers: int, policy: DecodePolicy) -> int:
    """Size of the memory that `views` divides; pages that are never written take no memory."""
    return worker_status_bytes(workers) + math.prod(images) + math.prod(_encoded_shape(images, policy))


def views(
    memory: mmap.mmap, setup_images: tuple[int, ...], workers: int, policy: DecodePolicy
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return arrays over the memory.

    Returns
    -------
    worker_status : (workers, columns) int64
    images : (slots, B, H, W, 3) uint8
    encoded : (slots, B, E) uint8
        JPEGs for the GPU; E is 0 where there is none to decode them.
    """
    first = worker_status_bytes(workers)
    worker_status = np.ndarray((workers, READING.stop), np.int64, memory)
    images = np.ndarray(setup_images, np.uint8, memory, first)
    return (
        worker_status,
        images,
        np.ndarray(_encoded_shape(setup_images, policy), np.uint8, memory, first + images.size),
    )


def prepare(data: bytes, policy: DecodePolicy, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode and apply the geometric preprocessing: bytes → (H, W, 3) uint8."""
    pixels = decode_plain(data, policy)
    return preprocess.apply(decode_image(data, policy) if pixels is None else pixels)


def _work(
    setup: Setup,
    position: int,
    read_bytes: Callable[[], bytes],
    target: NDArray[np.uint8],
    encoded: NDArray[np.uint8],
) -> Outcome:
    started = time.perf_counter()
    try:
        data = read_bytes()
    except MemoryError:
        return Outcome(position, Status.OUT_OF_MEMORY, "not enough memory to read it", bytes(HASH_BYTES), 0.0, 0.0)
    except Exception as error:  # any error of a reader concerns this image only
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        return Outcome(position, _why_unread(error), reason, bytes(HASH_BYTES), time.perf_counter() - started, 0.0)
    read = time.perf_counter()
    digest = content_hash(data)
    status, reason, left = Status.DONE, "", 0
    try:
        if setup.policy.jpeg_decoder == GPU and is_plain_jpeg(data, setup.policy, setup.preprocess.resize_short):
            left = len(data)
            encoded[:left] = np.frombuffer(data, np.uint8)
        else:
            target[...] = prepare(data, setup.policy, setup.preprocess)
    except DecodeError as error:
        status, reason = error.status, str(error)
    except MemoryError:
        status, reason = Status.OUT_OF_MEMORY, "not enough memory to prepare it"
    except Exception as error:  # as above
        if package_stamp() != STAMP:  # a module that was imported just now may be another version's
            raise
        # The image was decoded, and is not to blame.
        status, reason = Status.DECODER_CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return Outcome(position, status, reason, digest, read - started, time.perf_counter() - read, left)


def _why_unread(error: Exception) -> Status:
    if isinstance(error, OutOfReach):
        return Status.OUT_OF_REACH
    return Status.CHANGED if isinstance(error, Changed) else Status.UNREADABLE


def main(connection_fd: int, memory_fd: int) -> None:
    """Serve tasks until the connection closes."""
    # Signals to the whole group are for the main process, which then ends its workers; see `child_signals_held`.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection = Connection(connection_fd)
    setup: Setup = connection.recv()
    worker_status, images, encoded = views(mmap.mmap(memory_fd, 0), setup.images, setup.workers, setup.policy)
    Image.MAX_IMAGE_PIXELS = None  # the policy's own limit is checked instead
    Image.init()
    line = worker_status[setup.number]
    ahead = Prefetcher(setup.reader, line[READING], NO_ROW)
    limit_memory(setup.memory_limit)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    connection.send(STAMP)  # ready
    sent: set[str] = set()
    queued: deque[Task] = deque()

    def receive() -> None:
        task: Task = connection.recv()
        queued.append(task)
        ahead.add(task.items, alone=task.alone)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process is gone, or done
        while True:
            if not queued:
                receive()
            task = queued.popleft()
            outcomes = []
            ahead.begin()
            for position, row, _ in task.items:
                while ahead.slow and connection.poll():  # further tasks, to read their images ahead
                    receive()
                line[SINCE] = IDLE  # first, so that a time never stands beside another row
                line[ROW] = row
                line[SINCE] = time.monotonic_ns()
                _alarm(setup.seconds * ORPHAN_AFTER)
                place = images[task.slot, position], encoded[task.slot, position]
                outcome = _work(setup, position, ahead.take, *place)
                if outcome.status == Status.OUT_OF_MEMORY and ahead.holds:  # prefetched images also used memory
                    outcome = _work(setup, position, ahead.take_again, *place)
                outcomes.append(replace(outcome, fetch_s=ahead.took))
            line[SINCE] = IDLE
            line[ROW] = NO_ROW
            _alarm(0)
            connection.send(outcomes)
            if RESAMPLER.repays:  # between images: its time and memory are those of no image
                with memory_limit_lifted():
                    RESAMPLER.load()
            for note in {RESAMPLER.reason, why_pillow()} - {"", *sent}:
                sent.add(note)
                connection.send(note)


def _alarm(seconds: float) -> None:
    """Let the kernel end this process after this time, even inside a decoder; 0 cancels it."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)
