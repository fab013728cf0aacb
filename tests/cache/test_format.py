"""Whatever the keys, labels and columns are, they come back as they went in, also through plain h5py."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import format as fmt
from pipeline.cache import open_cache
from pipeline.cache.update import same_items
from pipeline.cache.verify import verify
from pipeline.core.items import ItemTable
from pipeline.errors import CacheError
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path

# File names: any bytes but NUL, a component up to 255 of them, no empty component.
COMPONENTS = st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"?").replace(b"/", b"|"))
KEYS = st.one_of(
    st.lists(COMPONENTS, min_size=1, max_size=3).map(b"/".join),
    st.sampled_from([b"line\nbreak", b"\xff\xfe", "é".encode(), b"x" * 255, b" ", b"-", b"a\r", "日本".encode()]),
)
LABELS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


def column(length: int) -> st.SearchStrategy[Any]:
    def of(elements: st.SearchStrategy[Any], dtype: Any) -> st.SearchStrategy[Any]:
        return st.lists(elements, min_size=length, max_size=length).map(lambda values: np.array(values, dtype=dtype))

    return st.one_of(
        of(st.integers(-(2**63), 2**63 - 1), np.int64),
        of(st.floats(), np.float64),
        of(st.booleans(), np.bool_),
        of(LABELS | st.just(""), np.str_),
    )


@st.composite
def item_lists(draw: st.DrawFn) -> ItemTable:
    keys = draw(st.lists(KEYS, min_size=1, max_size=6, unique=True))
    names = tuple(sorted(draw(st.sets(LABELS, max_size=3))))
    count = len(keys)
    labels = draw(st.lists(st.integers(-1, len(names) - 1), min_size=count, max_size=count))
    numbers = st.lists(st.integers(-1, 2**62), min_size=count, max_size=count)
    return ItemTable(
        keys=np.array(keys, dtype=np.bytes_),
        labels=np.array(labels, dtype=np.int32),
        label_names=names,
        sizes=np.array(draw(numbers), dtype=np.int64),
        mtimes_ns=np.array(draw(numbers), dtype=np.int64),
        columns=draw(st.dictionaries(NAMES, column(count), max_size=3)),
    )


@settings(max_examples=100, deadline=None)
@given(items=item_lists(), dtype=st.sampled_from(["float32", "float16"]))
def test_items_come_back_as_they_went_in(
    items: ItemTable, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("format") / "c.h5"
    synthetic.make_cache(path, items, synthetic.make_spec(dtype=dtype))
    cache = open_cache(path)
    assert same_items(cache.items, items)
    assert [os.fsencode(key) for key in cache.keys] == [bytes(key) for key in items.keys]
    with h5py.File(path) as file:
        assert file["keys"][...].tolist() == items.keys.tolist()
        assert file["embeddings"].dtype == np.dtype(dtype)


def test_two_files_of_the_same_items_are_the_same_bytes(tmp_path: Path) -> None:
    one, other = (synthetic.make_full(tmp_path / name, 7) for name in ("a.h5", "b.h5"))
    assert one.read_bytes() == other.read_bytes()


def test_everything_is_contiguous_aligned_and_apart(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 33, synthetic.make_spec(7, layers=(3, 2)))
    extents = fmt.read_extents(path)
    ends = 0
    for extent in sorted(extents.values(), key=lambda extent: extent.offset):
        assert extent.offset % fmt.ALIGNMENT == 0
        assert extent.offset >= ends
        ends = extent.offset + extent.nbytes
    assert path.stat().st_blocks * 512 >= ends  # the space is there, not only promised


def test_a_row_that_is_too_wide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="pool it"):
        synthetic.make_cache(tmp_path / "c.h5", 1, synthetic.make_spec(fmt.MAX_ROW_BYTES // 4 + 1))
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_an_error_before_the_first_row_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"No space left on device.*free space"):
        synthetic.make_cache(tmp_path / "c.h5", 10)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from pipeline.errors import CacheError
from tests.cache import synthetic
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    synthetic.make_full(Path(sys.argv[1]), 1000)
except CacheError as error:
    print("CacheError:", error)
"""


@pytest.mark.parametrize("limit", [0, 1, 4096, 20_000, 60_000])
def test_a_limit_on_file_size_is_one_line_and_leaves_nothing(limit: int, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    path = tmp_path / "c.h5"
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit)], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("CacheError: cannot write ")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_cache_verifies_whatever_its_shape(tmp_path: Path) -> None:
    for count, width, layers in ((1, 1, ()), (1, 1, (1,)), (4097, 1, ()), (3, 5000, (2, 1))):
        path = synthetic.make_full(tmp_path / f"{count}-{width}.h5", count, synthetic.make_spec(width, layers=layers))
        assert verify(path).complete


def test_a_file_of_any_content_on_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """In a process of its own: HDF5 by itself ends the process."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from pipeline.cache.format import write_hdf5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
def fill(file):
    for i in range(40):
        file[f"group{i}/x"] = np.arange(1000)
try:
    write_hdf5(Path(sys.argv[1]), fill)
except OSError as error:
    print(error.strerror)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "File too large\n", "")
