"""What other libraries get is what the file holds."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import pipeline
from pipeline.cache import CacheWriter
from pipeline.core.items import ItemTable
from pipeline.errors import PipelineError
from pipeline.selection.export import export
from tests.cache import synthetic
from tests.selection.test_selection import make_mixed

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.selection.selection import Selection


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    return pipeline.open(make_mixed(tmp_path_factory.mktemp("convert") / "c.h5"))


def label_texts(selection: Selection) -> list[str]:
    return [selection.label_names[label] for label in selection.labels]


def test_pandas(selection: Selection) -> None:
    frame = selection.to_pandas()
    assert frame.index.tolist() == selection.keys.tolist()
    assert list(frame.columns) == ["label", "sharp", "split", "weight", "e0", "e1", "e2", "e3", "e4"]
    assert frame["label"].tolist() == label_texts(selection)
    assert frame["sharp"].dtype == np.bool_
    np.testing.assert_array_equal(frame[["e0", "e1", "e2", "e3", "e4"]].to_numpy(), selection.embeddings)
    assert frame["e0"].dtype == np.float32
    assert list(selection.to_pandas(None).columns) == ["label", "sharp", "split", "weight"]
    everything = selection.select(status="all").to_pandas("extra0")
    assert everything["status"].tolist()[:2] == ["corrupt", "done"]
    assert everything.shape == (30, 8)


def test_arrow(selection: Selection) -> None:
    table = selection.to_arrow()
    assert table.column_names == ["key", "label", "sharp", "split", "weight", "embedding"]
    assert table["label"].to_pylist() == label_texts(selection)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), selection.embeddings)
    assert json.loads(table.schema.metadata[b"spec"]) == selection.spec
    piece = selection[1:3]
    values = piece.to_arrow()["embedding"].chunk(0).flatten().to_numpy()
    assert np.shares_memory(values, selection.cache.embeddings)  # no copy of rows that follow each other


def test_anndata(selection: Selection, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    matrix = selection.to_anndata()
    np.testing.assert_array_equal(matrix.X, selection.embeddings)
    np.testing.assert_array_equal(matrix.obsm["extra0"], selection.layers["extra0"])
    matrix.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert again.obs["label"].tolist() == label_texts(selection)
    assert again.obs_names.tolist() == selection.keys.tolist()
    assert json.loads(again.uns["spec"]) == selection.spec


def test_a_missing_extra_is_named(selection: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(PipelineError, match=r"not installed: pip install 'embedding-pipeline\[analysis\]'"):
        selection.to_anndata()


def test_names_that_are_not_utf8_and_rows_without_label(tmp_path: Path) -> None:
    items = synthetic.make_items(["café.png", "b.png"], labels=["ant", "bee"])
    items = ItemTable(
        np.array(["café.png".encode(), b"\xff.png"]), np.array([1, -1], np.int32), items.label_names,
        items.sizes, items.mtimes_ns, {"note": np.array(["", "\udcfe"])},
    )  # fmt: skip
    selection = pipeline.open(synthetic.make_full(tmp_path / "c.h5", items))
    table = selection.to_arrow()
    assert table["key"].to_pylist() == ["café.png", "\\xff.png"]
    assert table["label"].to_pylist() == ["bee", None]
    assert table["note"].to_pylist() == ["", "\\xfe"]
    frame = selection.to_pandas()
    assert frame.index.tolist() == ["café.png", "\\xff.png"]
    assert frame["label"].isna().tolist() == [False, True]


def collected(loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> dict[tuple[float, ...], int]:
    found: dict[tuple[float, ...], int] = {}
    for rows, labels in loader:
        assert rows.dtype == torch.float32
        assert labels.dtype == torch.int64
        found |= {tuple(row.tolist()): int(label) for row, label in zip(rows, labels, strict=True)}
    return found


def test_torch(selection: Selection) -> None:
    data = selection.to_torch()
    assert isinstance(data, Dataset)
    row, label = data[3]
    assert row.tolist() == selection.embeddings[3].tolist()
    assert int(label) == selection.labels[3]
    row[0] = 7  # a row is the caller's own
    expected = {tuple(map(float, row)): int(k) for row, k in zip(selection.embeddings, selection.labels, strict=True)}
    for loader in (
        data.loader(5, shuffle=True, generator=torch.Generator().manual_seed(1)),
        data.loader(5),
        DataLoader(data, batch_size=5, shuffle=True),
    ):
        assert collected(loader) == expected
    first = next(iter(data.loader(24, shuffle=True, generator=torch.Generator().manual_seed(1))))[1]
    assert first.tolist() != data.labels.tolist()
    assert len(list(data.loader(5, drop_last=True))) == 4
    assert len(pickle.dumps(data)) < 5000
    assert collected(pickle.loads(pickle.dumps(data)).loader(5)) == expected


@pytest.mark.slow
def test_torch_with_workers(selection: Selection) -> None:
    data = selection.to_torch()
    loader = data.loader(5, shuffle=True, num_workers=2, multiprocessing_context="spawn")
    assert collected(loader) == collected(data.loader(24))


def test_columns_called_as_the_tables_own_are_renamed(tmp_path: Path) -> None:
    names = ["key", "label", "status", "embedding", "e0", "e10", "column_key", "edge"]
    columns = {name: np.arange(10) + 10 * i for i, name in enumerate(names)}
    path = synthetic.make_cache(tmp_path / "c.h5", replace(synthetic.make_items(10), columns=columns))
    writer = CacheWriter(path)
    synthetic.write_rows(writer, np.arange(10))
    writer.close()
    selection = pipeline.open(path).select(status="all")
    frame, table = selection.to_pandas().reset_index(), selection.to_arrow()
    shown = ["column_column_key", *(f"column_{name}" for name in names[1:6]), "column_key", "edge"]
    for found in (frame, table.to_pandas()):
        assert found["key"].tolist() == selection.keys.tolist()
        assert [found[name].tolist() for name in shown] == [columns[name].tolist() for name in names]
        assert set(found["status"]) == {"done"}
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), selection.embeddings)
    np.testing.assert_array_equal(frame["e0"], selection.embeddings[:, 0])
    assert len(set(frame.columns)) == len(frame.columns)
    export(path, tmp_path / "x.csv", "csv")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "x.csv")["e0"], selection.embeddings[:, 0], rtol=1e-5)


def test_anndata_writes_columns_of_any_name(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    names = ["a", "a/b", "a_b", "_index", "index", "."]
    columns = {name: np.arange(3) + 10 * i for i, name in enumerate(names)}
    path = synthetic.make_full(tmp_path / "c.h5", replace(synthetic.make_items(3), columns=columns))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(path, tmp_path / "a.h5ad", "h5ad")
    found = anndata.read_h5ad(tmp_path / "a.h5ad").obs
    shown = {"a/b": "column_a_b", "_index": "column__index", ".": "column_."}
    assert [found[shown.get(name, name)].tolist() for name in names] == [columns[name].tolist() for name in names]


def test_anndata_writes_texts_of_pandas_3(selection: Selection, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    newest = int(pd.__version__.split(".")[0]) >= 3
    with contextlib.nullcontext() if newest else pd.option_context("future.infer_string", True):
        selection.to_anndata().write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert again.obs["label"].tolist() == label_texts(selection)
    assert again.obs_names.tolist() == selection.keys.tolist()
    assert again.var["feature"].tolist() == [f"e{i}" for i in range(selection.width)]
