from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import SourceError
from pipeline.sources import TableSource, open_source

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def frame(image_folder: Path) -> pd.DataFrame:
    paths = sorted(str(path) for path in image_folder.glob("*/*"))[:4]
    return pd.DataFrame(
        {
            "path": paths,
            "label": ["NA", "1", None, "1"],
            "split": ["train", "test", "train", None],
            "group": ["g1", "7", "7", "g1"],
            "age": [1, 2, 3, 4],
            "score": [0.5, None, 1.5, 2.5],
            "flag": [True, False, True, True],
            "note": ["a", None, "é", ""],
        }
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_keeps_its_columns(kind: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "list.dat"  # the name's ending decides nothing
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    source = open_source(str(file))
    assert isinstance(source, TableSource)
    assert [source[i].label for i in range(4)] == ["NA", "1", None, "1"]
    assert source.items.label_names == ("1", "NA")
    columns = source.items.columns
    assert columns["split"].tolist() == ["train", "test", "train", ""]
    assert columns["group"].tolist() == ["g1", "7", "7", "g1"]
    assert columns["age"].dtype == np.int64
    assert np.array_equal(columns["score"], [0.5, np.nan, 1.5, 2.5], equal_nan=True)
    assert columns["flag"].dtype == np.bool_
    assert columns["note"].tolist() == ["a", "", "é", ""]
    assert source[1].split == "test"
    assert source[3].split is None


def test_numbers_as_labels_are_names(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["label"] = [3, 1, 2, 1]
    frame.to_parquet(tmp_path / "t")
    assert open_source(str(tmp_path / "t")).items.label_names == ("1", "2", "3")


def test_lists_become_label_sets(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["label"] = [["cat", "dog"], [], None, ["dog"]]
    frame["tags"] = [[1, 2], None, [], [3]]
    frame.to_parquet(tmp_path / "t")
    source = open_source(str(tmp_path / "t"))
    assert [source[i].label for i in range(4)] == ["cat|dog", "|", None, "dog"]
    assert source.items.columns["tags"].tolist() == ["1|2", "", "|", "3"]


def test_a_column_of_long_texts_is_left_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["caption"] = ["short", "x" * 257, None, ""]
    frame["group"] = ["g" * 257, "7", "7", "g1"]  # a name, which is what nothing may be lost of
    frame.to_parquet(tmp_path / "t")
    source = open_source(str(tmp_path / "t"))
    assert "caption" not in source.items.columns
    assert source.items.columns["group"][0] == "g" * 257
    assert [skip.reason for skip in source.skipped] == ["column 'caption': texts above 256 characters"]


def test_paths_are_relative_to_the_table(image_folder: Path) -> None:
    file = image_folder.parent / "relative.csv"
    file.write_text(f"path\n{image_folder.name}/ant/00.png\n", encoding="utf-8-sig")
    source = open_source(str(file))
    assert source.reader()(source.locator(0)) == (image_folder / "ant" / "00.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,x\n", "expected a column 'path'"),
        ("path\n", "found a table without rows"),
        ("path,label\n,x\n", "row 1 has none"),
        ("path\ngone.png\n", "row 1 of"),
        ("path\n{image}\n{image}\n", "occurs more than once"),
        ("", "cannot read"),
        ('path\n"unclosed\n', "cannot read"),
    ],
)
def test_bad_tables_are_refused_in_one_line(text: str, message: str, image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text.format(image=image_folder / "ant" / "00.png"))
    with pytest.raises(SourceError) as caught:
        open_source(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\1\2\3" * 100)
    with pytest.raises(SourceError, match="none of them"):
        open_source(str(tmp_path / "x"))
    (tmp_path / "latin.csv").write_bytes("path\né.png\n".encode("latin-1"))
    with pytest.raises(SourceError, match="UTF-8"):
        open_source(str(tmp_path / "latin.csv"))


def test_missing_files_may_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\ngone.png\n")
    source = open_source(str(tmp_path / "list.csv"), allow_missing=True)
    assert source.items.sizes.tolist() == [-1]
    with pytest.raises(FileNotFoundError):
        source.reader()(source.locator(0))
