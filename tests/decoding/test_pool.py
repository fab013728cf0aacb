"""A decoder that crashes, hangs or eats memory costs one row; a worker killed from outside costs none."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.items import Status
from pipeline.decoding.image import DecodePolicy
from pipeline.decoding.pool import Batch, DecodePool, Limits
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import PipelineError
from tests.faulty_reader import FaultyReader

PREPROCESS = Preprocess((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)


def pool_of(log: Path, *, workers: int = 2, limits: Limits = Limits(seconds=20.0)) -> DecodePool:
    return DecodePool(FaultyReader(str(log)), DecodePolicy(), PREPROCESS, batch_size=8, workers=workers, limits=limits)


def run(pool: DecodePool, locators: list[str]) -> dict[int, tuple[int, str]]:
    """Return (status, reason) by row; check that good rows hold their own picture, and every row comes once."""
    found: dict[int, tuple[int, str]] = {}
    with pool:
        for batch in pool.batches(np.arange(len(locators)), locators.__getitem__):
            assert len(batch.outcomes) == len(batch.rows)
            for position, (row, outcome) in enumerate(zip(batch.rows.tolist(), batch.outcomes, strict=True)):
                assert row not in found
                assert outcome.position == position
                found[row] = outcome.status, outcome.reason
                if outcome.status == Status.DONE:
                    assert (batch.images[position] == int(locators[row].split()[1]) % 256).all()
            batch.release()
    assert sorted(found) == list(range(len(locators)))
    return found


def mostly_good(bad: dict[int, str], count: int = 60) -> list[str]:
    return [bad.get(i, f"good {i}") for i in range(count)]


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("crash", Status.DECODER_CRASHED, "SIGSEGV"),
        ("abort", Status.DECODER_CRASHED, "SIGABRT"),
        ("exit", Status.DECODER_CRASHED, "exit code 7"),
        ("hang", Status.TIMED_OUT, "longer than 1.5 s"),
        pytest.param("sleep", Status.TIMED_OUT, "longer than 1.5 s", marks=pytest.mark.slow),
        ("memory", Status.OUT_OF_MEMORY, "not enough memory"),
        ("raise", Status.UNREADABLE, "a reader of its own mind"),
    ],
)
def test_what_one_image_does_costs_its_own_row_only(what: str, status: Status, reason: str, tmp_path: Path) -> None:
    locators = mostly_good({13: what, 40: what})
    found = run(pool_of(tmp_path / "log", limits=Limits(seconds=1.5, memory=1 << 30)), locators)
    assert {row for row, (code, _) in found.items() if code != Status.DONE} == {13, 40}
    assert found[13][0] == found[40][0] == status
    assert reason in found[13][1]


def test_a_crashing_image_is_tried_twice_and_no_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(pool_of(log), mostly_good({5: "crash"}))
    tries = Counter(log.read_text().splitlines())
    assert tries["crash"] == 2


@pytest.mark.slow
def test_an_image_that_crashes_when_read_ahead_is_the_one_that_is_blamed(tmp_path: Path) -> None:
    """On slow storage many images are being read at once when one of them ends the process."""
    log = tmp_path / "log"
    bad = {20: "crash", 21: "exit", 40: "raise", 46: "abort"}
    found = run(pool_of(log), [bad.get(i, f"slow {i}") for i in range(64)])
    assert {row for row, (code, _) in found.items() if code == Status.DECODER_CRASHED} == {20, 21, 46}
    assert {row for row, (code, _) in found.items() if code != Status.DONE} == set(bad)
    tries = Counter(log.read_text().splitlines())
    # All three may have been read beside each other: once for each of them, and twice alone.
    assert max(tries.values()) <= 5


def test_workers_say_once_why_they_are_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.decoding import pool as pool_module

    setup = (
        "import pipeline.decoding.resample as r; import pipeline.decoding.worker as w; r.REPAYS_S = -1; r.ORDERS = (); "
        "w.why_pillow = lambda: 'no decoder'; "
    )
    monkeypatch.setattr(pool_module, "WORKER", setup + pool_module.WORKER)
    pool = pool_of(tmp_path / "log")
    found = run(pool, mostly_good({}))
    assert {code for code, _ in found.values()} == {Status.DONE}
    assert sorted(pool.notes)[0] == "no decoder"
    assert [note for note in pool.notes if "rounds in another way" in note] == sorted(pool.notes)[1:]


def test_the_kernel_is_loaded_between_images_and_outside_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.decoding import pool as pool_module

    setup = (
        "import pipeline.decoding.resample as r; import pipeline.decoding.worker as w; r.REPAYS_S = -1; "
        "w.why_pillow = lambda: 'loaded' if r.RESAMPLER._kernel else ''; "
    )
    monkeypatch.setattr(pool_module, "WORKER", setup + pool_module.WORKER)
    pool = pool_of(tmp_path / "log", limits=Limits(seconds=20.0, memory=32 << 20))  # LLVM alone takes more
    found = run(pool, mostly_good({50: "memory"}))
    assert {row for row, (code, _) in found.items() if code != Status.DONE} == {50}
    assert list(pool.notes) == ["loaded"]


def test_slow_reads_overlap(tmp_path: Path) -> None:
    """Forty reads of 50 ms: once the storage is known to be slow, several are under way at once."""
    waits: list[float] = []
    with pool_of(tmp_path / "log", workers=1) as pool:
        for batch in pool.batches(np.arange(40), [f"slow {i}" for i in range(40)].__getitem__):
            waits += [outcome.read_s for outcome in batch.outcomes]
            batch.release()
    assert waits[0] >= 0.05  # nothing was known of the storage yet
    under_way, most = 0, 0
    for line in (tmp_path / "log").read_text().splitlines():
        under_way += 1 if line.startswith("slow") else -1
        most = max(most, under_way)
    assert under_way == 0
    assert most > 1
    assert min(waits[1:]) < 0.05  # what was read ahead is waited for less than its read takes


@pytest.mark.slow
def test_nothing_but_bad_images(tmp_path: Path) -> None:
    found = run(pool_of(tmp_path / "log"), ["crash", "exit", "abort", "raise"] * 6)
    assert Counter(code for code, _ in found.values()) == {Status.DECODER_CRASHED: 18, Status.UNREADABLE: 6}


@pytest.mark.slow
def test_workers_killed_from_outside_cost_no_image(tmp_path: Path) -> None:
    locators = [f"slow {i}" for i in range(800)]
    pool = pool_of(tmp_path / "log")
    over = threading.Event()
    killed = 0

    def kill_now_and_then() -> None:
        nonlocal killed
        choose = random.Random(1)
        while killed < 5 and not over.wait(0.5):
            ready = [worker for worker in list(pool._workers.values()) if worker.ready]
            for worker in choose.sample(ready, min(1, len(ready))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGKILL)
                    killed += 1

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        found = run(pool, locators)
    finally:
        over.set()
        killer.join()
    assert killed > 2
    assert pool.replaced > 2
    assert {code for code, _ in found.values()} == {Status.DONE}


def test_workers_that_never_live_long_are_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.decoding import pool as pool_module

    monkeypatch.setattr(pool_module, "MAX_DEATHS_WITHOUT_PROGRESS", 3)
    dies = "import pipeline.decoding.worker as w, os; w._work = lambda *a: os._exit(9); " + pool_module.WORKER
    monkeypatch.setattr(pool_module, "WORKER", dies)
    monkeypatch.setattr(pool_module, "CRASHES_TO_BLAME", 100)
    with pytest.raises(PipelineError, match="3 ended one after the other"):
        run(pool_of(tmp_path / "log"), mostly_good({}))


def test_a_package_that_was_replaced_ends_the_run_and_blames_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts now would be of another version: its errors would be written down as those of images."""
    locators = mostly_good({30: "crash"})
    statuses: set[int] = set()

    def take(batch: Batch) -> None:
        statuses.update(outcome.status for outcome in batch.outcomes)
        batch.release()

    with pool_of(tmp_path / "log") as pool:
        batches = pool.batches(np.arange(len(locators)), locators.__getitem__)
        take(next(batches))
        monkeypatch.setattr("pipeline.decoding.pool.package_stamp", lambda: 0)
        with pytest.raises(PipelineError, match=r"replaced while it ran.*run the same command again"):
            deque(map(take, batches))
    assert statuses == {Status.DONE}


