"""The writing thread: commits by time, keeps reasons, and passes on what it meets without hanging."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache import background_writer as module
from pipeline.cache.background_writer import BackgroundWriter
from pipeline.errors import CacheError
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path


def put(writer: BackgroundWriter, path: Path, rows: Any) -> None:
    outputs, hashes = synthetic.right_outputs(path, np.array(rows))
    writer.write(np.array(rows), outputs, hashes)


def within(seconds: float, action: Any) -> BaseException | None:
    """Run an action that must end soon; return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


def test_rows_are_committed_as_time_passes(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 20)
    writer = BackgroundWriter(CacheWriter(path), commit_every=0.05)
    put(writer, path, [0, 1, 2])
    deadline = time.monotonic() + 120
    while (open_cache(path).status == 1).sum() < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    put(writer, path, [7, 8])
    writer.fail(9, "key 9", 4, "broken", bytes(16))
    writer.close()
    assert np.flatnonzero(open_cache(path).status).tolist() == [0, 1, 2, 7, 8, 9]
    assert synthetic.wrong_rows(path) == []


def test_the_reasons_of_a_successor_are_those_of_the_cache_it_replaces(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5.new", synthetic.make_items(["a", "b\ncd", "é"]))
    final = tmp_path / "c.h5"
    writer = BackgroundWriter(CacheWriter(path))
    writer.fail(1, "b\ncd", 4, "line\nbreak", bytes(16))
    writer.fail(2, "é", 5, "too large", bytes(16))
    writer.close()
    path.rename(final)
    assert open_cache(final).reasons() == {1: "line\nbreak", 2: "too large"}


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_a_disk_error_reaches_the_producer_and_nothing_hangs(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 2000)
    writer = BackgroundWriter(CacheWriter(path), commit_every=0.0 if when == "in the middle" else 60.0)
    from pipeline.cache import writer as writer_module

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer_module, "_datasync", fail)

    def produce() -> None:
        try:
            for row in range(100):
                put(writer, path, [row])
                time.sleep(0.002 if when == "in the middle" else 0)
        finally:
            writer.close()

    error = within(20, produce)
    assert isinstance(error, CacheError)
    assert "Input/output error" in str(error)
    assert (open_cache(path).status == 0).all()


def test_a_full_disk_for_reasons_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 10)
    writer = BackgroundWriter(CacheWriter(path), commit_every=60.0)

    def full(cache: Path, reasons: Any) -> None:
        raise CacheError("No space left on device")

    monkeypatch.setattr(module, "append_reasons", full)
    put(writer, path, [0, 1])
    writer.fail(2, "key", 4, "broken", bytes(16))
    assert isinstance(within(20, writer.close), CacheError)
    assert open_cache(path).status.tolist() == [1, 1, 4] + [0] * 7
