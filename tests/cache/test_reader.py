"""Readers of a file that is being written, ours and plain h5py, never see a row that is not right."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from pipeline.cache import format as fmt
from pipeline.cache import open_cache, write_lock
from pipeline.errors import CacheError
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path

READ = """
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    status = file["status"][...]
    rows = file["embeddings"][...]
    print(int((status == 1).sum()), int((rows[status == 1] != 0).any(axis=1).sum()))
"""


def test_readers_during_writing(tmp_path: Path) -> None:
    from pipeline.cache import CacheWriter

    path = synthetic.make_cache(tmp_path / "c.h5", 400)
    with write_lock(path):
        writer = CacheWriter(path)
        for start in range(0, 400, 40):
            synthetic.write_rows(writer, np.arange(start, start + 40))
            assert synthetic.wrong_rows(path) == []
            writer.commit()
            assert int((open_cache(path).status == 1).sum()) == start + 40
            with h5py.File(path, "r", locking=False) as file:
                done = file["status"][...] == 1
                assert done.sum() == start + 40
                np.testing.assert_array_equal(
                    file["embeddings"][...][done], synthetic.right_rows(synthetic.keys_of(path), 5)[done]
                )
        # Another process, with HDF5's own locking as it is by default.
        read = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
        assert read.stdout.split() == ["400", "400"]
        writer.close()


def test_a_cache_stays_open_over_an_update(tmp_path: Path) -> None:
    """Whoever has the old file open goes on with the old file."""
    from pipeline.cache.replace import publish

    path = synthetic.make_full(tmp_path / "c.h5", 20)
    reading = open_cache(path)
    rows = np.array(reading.embeddings)
    publish(synthetic.make_full(tmp_path / "other.h5", synthetic.make_items(["a"] * 1)), path)
    np.testing.assert_array_equal(reading.embeddings, rows)
    assert len(open_cache(path)) == 1


def test_arrays_that_are_read_late_are_those_of_the_file_that_was_opened(tmp_path: Path) -> None:
    """A command reads columns and labels long after it was started; an update may be through by then."""
    from pipeline.cache.replace import publish

    labels = ["a", "b"] * 10
    path = synthetic.make_full(tmp_path / "c.h5", synthetic.make_items([f"{i}" for i in range(20)], labels=labels))
    reading = open_cache(path)
    publish(synthetic.make_full(tmp_path / "other.h5", synthetic.make_items(list("zyx"), labels=list("xyz"))), path)
    assert [reading.label_names[label] for label in reading.labels] == labels
    assert reading.keys.tolist() == [f"{i}" for i in range(20)]
    assert reading.column("weight").tolist() == list(range(20))
    assert reading.status.tolist() == [1] * 20


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 20)
    other = synthetic.make_full(tmp_path / "other.h5", 3)
    read = fmt.read_extents

    def replaced_meanwhile(name: Path) -> dict[str, fmt.Extent]:
        found = read(name)
        if other.exists():
            other.replace(name)
        return found

    monkeypatch.setattr(fmt, "read_extents", replaced_meanwhile)
    assert open_cache(path).keys.tolist() == [name.decode() for name in synthetic.make_items(3).keys.tolist()]


def test_what_is_no_cache_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="found nothing"):
        open_cache(tmp_path / "none.h5")
    with pytest.raises(CacheError, match="found a folder"):
        open_cache(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CacheError, match="found something else"):
        open_cache(tmp_path / "text.h5")