def test_a_worker_of_another_version_than_the_main_process_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files may be replaced between the check and the worker's import of them."""
    monkeypatch.setattr("pipeline.decoding.pool.STAMP", 5)
    monkeypatch.setattr("pipeline.decoding.pool.package_stamp", lambda: 5)
    with pytest.raises(PipelineError, match=r"replaced while it ran.*run the same command again"):
        run(pool_of(tmp_path / "log"), mostly_good({}))


def test_workers_that_do_not_start_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from pipeline.decoding import pool as pool_module

    monkeypatch.setattr(pool_module, "WORKER", "import sys; sys.exit(3)")
    with pytest.raises(PipelineError, match="exit code 3"):
        run(pool_of(tmp_path / "log"), mostly_good({}))


def test_a_stop_does_not_wait_for_a_hanging_image(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    locators = mostly_good({0: "sleep"}, 24)
    with pool_of(tmp_path / "log", limits=Limits(seconds=600)) as pool:
        batches = list(pool.batches(np.arange(24), locators.__getitem__, stop))
    assert batches == []
    assert pool.replaced == 0  # an image that is waited for ends its worker, after 600 s


@pytest.mark.slow
def test_orphans_of_a_killed_run_end_by_themselves(tmp_path: Path) -> None:
    """The process that should end a hanging worker is killed: the kernel's alarm does it."""
    import subprocess
    import sys

    code = f"""
import numpy as np
from pathlib import Path
from tests.decoding.test_pool import *
pool = pool_of(Path({str(tmp_path / "log")!r}), workers=1, limits=Limits(seconds=1.0))
print(pool._workers[0].process.pid, flush=True)
list(pool.batches(np.arange(1), ["hang"].__getitem__))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        deadline = time.monotonic() + 120
        while not (tmp_path / "log").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker goes on for ever"
        time.sleep(0.05)
