"""verify finds every flipped bit, swapped row, truncation and foreign file, and says what is only unfinished."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache import CacheWriter, open_cache
from pipeline.cache import format as fmt
from pipeline.cache.sandbox import probe
from pipeline.cache.verify import verify
from pipeline.errors import CacheError
from tests.cache import synthetic

SPEC = synthetic.make_spec(9, layers=(3,))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = synthetic.make_items([f"{i}.png" for i in range(50)], labels=["ant", "bee"] * 25)
    return synthetic.make_full(tmp_path_factory.mktemp("verify") / "full.h5", items, SPEC)


@pytest.fixture
def path(full: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "c.h5"
    copy.write_bytes(full.read_bytes())
    return copy


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as raw:
        byte = os.pread(raw.fileno(), 1, offset)[0]
        os.pwrite(raw.fileno(), bytes([byte ^ (1 << bit)]), offset)


def place(path: Path, name: str, row: int) -> int:
    extent = open_cache(path).extent(name)
    return extent.offset + row * extent.row_bytes


def test_a_whole_cache_is_sound_and_complete(path: Path) -> None:
    found = verify(path)
    assert (found.rows, found.done, found.failed, found.to_do, found.uncommitted) == (50, 50, 0, 0, 0)
    assert found.complete


def test_rows_to_do_and_failed_are_no_damage(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 10)
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.arange(3))
    writer.fail(3, 4)
    writer.commit()
    synthetic.write_rows(writer, np.arange(5, 7))
    writer._abandon()
    found = verify(path)
    assert (found.done, found.failed, found.to_do, found.uncommitted) == (3, 1, 6, 2)
    assert not found.complete


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("embeddings", "its embedding"),
        ("layers/extra0", "its embedding"),
        ("crc32", "its status, checksum or content hash"),
        ("ledger_crc32", "its status, checksum or content hash"),
        ("content_hash", "its status, checksum or content hash"),
    ],
)
def test_a_flipped_bit_in_a_row_is_found_and_named(name: str, what: str, path: Path) -> None:
    flip(path, place(path, name, 17), bit=5)
    with pytest.raises(CacheError, match=rf"row 17 \('17.png'\): {what}"):
        verify(path)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_status_never_passes_as_complete(bit: int, path: Path) -> None:
    flip(path, place(path, "status", 17), bit)
    if bit == 0:  # done → to do: harmless, and told apart from a row that was never written
        found = verify(path)
        assert (found.done, found.to_do, found.uncommitted, found.complete) == (49, 1, 1, False)
    else:
        with pytest.raises(CacheError, match="row 17"):
            verify(path)


@pytest.mark.parametrize("name", ["keys", "labels", "label_names", "source_size", "static_sha256", "columns/weight"])
def test_a_flipped_bit_in_the_item_list_is_found(name: str, path: Path) -> None:
    flip(path, place(path, name, 0))
    with pytest.raises(CacheError, match="metadata or item list"):
        verify(path)


@pytest.mark.parametrize("offset", [0, 9, 40, 100, 700, 1500])
def test_a_flipped_bit_in_the_metadata_is_found(offset: int, path: Path) -> None:
    flip(path, offset, bit=3)
    with pytest.raises(CacheError):
        verify(path)


def test_swapped_rows_are_found(path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        for name in ("embeddings", "layers/extra0", "crc32", "ledger_crc32", "content_hash"):
            file[name][3:5] = file[name][3:5][::-1]
    with pytest.raises(CacheError, match=r"row 3 .*row 4 "):
        verify(path)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01, 0.0])
def test_a_truncated_file_is_found(keep: float, path: Path) -> None:
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(CacheError):
        verify(path)


def test_bytes_behind_the_end_are_found(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CacheError, match="metadata or item list"):
        verify(path)


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 3)
    writer = CacheWriter(path)
    values = np.array([[1, 2, 3, 4, np.nan]], dtype=np.float32)
    writer.write(np.array([1]), {"penultimate": values}, synthetic.right_hashes([b"x"]))
    writer.close()
    with pytest.raises(CacheError, match=r"row 1 .*not finite"):
        verify(path)


def test_a_status_that_does_not_exist_is_found(tmp_path: Path) -> None:
    path = synthetic.make_cache(tmp_path / "c.h5", 3)
    writer = CacheWriter(path)
    writer.fail(2, 77)
    writer.close()
    with pytest.raises(CacheError, match="its status is unknown"):
        verify(path)


def test_much_damage_is_counted_not_listed(path: Path) -> None:
    for row in range(20):
        flip(path, place(path, "embeddings", row))
    with pytest.raises(CacheError, match="and 15 more places"):
        verify(path)


def test_images_are_compared_with_the_cache(path: Path) -> None:
    hashes = open_cache(path).content_hash.copy()
    hashes[4], hashes[5] = 0, 7
    found = verify(path, hash_images=lambda cache: lambda rows: hashes[rows])
    assert (found.images_gone, found.images_changed) == (["4.png"], ["5.png"])
    assert not found.complete


# ---- files that are something else ----


def foreign(kind: str, path: Path) -> None:
    if kind == "missing":
        return
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no cache")
    elif kind == "signature":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4000))
    elif kind == "noise":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + np.random.default_rng(1).bytes(20000))
    else:
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(5)
            if kind == "claims":
                file.attrs["format"], file.attrs["format_version"] = "embedding-pipeline", 1
            if kind == "newer":
                file.attrs["format"], file.attrs["format_version"] = "embedding-pipeline", 99
            if kind == "link":
                file["y"] = h5py.ExternalLink("/etc/hostname", "/")
            if kind == "chunked":
                file.create_dataset("status", data=np.zeros(5, "u1"), chunks=(2,))
            if kind == "text type":
                file["status"] = "variable length"


@pytest.mark.parametrize(
    "kind",
    [
        "missing", "folder", "fifo", "empty", "text", "signature", "noise",
        "other hdf5", "claims", "newer", "link", "chunked", "text type",
    ],
)  # fmt: skip
def test_a_foreign_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    foreign(kind, path)
    with pytest.raises(CacheError) as caught:
        verify(path)
    assert "\n" not in str(caught.value)


def hostile(path: Path, name: str) -> None:
    """Change a whole cache so that its hash is right again and its structure is not."""
    with h5py.File(path, "r+", locking=False) as file:
        if name == "layer missing":
            del file["layers/extra0"]
        elif name == "one row less":
            del file["labels"]
            file["labels"] = np.zeros(49, "<i4")
        elif name == "other width":
            del file["layers/extra0"]
            file["layers/extra0"] = np.zeros((50, 4), "<f4")
        elif name == "other type":
            del file["status"]
            file["status"] = np.ones(50, "<i4")
        elif name == "other spec":
            spec = json.loads(file.attrs["spec"])
            spec["weights"]["sha256"] = "1"
            file.attrs["spec"] = json.dumps(spec)
        elif name == "spec no json":
            file.attrs["spec"] = "{"
        elif name == "label without name":
            file["labels"][7] = 2
        elif name == "long column":
            file["columns/more"] = np.zeros(51)
    extents = fmt.read_extents(path)
    with path.open("r+b") as raw:
        os.pwrite(raw.fileno(), fmt.static_sha256(path, extents), extents["static_sha256"].offset)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer missing", "/layers/extra0 is missing"),
        ("one row less", "/labels has shape"),
        ("other width", "/layers/extra0 has shape"),
        ("other type", "/status has type"),
        ("other spec", "fingerprint"),
        ("spec no json", "attributes make no sense"),
        ("label without name", r"row 7 .*its label has no name"),
        ("long column", "/columns/more has shape"),
    ],
)
def test_a_file_whose_hash_was_made_to_fit_is_still_checked(name: str, message: str, path: Path) -> None:
    hostile(path, name)
    with pytest.raises(CacheError, match=message):
        verify(path)


@pytest.mark.parametrize(
    ("what", "said"),
    [("sleep", "takes longer than"), ("memory", "found something else"), ("crash", "crashes")],
)
def test_a_file_that_is_too_much_for_hdf5_costs_a_child(
    what: str, said: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for h5py misbehaves, in the child only."""
    bad = {"sleep": "time.sleep(60)", "memory": "bytes(1 << 40)", "crash": "os.abort()"}[what]
    code = f"import os, time\nfrom pipeline.cache import format\nformat.read_extents = lambda path: {bad}\n"
    (tmp_path / "misbehave.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from pipeline.cache import sandbox as module

    monkeypatch.setattr(module, "CHILD", "import misbehave; " + module.CHILD)
    with pytest.raises(CacheError, match=said):
        probe(path, seconds=1.0)


def test_a_cache_that_is_replaced_meanwhile_is_looked_at_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cache import verify as module

    other = synthetic.make_full(tmp_path / "other.h5", 7)
    calls = list[Path]()

    def replaced_after(path: Path) -> object:
        layout = probe(path)
        calls.append(path)
        if len(calls) == 1:
            other.rename(path)
        return layout

    monkeypatch.setattr(module, "probe", replaced_after)
    assert verify(path).rows == 7
    assert len(calls) == 2
