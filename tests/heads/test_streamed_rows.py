from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.concat import ConcatenatedRows
from pipeline.core.maps import map_file
from pipeline.errors import HeadError
from pipeline.heads import streamed_rows
from pipeline.heads.streamed_rows import StreamedRows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def mapped(path: Path, array: NDArray[np.generic], offset: int = 64) -> np.memmap:
    path.write_bytes(b"x" * offset + array.tobytes())
    return np.memmap(path, dtype=array.dtype, mode="r", offset=offset, shape=array.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 300),
    width=st.integers(1, 5),
    kept=st.floats(0.01, 1.0),
    run=st.integers(1, 40),
    buffer_rows=st.integers(1, 200),
    half=st.booleans(),
    first=st.integers(0, 3),
    shuffled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_row_comes_once_as_it_is_in_the_file(
    folder: Path, n_rows: int, width: int, kept: float, run: int, buffer_rows: int, half: bool, first: int,
    shuffled: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(n_rows + first, width)).astype(np.float16 if half else np.float32)
    view = mapped(folder / "rows", array)[first:]
    index = np.flatnonzero(rng.random(n_rows) < kept)
    rows = StreamedRows(view, index)
    rows._run = run
    seen = []
    chunks = rows.chunks(rng if shuffled else None, buffer_bytes=2 * buffer_rows * width * array.itemsize)
    for data, at, positions in chunks if len(index) else ():
        np.testing.assert_array_equal(data[at], view[index[positions]])
        seen.append(positions)
    got = np.concatenate(seen) if seen else np.zeros(0, np.int64)
    np.testing.assert_array_equal(np.sort(got) if shuffled else got, np.arange(len(index)))


def test_the_map_itself_is_never_read(tmp_path: Path) -> None:
    """A map whose file has since changed on disk shows where the rows come from."""
    array = np.ones((50, 4), np.float32)
    view = mapped(tmp_path / "rows", array, offset=0)
    (tmp_path / "other").write_bytes((2 * array).tobytes())
    (tmp_path / "other").replace(tmp_path / "rows")
    ((data, at, _),) = StreamedRows(view).chunks()
    assert (view == 1).all()
    assert (data[at] == 2).all()


def test_runs_come_in_another_order_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_rows, "_RUN_BYTES", 16)
    rows = StreamedRows(mapped(tmp_path / "rows", np.arange(400, dtype=np.float32).reshape(200, 2)))
    rng = np.random.default_rng(0)
    first, second = ([c.positions for c in rows.chunks(rng, buffer_bytes=160)] for _ in range(2))
    assert len(first) > 2
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    # Inside a buffer rows are read in the order of the file.
    assert all((np.diff(positions) > 0).all() for positions in first)


def test_held_rows_are_those_chosen(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    rows = StreamedRows(mapped(tmp_path / "rows", array), np.array([1, 2, 7, 19]))
    held = rows.held()
    np.testing.assert_array_equal(held.array, array[[1, 2, 7, 19]])
    assert rows.held(buffer_bytes=8) is rows
    np.testing.assert_array_equal(held.take(np.array([0, 3])).index, [0, 3])


def test_several_maps_stream_as_one(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    both = ConcatenatedRows([mapped(tmp_path / "a", array[:50]), mapped(tmp_path / "b", array[50:])])
    index = np.arange(0, 90, 2)
    rows = StreamedRows(both, index)
    rows._run = 4
    found = np.concatenate([data[at].copy() for data, at, _ in rows.chunks(buffer_bytes=2 * 8 * 12)])
    np.testing.assert_array_equal(found, array[index])
    np.testing.assert_array_equal(rows.held().array, array[index])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    array = np.zeros((30, 2), np.float32)
    array[17, 1] = bad
    rows = StreamedRows(mapped(tmp_path / "rows", array), np.arange(10, 30))
    with pytest.raises(HeadError, match="row 17"):
        list(rows.chunks())


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    view = mapped(tmp_path / "rows", np.zeros((30, 2), np.float32), offset=0)
    (tmp_path / "short").write_bytes(b"\0" * 100)
    (tmp_path / "short").replace(tmp_path / "rows")
    with pytest.raises(OSError, match="ends before"):
        list(StreamedRows(view).chunks())


def test_rows_are_those_of_the_mapped_file_where_another_takes_its_name(tmp_path: Path) -> None:
    path, other = tmp_path / "rows", tmp_path / "other"
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    path.write_bytes(rows.tobytes())
    other.write_bytes((rows + 50).tobytes())
    with path.open("rb") as file:
        streamed = StreamedRows(map_file(file).view(np.float32).reshape(6, 2), np.array([1, 4]))
    other.replace(path)
    np.testing.assert_array_equal(streamed.held().array, rows[[1, 4]])
    path.unlink()
    np.testing.assert_array_equal(streamed.held().array, rows[[1, 4]])
