"""Parquet's types come through as they are, held against pyarrow and `datasets`; the rest is left out by name."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources import open_source
from pipeline.sources.arrow_table import class_names, frame_of
from pipeline.sources.columns import column_values, without_unfit
from tests.faulty_reader import picture

if TYPE_CHECKING:
    from pathlib import Path

D = decimal.Decimal


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([2**60 + 1, None], pa.int64(), [str(2**60 + 1), ""]),
        ([3, None], pa.int8(), ["3.0", "nan"]),
        ([2**64 - 1, 5], pa.uint64(), [str(2**64 - 1), "5"]),
        ([2**64 - 1, None], pa.uint64(), [str(2**64 - 1), ""]),
        ([7, 8], pa.uint16(), ["7", "8"]),
        ([True, None], pa.bool_(), ["True", ""]),
        ([1.5, None], pa.float32(), ["1.5", "nan"]),
        (["a", None], pa.large_string(), ["a", ""]),
        (["a", "b"], pa.string_view(), ["a", "b"]),
        (["a", "b"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        ([2**60 + 1, None], pa.dictionary(pa.int8(), pa.int64()), [str(2**60 + 1), ""]),
        ([D("1.50"), None], pa.decimal128(10, 2), ["1.5", "nan"]),
        (
            [D("0.1234567890123456789"), D("1")],
            pa.decimal128(38, 19),
            ["0.1234567890123456789", "1.0000000000000000000"],
        ),
        ([datetime.date(2020, 2, 29), None], pa.date32(), ["2020-02-29", ""]),
        ([datetime.datetime(2020, 2, 29, 1, 2, 3, 4), None], pa.timestamp("us"), ["2020-02-29 01:02:03.000004", ""]),
        ([datetime.timedelta(seconds=90)], pa.duration("ms"), ["0:01:30"]),
        ([datetime.time(1, 2, 3)], pa.time64("us"), ["01:02:03"]),
        ([1, 2, None], pa.time64("ns"), ["00:00:00.000000001", "00:00:00.000000002", ""]),
        ([["a", "b"], None], pa.list_(pa.string()), ["a|b", ""]),
        ([[1, 2], []], pa.large_list(pa.int16()), ["1|2", "|"]),
        ([["a", "b"]], pa.list_(pa.string(), 2), ["a|b"]),
        ([["a", "b"]], pa.list_view(pa.string()), ["a|b"]),
        ([None, None], pa.null(), ["", ""]),
    ],
    ids=str,
)
def test_values_of_every_type(values: list[Any], kind: pa.DataType, found: list[str]) -> None:
    frame = frame_of(pa.table({"x": pa.array(values, kind)}), {})
    assert [str(value) for value in column_values(frame["x"], text=False).tolist()] == found


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> str:
    """Write a Parquet file with as many images, and metadata as `datasets` writes them."""
    rows = len(next(iter(columns.values())))
    table = pa.table({"image": pa.array([picture(i) for i in range(rows)], pa.binary()), **columns})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


def labels(path: str) -> list[str | None]:
    source = open_source(path)
    return [source[i].label for i in range(len(source))]


NAMED = {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}


@pytest.mark.parametrize(
    ("values", "kind", "feature", "found"),
    [
        ([0, None, 2], pa.int64(), NAMED, ["cat", None, "owl"]),
        ([-1, 1], pa.int8(), NAMED, [None, "dog"]),
        ([None, None], pa.int64(), NAMED, [None, None]),
        (["x", "y"], pa.string(), NAMED, ["x", "y"]),
        (["dog", None], pa.large_string(), NAMED, ["dog", None]),
        ([0.0, None, 2.0], pa.float64(), NAMED, ["cat", None, "owl"]),
        ([-1.0, float("nan")], pa.float32(), NAMED, [None, None]),
        ([[0, 1], [], None], pa.list_(pa.int64()), {"_type": "Sequence", "feature": NAMED}, ["cat|dog", "|", None]),
        ([[2]], pa.list_(pa.int64()), {"_type": "List", "feature": NAMED}, ["owl"]),
        ([[2]], pa.large_list(pa.int64()), {"_type": "LargeList", "feature": NAMED}, ["owl"]),
        ([[1, 2]], pa.list_(pa.int64()), [NAMED], ["dog|owl"]),
        ([1, 0], pa.uint8(), {"_type": "ClassLabel", "num_classes": 2}, ["1", "0"]),
        ([3, 4], pa.int64(), {"_type": "Value", "dtype": "int64"}, ["3", "4"]),
        ([3, None], pa.int64(), None, ["3", None]),
        ([True, False], pa.bool_(), None, ["True", "False"]),
        ([0.1], pa.float32(), None, ["0.1"]),
    ],
    ids=str,
)
def test_labels_keep_their_names(values: list[Any], kind: Any, feature: Any, found: list[Any], tmp_path: Path) -> None:
    column = {"label": pa.array(values, kind)}
    assert labels(write(tmp_path / "a", column, feature and {"label": feature})) == found


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"label": pa.array([0, 3])}, {"label": NAMED})
    with pytest.raises(SourceError, match=r"labels from 0 to 2 in column 'label'.*found 3"):
        open_source(path)


@pytest.mark.parametrize("values", [["1", "dog"], [1.5, 0.0]])
def test_a_label_that_datasets_takes_for_another_is_refused(values: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"label": pa.array(values)}, {"label": NAMED})
    with pytest.raises(SourceError, match=r"in column 'label'.*found '?1.*: write the table again"):
        open_source(path)


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"label": pa.array([0])}, {"label": {"_type": "ClassLabel", "names": ["a", "b", "a"]}})
    with pytest.raises(SourceError, match="class names that differ, found 'a' twice"):
        open_source(path)


def test_a_value_that_python_has_not_names_its_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"when": pa.array([10**15], pa.timestamp("s"))})
    with pytest.raises(SourceError, match=r"cannot read column 'when' \(.*correct its values"):
        open_source(path)


def test_an_empty_name_in_a_label_set_is_refused(tmp_path: Path) -> None:
    for values in ([[""], ["a"]], [["a", ""], ["b"]]):
        with pytest.raises(SourceError, match="'label' has a list with a missing element"):
            open_source(write(tmp_path / "a", {"label": pa.array(values)}))


def test_labels_are_those_that_datasets_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog", "owl"])
    lists = datasets.Sequence(names)
    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": names, "tags": lists, "n": datasets.Value("uint64")}
    )
    rows = {
        "image": [picture(i) for i in range(3)],
        "label": [2, None, 0],
        "tags": [[0, 2], [], [1]],
        "n": [2**63 - 1, 1, 2],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(tmp_path / "p"))
    source = open_source(str(tmp_path / "p"))
    assert [source[i].label for i in range(3)] == [None if x is None else names.int2str(x) for x in made["label"]]
    assert source.items.columns["tags"].tolist() == ["|".join(names.int2str(x)) or "|" for x in made["tags"]]
    assert source.items.columns["n"].tolist() == list(made["n"])


def test_what_no_column_can_hold_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        {
            "box": pa.array([{"x": 1, "y": 2}]),
            "thumb": pa.array([b"\xff"], pa.binary()),
            "table": pa.array([[[1]]], pa.list_(pa.list_(pa.int8()))),
            "points": pa.array([[{"x": 1}]]),
            "vector": pa.array([[i / 7 for i in range(2000)]]),
            "gap": pa.array([["a", None]]),
            "zero": pa.array(["a\0"]),
            "kept": pa.array([1]),
        },
    )
    source = open_source(f"{path}#image")
    assert list(source.items.columns) == ["kept"]
    assert sorted(skip.reason for skip in source.skipped) == [
        "column 'box': values of several fields", "column 'gap': lists with missing elements",
        "column 'points': lists of values of several fields", "column 'table': lists of lists",
        "column 'thumb': bytes", "column 'vector': long lists", "column 'zero': texts with zero bytes",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[["a", None]], [{"x": 1}], ["a\0b"]])
def test_labels_that_are_no_names_are_refused(values: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"label": pa.array(values)})
    try:
        source = open_source(path)
    except SourceError as error:
        assert "label" in str(error)  # noqa: PT017  # a column that cannot be read as names is named instead
    else:
        assert any("'label'" in skip.reason for skip in source.skipped)


def test_files_whose_columns_differ_lose_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", {"id": pa.array([2**60 + 1]), "label": pa.array([0])}, {"label": NAMED})
    other = {"_type": "ClassLabel", "names": ["owl", "cat"]}
    write(tmp_path / "b", {"label": pa.array([0]), "flag": pa.array([True])}, {"label": other})
    source = open_source(str(tmp_path / "[ab]"))
    assert [source[i].label for i in range(2)] == ["cat", "owl"]
    assert source.items.columns["id"].tolist() == [str(2**60 + 1), ""]
    assert source.items.columns["flag"].tolist() == ["", "True"]


@pytest.mark.parametrize("key", [b"caf\xe9\n.png", "café\n.png"])
def test_keys_may_be_bytes_and_hold_anything(key: Any, tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a", {"key": pa.array([key])}))
    assert bytes(source.items.keys[0]) == (key if isinstance(key, bytes) else key.encode())


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a key in every row, found 1 without"):
        open_source(write(tmp_path / "a", {"key": pa.array(["a", None])}))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array([picture(0)], pa.binary()), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "label", "label"]), tmp_path / "a")
    with pytest.raises(SourceError, match="found 'label' twice"):
        open_source(str(tmp_path / "a"))


def test_metadata_that_are_none_are_no_names() -> None:
    schema = pa.schema([("label", pa.int8())])
    for text in (b"", b"[]", b"{}", b'{"info": {"features": null}}', b'{"info": {"features": {"label": [[]]}}}'):
        assert class_names(schema.with_metadata({"huggingface": text})) == {}


def test_a_frame_of_pandas_is_checked_too() -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [D("1.10"), D("2")], "when": pd.to_datetime(["2020-01-01"] * 2), "b": [b"1", b"2"]})
    kept, out = without_unfit(frame)
    assert [skip.key for skip in out] == ["b"]
    assert column_values(kept["x"], text=False).tolist() == [1.1, 2.0]
    assert column_values(kept["when"], text=False).tolist() == ["2020-01-01 00:00:00"] * 2


def test_an_empty_text_names_no_class(tmp_path: Path) -> None:
    assert labels(write(tmp_path / "a.parquet", {"label": ["", "b", None]})) == [None, "b", None]
    feature = {"label": {"_type": "ClassLabel", "names": ["", "y"]}}
    with pytest.raises(SourceError, match="expected a name for every class of column 'label', found an empty one"):
        open_source(write(tmp_path / "b.parquet", {"label": [0, 1, 1]}, feature))
    assert labels(write(tmp_path / "c.parquet", {"label": [1, 1, -1]}, feature)) == ["y", "y", None]


def test_an_empty_text_is_no_key_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a key in every row, found 1 without"):
        open_source(write(tmp_path / "a.parquet", {"key": ["a", "", "b"]}))
    pq.write_table(pa.table({"path": [""]}), tmp_path / "list.parquet")
    with pytest.raises(SourceError, match="expected a path in every row"):
        open_source(str(tmp_path / "list.parquet"))


def test_a_refusal_names_the_columns_that_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([b"x"]).dictionary_encode(), "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"expected a column 'path' .*, found 'n'; column 'image': bytes: "):
        open_source(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"key": ["0"], "label": [b"x"]}), tmp_path / "labels.parquet")
    with pytest.raises(SourceError, match=r"found 'key'; column 'label': bytes: "):
        open_source(write(tmp_path / "b.parquet", {"key": ["0"]}), labels=str(tmp_path / "labels.parquet"))
