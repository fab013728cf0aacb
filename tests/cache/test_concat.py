"""Several files read as one: the same as reading them one after the other, without copying them."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import CacheWriter, ConcatCache, open_cache
from pipeline.cache.concat import ConcatenatedRows
from pipeline.cache.failures import append_reasons
from pipeline.cache.info import describe_failures
from pipeline.errors import CacheError, FingerprintError
from pipeline.sources.reopen import image_bytes
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    labels = [["bee", "cat", "bee"], ["ant"], ["cat", "dog"]]
    names = [["a", "b", "c"], ["d"], ["e", "much longer"]]
    spec = synthetic.make_spec(layers=(3,))
    for i in range(3):
        path = synthetic.make_cache(tmp_path / f"part-{i}.h5", synthetic.make_items(names[i], labels=labels[i]), spec)
        if i == 2:
            writer = CacheWriter(path)
            writer.fail(1, 4)
            writer.close()
            append_reasons(path, [("much longer", "broken")])
        synthetic.fill(path)
    return sorted(tmp_path.glob("*.h5"))


def test_what_a_cache_offers(files: list[Path], tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "part-*.h5")
    assert isinstance(cache, ConcatCache)
    assert (len(cache), cache.width, cache.dtype, cache.path.name) == (6, 5, np.dtype("f4"), "part-*.h5")
    assert cache.keys.tolist() == ["a", "b", "c", "d", "e", "much longer"]
    assert [cache.label_names[label] for label in cache.labels] == ["bee", "cat", "bee", "ant", "cat", "dog"]
    assert cache.columns["weight"].tolist() == [0, 1, 2, 0, 0, 1]
    assert cache.status.tolist() == [1, 1, 1, 1, 1, 4]
    assert cache.reasons() == {5: "broken"}
    parts = [open_cache(file) for file in files]
    assert cache.fingerprint == parts[0].fingerprint
    assert cache.nbytes == sum(file.stat().st_size for file in files)
    for name in ("embeddings", "content_hash", "crc32", "ledger_crc32"):
        assert np.array_equal(getattr(cache, name), np.concatenate([getattr(part, name) for part in parts])), name
    assert list(cache.layers) == ["penultimate", "extra0"]
    assert cache.layers["extra0"].shape == (6, 3)
    assert "6 × 5" in repr(cache)
    again = pickle.loads(pickle.dumps(cache))
    assert again.path == cache.path
    assert np.array_equal(again.embeddings, cache.embeddings)


def test_a_list_of_files_and_a_single_one(files: list[Path], tmp_path: Path) -> None:
    assert open_cache([files[2], files[0]]).keys.tolist() == ["e", "much longer", "a", "b", "c"]
    assert not isinstance(open_cache(files[:1]), ConcatCache)
    assert not isinstance(open_cache(tmp_path / "part-[0].h5"), ConcatCache)
    strange = files[0].rename(tmp_path / "part-[x].h5")  # a name that looks like a pattern
    assert open_cache(strange).keys.tolist() == ["a", "b", "c"]


def test_a_path_may_be_bytes(files: list[Path]) -> None:
    assert open_cache(os.fsencode(files[0])).keys.tolist() == ["a", "b", "c"]
    assert len(open_cache(os.fsencode(files[0].parent / "part-*.h5"))) == 6


def test_what_does_not_belong_together_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="nothing that fits"):
        open_cache(tmp_path / "none-*.h5")
    with pytest.raises(CacheError, match="empty list"):
        open_cache([])
    with pytest.raises(CacheError, match=r"found nothing: run pipeline extract"):
        open_cache([files[0], tmp_path / "none.h5"])
    with pytest.raises(CacheError, match=r"'a' is in two of the caches .*\(3 such images\)"):
        open_cache([files[0], files[0]])
    other = synthetic.make_full(tmp_path / "other.h5", 3, synthetic.make_spec(width=7))
    with pytest.raises(FingerprintError, match=r"other\.h5: expected"):
        open_cache([files[0], other])


def test_the_images_of_every_part_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(synthetic.SOURCE, "root", str(tmp_path))
    files = [synthetic.make_full(tmp_path / f"{n}.h5", synthetic.make_items([n + "0", n + "1"])) for n in "ab"]
    (tmp_path / "b1").write_bytes(b"this one")
    cache = open_cache(files)
    assert image_bytes(cache, 3) == b"this one"
    assert image_bytes(cache, 0) is None
    assert describe_failures(tmp_path / "[ab].h5") == []


@st.composite
def indexed(draw: st.DrawFn) -> tuple[list[int], Any]:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    total = sum(lengths)
    ends = st.none() | st.integers(-total - 2, total + 2)
    kinds = [
        st.builds(slice, ends, ends, st.none() | st.integers(1, 3) | st.integers(-3, -1)),
        st.lists(st.booleans(), min_size=total, max_size=total).map(np.array).map(lambda a: a.astype(bool)),
        st.just(...),
    ]
    if total:
        number = st.integers(-total, total - 1)
        kinds += [number, st.lists(number, max_size=8).map(lambda rows: np.array(rows, dtype=np.int64))]
        kinds += [st.lists(number, min_size=4, max_size=4).map(lambda rows: np.array(rows).reshape(2, 2))]
    rows = draw(st.one_of(kinds))
    others = [(), (slice(1, None),), (0,)]
    if isinstance(rows, np.ndarray) and rows.dtype != bool:
        others.append((np.zeros(rows.shape, dtype=np.int64) + 1,))
    return lengths, (rows, *draw(st.sampled_from(others)))


@settings(deadline=None)
@given(indexed())
def test_rows_are_indexed_as_one_array_is(case: tuple[list[int], Any]) -> None:
    lengths, index = case
    whole = np.arange(3 * sum(lengths), dtype=np.float32).reshape(-1, 3)
    rows = ConcatenatedRows(np.split(whole, np.cumsum(lengths)[:-1]))
    assert (rows.shape, len(rows), rows.ndim, rows.size, rows.nbytes) == (
        whole.shape, len(whole), 2, whole.size, whole.nbytes,
    )  # fmt: skip
    for one in (index, index[0]):
        found, expected = rows[one], whole[one]
        assert np.shape(found) == np.shape(expected)
        assert np.array_equal(found, expected)
    assert np.array_equal(rows, whole)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64


def test_rows_that_are_not_there_are_an_index_error() -> None:
    rows = ConcatenatedRows([np.zeros((2, 3)), np.zeros((1, 3))])
    for index in (3, -4, np.array([0, 3]), np.array([True, False]), np.array([0.5])):
        with pytest.raises(IndexError):
            rows[index]
    assert [len(row) for row in rows] == [3, 3, 3]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(rows, copy=False)


def test_a_head_fitted_on_several_files_is_that_of_the_merged_one(tmp_path: Path) -> None:
    from pipeline.cache.merge import merge
    from pipeline.stages.fit_head import FitSettings, fit_head

    spec = synthetic.make_spec() | {"precision": "float32"}
    for part in range(3):
        names = [f"{part}/{i:03d}" for i in range(40)]
        labels = ["bee" if synthetic.right_rows([name.encode()], 5)[0, 0] > 0 else "ant" for name in names]
        synthetic.make_full(tmp_path / f"part-{part}.h5", synthetic.make_items(names, labels=labels), spec)
    merge(sorted(tmp_path.glob("part-*.h5")), tmp_path / "merged.h5")
    settings = FitSettings(head="ridge", report=False)
    several = fit_head(tmp_path / "part-*.h5", tmp_path / "run-several", settings)
    merged = fit_head(tmp_path / "merged.h5", tmp_path / "run-merged", settings)
    assert several.metrics == merged.metrics
    assert several.metrics["test"]["accuracy"]["value"] > 0.8
