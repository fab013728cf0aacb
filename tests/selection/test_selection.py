"""Rows of a cache, chosen and joined: held against NumPy on the whole arrays."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.cache import CacheWriter, open_cache
from pipeline.core.items import ItemTable
from pipeline.errors import CacheError, PipelineError, SourceError
from pipeline.selection.selection import BLOCK_BYTES, Selection, Unmatched
from tests.cache import synthetic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COUNT = 30


def make_mixed(path: Path) -> Path:
    """Lay out 30 rows of three classes and two splits; every seventh failed, the last two are to do."""
    items = synthetic.make_items(COUNT, labels=[("ant", "bee", "cat")[i % 3] for i in range(COUNT)])
    split = np.array(["train", "train", "test"] * (COUNT // 3))
    items = ItemTable(**{**{n: getattr(items, n) for n in ItemTable.__dataclass_fields__},
                     "columns": {**items.columns, "split": split, "sharp": np.arange(COUNT) % 2 == 0}})  # fmt: skip
    synthetic.make_cache(path, items, synthetic.make_spec(5, layers=(3,)))
    writer = CacheWriter(path)
    good = np.array([row for row in range(COUNT - 2) if row % 7])
    synthetic.write_rows(writer, good)
    for row in range(0, COUNT - 2, 7):
        writer.fail(row, 4)
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("selection") / "c.h5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_full(tmp_path_factory.mktemp("selection") / "whole.h5", COUNT)


def test_only_done_rows_unless_asked(path: Path) -> None:
    cache, done = open_cache(path), pipeline.open(path)
    expected = np.flatnonzero(cache.status == 1)
    assert done.rows.tolist() == expected.tolist()
    assert len(done) == len(expected) == 24
    np.testing.assert_array_equal(done.embeddings, cache.embeddings[expected])
    np.testing.assert_array_equal(done.layers["extra0"], cache.layers["extra0"][expected])
    assert done.keys.tolist() == cache.keys[expected].tolist()
    assert done.labels.tolist() == cache.labels[expected].tolist()
    assert set(done.columns) == {"weight", "split", "sharp"}
    for name, values in cache.columns.items():
        assert done.columns[name].tolist() == values[expected].tolist()
    np.testing.assert_array_equal(done.content_hash, cache.content_hash[expected])
    assert (done.width, done.spec, done.fingerprint) == (5, cache.spec, cache.fingerprint)
    assert pipeline.open(path, status="all").rows.tolist() == list(range(COUNT))
    assert done.select(status="failed").rows.tolist() == list(range(0, COUNT - 2, 7))
    assert done.select(status="corrupt").rows.tolist() == list(range(0, COUNT - 2, 7))
    assert done.select(status="todo").rows.tolist() == [COUNT - 2, COUNT - 1]
    assert done.select(status="failed").select(label="ant").rows.tolist() == [0, 21]


def test_rows_that_follow_each_other_are_not_copied(path: Path, whole: Path) -> None:
    selection = pipeline.open(whole)
    for rows in (selection, selection[3:9], selection.select(rows=range(4, 8)), selection[np.arange(30) > 20]):
        assert np.shares_memory(rows.embeddings, selection.cache.embeddings)
        assert not rows.embeddings.flags.writeable
    scattered = pipeline.open(path)
    assert not np.shares_memory(scattered.embeddings, scattered.cache.embeddings)
    assert scattered.embeddings is scattered.embeddings  # gathered once


Choice = st.one_of(
    st.tuples(st.just("label"), st.lists(st.sampled_from(["ant", "bee", "cat"]), min_size=1)),
    st.tuples(st.just("split"), st.sampled_from(["train", "test"])),
    st.tuples(st.just("rows"), st.lists(st.integers(0, COUNT - 1))),
    st.tuples(st.just("status"), st.sampled_from(["done", "failed", "todo", "all"])),
    st.tuples(st.just("index"), st.tuples(*[st.one_of(st.none(), st.integers(-40, 40))] * 2)),
)


@settings(deadline=None)  # the first call opens the file
@given(choices=st.lists(Choice, max_size=4))
def test_choosing_in_turn_agrees_with_numpy(path: Path, choices: list[tuple[str, Any]]) -> None:
    cache, selection = open_cache(path), pipeline.open(path)
    codes = {"done": cache.status == 1, "failed": cache.status > 1, "todo": cache.status == 0, "all": cache.status >= 0}
    candidates, status = list(range(COUNT)), "done"
    for what, value in choices:
        if what == "index":
            candidates = [row for row in candidates if codes[status][row]][slice(*value)]
            selection = selection[slice(*value)]
            continue
        if what == "label":
            candidates = [row for row in candidates if cache.label_names[cache.labels[row]] in value]
        elif what == "split":
            if value not in {str(cache.columns["split"][row]) for row in candidates}:
                with pytest.raises(PipelineError, match="split"):
                    selection.select(split=value)
                return
            candidates = [row for row in candidates if cache.columns["split"][row] == value]
        elif what == "rows":
            candidates = [row for row in value if row in candidates]
        else:
            status = value
        selection = selection.select(**{what: value})
    expected = [row for row in candidates if codes[status][row]]
    assert selection.rows.tolist() == expected
    np.testing.assert_array_equal(selection.embeddings, cache.embeddings[np.array(expected, dtype=np.int64)])
    assert selection.keys.tolist() == [cache.keys[row] for row in expected]


def test_what_is_not_there_is_said_in_one_line(path: Path, whole: Path) -> None:
    selection = pipeline.open(path)
    for wrong, said in (
        ({"label": "bea"}, "did you mean bee"),
        ({"split": "tests"}, "did you mean test"),
        ({"status": "don"}, "did you mean done"),
        ({"rows": [COUNT]}, "row numbers from 0 to 29"),
        ({"rows": [True] * COUNT}, "index the selection itself"),
    ):
        with pytest.raises(PipelineError, match=said) as caught:
            selection.select(**wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(PipelineError, match="found weight: extract from train/"):
        pipeline.open(whole).select(split="train")
    with pytest.raises(PipelineError, match="no labels"):
        pipeline.open(whole).select(label="ant")
    with pytest.raises(PipelineError, match="did you mean extra0"):
        selection.to_arrow("extra")


def test_join_adds_columns_by_key(path: Path, tmp_path: Path) -> None:
    selection = pipeline.open(path)
    keys = selection.keys.tolist()
    frame = pd.DataFrame({"key": ["stranger", *keys[::-1][:-4]]})
    frame["age"] = np.arange(len(frame))
    frame["site"] = [f"s{i}" for i in range(len(frame))]
    frame["wet"] = True
    expected = {key: i for i, key in enumerate(frame["key"])}
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    said: list[str] = []
    for table in (
        frame,
        frame.set_index("key"),
        pa.Table.from_pandas(frame),
        tmp_path / "t.csv",
        str(tmp_path / "t.parquet"),
    ):
        joined = selection.join(table, say=said.append)
        assert joined.unmatched == Unmatched(rows=4, lines=1)
        ages = joined.columns["age"]
        assert np.isnan(ages[:4]).all()
        assert ages[4:].tolist() == [expected[key] for key in keys[4:]]
        assert joined.columns["site"].tolist() == [""] * 4 + [f"s{expected[key]}" for key in keys[4:]]
        assert joined.columns["wet"].tolist() == [""] * 4 + ["True"] * 20
        assert joined.embeddings.tolist() == selection.embeddings.tolist()
    assert set(said) == {"4 of 24 rows have no line in the table, 1 of its 21 lines no row"}
    # the columns follow their rows, whatever is chosen afterwards
    chosen = joined.select(label=["ant", "cat"])[::-2]
    for key, age in zip(chosen.keys.tolist(), chosen.columns["age"].tolist(), strict=True):
        assert age == expected[key] if key in expected else np.isnan(age)
    assert "age" not in selection.columns


def test_join_on_a_column_and_types(path: Path) -> None:
    selection = pipeline.open(path)
    sizes = pd.DataFrame({"split": ["train", "test"], "rank": [1, 2], "good": [True, False]})
    joined = selection.join(sizes, on="split")
    assert joined.unmatched == Unmatched(0, 0)
    assert joined.columns["rank"].dtype == np.int64
    assert joined.columns["good"].dtype == np.bool_
    assert joined.columns["rank"].tolist() == [1 if split == "train" else 2 for split in selection.columns["split"]]
    renamed = selection.join(pd.DataFrame({"path": selection.keys, "size": 1}), on="path")
    assert renamed.columns["size"].tolist() == [1] * 24
    mapped = pd.DataFrame({"key": selection.keys, "label": "ant", "x": 1.5, "y": 2.5})
    assert selection.join(mapped, columns=["y"]).columns["y"].tolist() == [2.5] * 24
    assert "x" not in selection.join(mapped, columns=["y"]).columns
    with pytest.raises(SourceError, match="did you mean x"):
        selection.join(mapped, columns=["xs"])
    split_of = pd.DataFrame({"key": selection.keys, "fold": np.arange(24) % 2})
    assert len(selection.join(split_of)[selection.join(split_of).columns["fold"] == 1]) == 12


def test_join_refuses_what_would_be_wrong(path: Path, tmp_path: Path) -> None:
    selection = pipeline.open(path)
    keys = selection.keys[:2].tolist()
    for table, said in (
        (pd.DataFrame({"key": [keys[0], keys[0]], "a": 1}), r"found 'class\d/.*' more than once"),
        (pd.DataFrame({"name": keys}), "expected a column 'key'"),
        (pd.DataFrame({"key": keys, "weight": 1}), "'weight', which is taken"),
        (pd.DataFrame({"key": keys, "label": 1}), "'label', which is taken"),
        (pd.DataFrame({"key": [1, 2], "a": 1}), "look like 'class0/000000.png' and in the table like '1'"),
        (pd.DataFrame([[keys[0], 1, 2]], columns=["key", "a", "a"]), "found 'a' twice"),
        (pd.DataFrame({"key": keys, 1: 1, "1": 2}), "found '1' twice"),
        (pa.table([[keys[0]], [1], [2]], names=["key", "a", "a"]), "found 'a' twice"),
        (tmp_path / "none.csv", "cannot read the table"),
    ):
        with pytest.raises(SourceError, match=said) as caught:
            selection.join(table)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="'key' besides 'path'"):
        selection.join(pd.DataFrame({"path": keys, "key": 1}), on="path")


def with_columns(path: Path, names: list[str], **columns: NDArray[Any]) -> Selection:
    """Open a complete cache of these keys and columns."""
    items = dataclasses.replace(synthetic.make_items(names), columns=columns)
    return pipeline.open(synthetic.make_full(path, items))


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""])
def test_a_missing_key_is_no_image(tmp_path: Path, missing: object) -> None:
    selection = with_columns(tmp_path / "c.h5", ["nan", "None", "<NA>", "a"])
    joined = selection.join(pd.DataFrame({"key": [missing, "a", missing], "age": [1.0, 2.0, 3.0]}))
    assert joined.unmatched == Unmatched(rows=3, lines=2)
    assert joined.columns["age"].tolist()[3] == 2
    assert np.isnan(joined.columns["age"][:3]).all()


def test_missing_values_of_a_column_match_none(tmp_path: Path) -> None:
    groups, sites = np.array([3.0, np.nan, 4.0]), np.array(["x", "", "y"])
    selection = with_columns(tmp_path / "c.h5", ["a", "b", "c"], group=groups, site=sites)
    by_group = selection.join(pd.DataFrame({"group": [np.nan, 4, 3], "age": [1, 2, 3]}), on="group")
    by_site = selection.join(pd.DataFrame({"site": ["", "y", "x"], "age": [1, 2, 3]}), on="site")
    for joined in (by_group, by_site):
        assert joined.unmatched == Unmatched(rows=1, lines=1)
        np.testing.assert_array_equal(joined.columns["age"], [3, np.nan, 2])


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_whole_numbers_are_matched_exactly(tmp_path: Path, kind: str) -> None:
    numbers = (1 << 62) + np.arange(3, dtype=kind)
    selection = with_columns(tmp_path / "c.h5", ["a", "b", "c"], post=numbers)
    joined = selection.join(pd.DataFrame({"post": [float(1 << 62)], "age": [7]}), on="post")
    np.testing.assert_array_equal(joined.columns["age"], [7, np.nan, np.nan])


def test_lists_of_a_table_are_the_label_sets_of_a_column(tmp_path: Path) -> None:
    selection = with_columns(tmp_path / "c.h5", ["a", "b"], tags=np.array(["x|y", "x"]))
    joined = selection.join(pd.DataFrame({"tags": [["x"], ["x", "y"]], "age": [1, 2]}), on="tags")
    assert joined.columns["age"].tolist() == [2, 1]


def test_columns_are_asked_for_in_any_way(path: Path) -> None:
    selection = pipeline.open(path)
    table = pd.DataFrame({"key": selection.keys, "age": 1})
    for columns in (["key", "age"], ["age", "age"]):
        assert selection.join(table, columns=columns).columns["age"].tolist() == [1] * 24


def test_an_empty_list_chooses_nothing(path: Path) -> None:
    selection = pipeline.open(path)
    choices: list[Any] = [[], np.array([]), pd.Index([]), np.zeros(24, dtype=bool), slice(0)]
    for nothing in choices:
        assert selection[nothing].embeddings.shape == (0, 5)
        assert selection[nothing].to_pandas().shape[0] == selection[nothing].to_arrow().num_rows == 0
    with pytest.raises(IndexError):
        selection[[0.5]]


def test_blocks_are_the_selection_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = pipeline.open(path)
    assert len(list(selection.blocks())) == 1
    monkeypatch.setattr("pipeline.selection.selection.BLOCK_BYTES", 7 * selection.width * 4)
    pieces = list(selection.blocks())
    assert [len(piece) for piece in pieces] == [7, 7, 7, 3]
    np.testing.assert_array_equal(np.concatenate([piece.embeddings for piece in pieces]), selection.embeddings)
    assert BLOCK_BYTES > 1 << 20


def test_what_is_pickled_is_where_it_lies(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "c.h5"
    copy.write_bytes(path.read_bytes())
    selection = pipeline.open(copy).join(pd.DataFrame({"key": pipeline.open(copy).keys, "age": 3}))[2:]
    data = pickle.dumps(selection)
    assert len(data) < 5000
    again: Selection = pickle.loads(data)
    np.testing.assert_array_equal(again.embeddings, selection.embeddings)
    assert again.columns["age"].tolist() == [3] * 22
    copy.unlink()
    synthetic.make_full(copy, 40)
    with pytest.raises(CacheError, match="another in its place"):
        pickle.loads(data)


def test_what_is_pickled_in_another_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.make_full(tmp_path / "a.h5", synthetic.make_items(["a", "b"]))
    synthetic.make_full(tmp_path / "b.h5", synthetic.make_items(["c"]))
    monkeypatch.chdir(tmp_path)
    selections = [pipeline.open("a.h5"), pipeline.open("?.h5")[::-1]]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for selection in selections:
        again: Selection = pickle.loads(pickle.dumps(selection))
        np.testing.assert_array_equal(again.embeddings, selection.embeddings)


def test_joined_columns_of_long_texts_are_left_out(path: Path) -> None:
    selection = pipeline.open(path)
    table = pd.DataFrame({"key": selection.keys, "caption": ["x" * 257] + ["y"] * 23, "age": 3})
    said: list[str] = []
    joined = selection.join(table, say=said.append)
    assert "caption" not in joined.columns
    assert joined.columns["age"].tolist() == [3] * 24
    assert said[0] == "left out: column 'caption': texts above 256 characters"
    with pytest.raises(SourceError, match="found column 'caption': texts above 256"):
        selection.join(table, columns=["caption"])
