"""Which data sets of an HDF5 file are images, and what beside them is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, **datasets: Any) -> str:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return str(path)


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9, 4), (8, 9, 1), (8, 9, 2), (3, 8, 9), (8, 9)])
def test_one_picture_is_refused_with_the_way_out(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", image=np.zeros(shape, np.uint8))
    for location in (path, f"{path}#image"):
        with pytest.raises(SourceError, match=r"found .*image \(.*store one picture as \(1, H, W, 3\)"):
            open_source(location)


def test_one_picture_by_its_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", image=np.zeros((5, 8, 9), np.uint8))
    assert len(open_source(path)) == 5
    with h5py.File(path, "a") as file:
        file["image"].attrs["CLASS"] = np.bytes_("IMAGE")
    with pytest.raises(SourceError, match="one picture"):
        open_source(path)


@pytest.mark.parametrize("shape", [(1, 8, 9), (5, 8, 9), (2, 4, 4), (1, 8, 9, 3), (3, 8, 9, 1)])
def test_pictures_are_rows(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert len(open_source(write(tmp_path / "a.h5", image=np.zeros(shape, np.uint8)))) == shape[0]


def test_three_grey_pictures_are_known_by_their_labels(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.h5", image=np.zeros((3, 8, 9), np.uint8), label=["a", "b", "a"]))
    assert [source[i].label for i in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([True, False]), ["True", "False"]),
        (np.array([0.5, np.nan]), ["0.5", None]),
        (np.array([0.1, 2], np.float32), ["0.1", "2.0"]),
        (np.array([2**64 - 1, 1], np.uint64), [str(2**64 - 1), "1"]),
        (np.array([[7], [8]]), ["7", "8"]),
        (np.array([b"p\xe2t", b"p\xe3t"]), ["p\udce2t", "p\udce3t"]),
    ],
)
def test_labels_of_every_type(values: Any, found: list[str | None], tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.h5", image=np.zeros((2, 8, 9), np.uint8), label=values))
    assert [source[i].label for i in range(2)] == found


def test_labels_of_an_enumeration_are_its_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", image=np.zeros((2, 8, 9), np.uint8))
    with h5py.File(path, "a") as file:
        kind = h5py.enum_dtype({"cat": 0, "dog": 5}, basetype="i")
        file.create_dataset("label", data=[5, 0], dtype=kind)
    assert [open_source(path)[i].label for i in range(2)] == ["dog", "cat"]


def test_labels_that_are_not_one_for_each_image_are_named(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.h5", image=np.zeros((2, 8, 9), np.uint8), label=np.eye(2, 3)))
    assert source.items.label_names == ()
    assert [skip.reason for skip in source.skipped] == [
        "data set 'label': (2, 3) float64, not one value for each image"
    ]


def test_a_file_of_thousands_of_other_data_sets_is_refused_briefly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{f"g/{i:04d}": np.zeros(3) for i in range(2000)})
    with pytest.raises(SourceError, match=r"… \(2000 in all\): name it") as caught:
        open_source(path)
    assert len(str(caught.value)) < 600


def test_a_file_behind_a_block_of_its_user_is_known(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["image"] = np.zeros((2, 8, 9), np.uint8)
    with (tmp_path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file")
    assert len(open_source(str(tmp_path / "a.mat"))) == 2


def test_references_and_lists_are_no_labels(tmp_path: Path) -> None:
    """MATLAB writes a cell array of texts as references to them."""
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros((2, 8, 9, 3), np.uint8)
        file["text"] = np.frombuffer(b"cat", np.uint8)
        file["label"] = np.array([file["text"].ref] * 2, dtype=h5py.ref_dtype)
        file.create_dataset("split", (2,), h5py.vlen_dtype(np.int64))
    source = open_source(str(path))
    assert [source[i].label for i in range(2)] == [None, None]
    assert "split" not in source.items.columns
    assert sorted(skip.key for skip in source.skipped) == ["label", "split"]
    assert all("not one value for each image" in skip.reason for skip in source.skipped)


def test_an_empty_key_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", images=np.zeros((2, 8, 9, 3), np.uint8), key=["a", ""])
    with pytest.raises(SourceError, match=r"expected a key in every row of .*a.h5, found 1 without"):
        open_source(path)


def test_images_may_be_named_by_a_link(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file["entry/data"] = np.ones((2, 8, 9, 3), np.uint8)
        file["soft"] = h5py.SoftLink("/entry/data")
        file["hard"] = file["entry/data"]
        file["label"] = ["x", "y"]
    for name in ("soft", "hard", "entry/data"):
        source = open_source(f"{path}#{name}")
        assert [source[i].label for i in range(2)] == ([None, None] if "/" in name else ["x", "y"])
        assert source.reader()(source.locator(1)).startswith(b"P6 9 8 255")


@pytest.mark.parametrize("name", ["label", "split"])
def test_a_zero_byte_in_a_name_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{"images": np.zeros((2, 8, 9, 3), np.uint8), name: np.array([b"a\0b", b"c"])})
    with pytest.raises(SourceError, match=r"expected names beside the images in .*, found 'a\\x00b'"):
        open_source(path)
