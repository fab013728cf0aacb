"""The commit order, resuming, and power cuts at every write and sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import CacheWriter, open_cache
from pipeline.errors import CacheError
from tests.cache import synthetic
from tests.cache.broken import RowsSwapped, StatusFirst
from tests.cache.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

SPEC = synthetic.make_spec(300, layers=(7,))


def lose_power(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Any,
    *,
    states: int = 3,
    syncs: bool = True,
    seed: int = 0,
) -> tuple[int, list[str]]:
    """Run ``act``; at every point of it, try states a power cut may leave. Return how many, and what was wrong."""
    random, wrong, tried = np.random.default_rng(seed), list[str](), 0
    cut = tmp_path / "cut.h5"
    with monkeypatch.context() as patch:
        disk = Disk(patch, [path], syncs=syncs)

        def after(disk: Disk) -> None:
            nonlocal tried
            if wrong:
                return  # it is caught
            durable: set[int] = set()
            for number, state in enumerate(disk.states(random, states)):
                cut.write_bytes(state[path])
                tried += 1
                wrong.extend(synthetic.wrong_rows(cut))
                done = set(np.flatnonzero(open_cache(cut).status == 1).tolist())
                durable = done if number == 0 else durable
                if not durable <= done:
                    wrong.append(f"rows lost: {sorted(durable - done)}")

        disk.after = after
        act()
        disk.close()
    return tried, wrong


def fill_with_failures(path: Path) -> None:
    """Fill a cache with some rows failed, then try those again."""
    writer = CacheWriter(path)
    for start in range(0, 40, 8):
        rows = np.arange(start, start + 8)
        writer.fail(start + 3, 4)
        synthetic.write_rows(writer, rows[rows != start + 3])
        writer.commit()
    failed = np.flatnonzero(open_cache(path).status > 1)
    writer.reopen(failed)
    synthetic.write_rows(writer, failed)
    writer.close()


def test_a_filled_cache_holds_every_row_in_its_place(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 40, SPEC)
    assert (open_cache(path).status == 1).all()
    assert synthetic.wrong_rows(path) == []


def test_nothing_counts_before_commit(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 10)
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.arange(4))
    assert (open_cache(path).status == 0).all()
    assert writer.commit() == 4
    assert open_cache(path).status.tolist() == [1] * 4 + [0] * 6
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("act", [synthetic.fill, fill_with_failures])
def test_power_cuts_lose_no_committed_row(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 40, SPEC)
    tried, wrong = lose_power(path, tmp_path, monkeypatch, lambda: act(path))
    assert tried > 100
    assert wrong == []
    assert synthetic.wrong_rows(path) == []


def test_the_power_cut_test_catches_a_missing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 40, SPEC)
    _, wrong = lose_power(path, tmp_path, monkeypatch, lambda: synthetic.fill(path), syncs=False)
    assert wrong


@pytest.mark.parametrize("broken", [StatusFirst, RowsSwapped])
def test_the_power_cut_test_catches_a_broken_writer(
    broken: type[CacheWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 40, SPEC)
    monkeypatch.setattr(synthetic, "CacheWriter", broken)
    _, wrong = lose_power(path, tmp_path, monkeypatch, lambda: synthetic.fill(path))
    assert wrong


@settings(max_examples=15, deadline=None)
@given(
    stops=st.lists(st.integers(0, 30), max_size=4),
    batch=st.integers(1, 7),
    dtype=st.sampled_from(["float32", "float16"]),
    layers=st.lists(st.integers(1, 9), max_size=2),
)
def test_a_run_stopped_anywhere_ends_with_the_same_file(
    stops: list[int], batch: int, dtype: str, layers: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    spec = synthetic.make_spec(3, layers=tuple(layers), dtype=dtype)
    whole = synthetic.make_full(folder / "whole.h5", 30, spec)
    path = synthetic.make_cache(folder / "c.h5", 30, spec)
    for stop in stops:  # a writer that dies after so many batches, with uncommitted rows behind it
        todo = np.flatnonzero(open_cache(path).status == 0)
        writer = CacheWriter(path)
        for number, start in enumerate(range(0, min(stop, len(todo)), batch)):
            synthetic.write_rows(writer, todo[start : start + batch])
            if number % 2:
                writer.commit()
        writer._abandon()
        assert synthetic.wrong_rows(path) == []
    synthetic.fill(path)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("pieces", [1, 100, 4096])
def test_short_writes_are_completed(pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.pwrite
    path = synthetic.make_cache(tmp_path / "c.h5", 12, SPEC)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, memoryview(data)[:pieces], offset))
    synthetic.fill(path)
    assert (open_cache(path).status == 1).all()
    assert synthetic.wrong_rows(path) == []


@pytest.mark.parametrize("call", ["pwrite", "_datasync"])
def test_a_disk_error_closes_the_writer_for_good(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    from pipeline.cache import writer as module

    path = synthetic.make_cache(tmp_path / "c.h5", 12)
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.arange(4))
    writer.commit()
    synthetic.write_rows(writer, np.arange(4, 8))
    calls = []

    def fail(*args: Any) -> int:
        calls.append(args)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "pwrite" else module, call, fail)
        with pytest.raises(CacheError, match="run the same command again"):
            writer.commit()
    writer.close()  # does nothing: a failed sync is never tried again
    assert len(calls) == 1
    assert open_cache(path).status.tolist() == [1] * 4 + [0] * 8
    assert synthetic.wrong_rows(path) == []


def test_rows_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 4)
    writer = CacheWriter(path)
    with pytest.raises(IndexError):
        writer.fail(4, 2)
    writer.close()


def test_a_file_with_a_second_name_is_not_written(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 3)
    (tmp_path / "backup.h5").hardlink_to(path)
    with pytest.raises(CacheError, match=r"has 2 names \(hard links\)"):
        CacheWriter(path)
    (tmp_path / "backup.h5").unlink()
    CacheWriter(path).close()
