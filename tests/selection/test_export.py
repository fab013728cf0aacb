"""An exported file holds what the cache holds, read by the other library; nothing is half written."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import PipelineError
from pipeline.selection.export import KINDS, export
from tests.cache import synthetic
from tests.cli.run import run_command
from tests.selection.test_selection import make_mixed

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.selection.selection import Selection


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("export") / "c.h5")


@pytest.fixture
def blocks_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.selection.selection.BLOCK_BYTES", 7 * 5 * 4)


def texts(selection: Selection) -> list[str]:
    return [selection.label_names[label] for label in selection.labels]


@pytest.mark.usefixtures("blocks_of_seven")
def test_parquet(path: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    export(path, tmp_path / "a.parquet", "parquet", progress=lambda *counts: seen.append(counts))
    selection, table = pipeline.open(path), pq.read_table(tmp_path / "a.parquet")
    assert table["key"].to_pylist() == selection.keys.tolist()
    assert table["label"].to_pylist() == texts(selection)
    assert table["weight"].to_pylist() == selection.columns["weight"].tolist()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), selection.embeddings)
    assert json.loads(table.schema.metadata[b"spec"]) == selection.spec
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 4
    assert [ready for ready, _, _ in seen] == [0, 7, 14, 21, 24]


@pytest.mark.usefixtures("blocks_of_seven")
def test_csv(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "a.csv", "csv", layer="extra0")
    selection, frame = pipeline.open(path), pd.read_csv(tmp_path / "a.csv")
    assert list(frame.columns) == ["key", "label", "sharp", "split", "weight", "e0", "e1", "e2"]
    assert frame["key"].tolist() == selection.keys.tolist()
    assert frame["label"].tolist() == texts(selection)
    np.testing.assert_array_equal(frame[["e0", "e1", "e2"]].to_numpy().astype(np.float32), selection.layers["extra0"])


@pytest.mark.usefixtures("blocks_of_seven")
def test_npy(path: Path, tmp_path: Path) -> None:
    written = export(path, tmp_path / "a.npy", "npy", split="train", label=("ant", "bee"))
    assert written == [tmp_path / "a.npy", tmp_path / "a.npy.csv"]
    selection = pipeline.open(path).select(split="train", label=["ant", "bee"])
    assert len(selection) == 16
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), selection.embeddings)
    with (tmp_path / "a.npy.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"] for line in lines] == selection.keys.tolist()
    assert set(lines[0]) == {"key", "label", "sharp", "split", "weight"}


def test_h5ad(path: Path, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    export(path, tmp_path / "a.h5ad", "h5ad")
    matrix = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(matrix.X, pipeline.open(path).embeddings)
    whole = synthetic.make_full(tmp_path / "whole.h5", 9, synthetic.make_spec(5, layers=(2,)))  # rows in one piece
    export(whole, tmp_path / "whole.h5ad", "h5ad")
    matrix = anndata.read_h5ad(tmp_path / "whole.h5ad")
    np.testing.assert_array_equal(matrix.obsm["extra0"], pipeline.open(whole).layers["extra0"])


def test_half_precision_keeps_its_numbers(tmp_path: Path) -> None:
    path = synthetic.make_full(tmp_path / "c.h5", 9, synthetic.make_spec(5, dtype="float16"))
    rows = pipeline.open(path).embeddings
    assert rows.dtype == np.float16
    for kind in ("parquet", "npy", "csv"):
        export(path, tmp_path / f"a.{kind}", kind)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)
    table = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float16), rows)
    frame = pd.read_csv(tmp_path / "a.csv")
    np.testing.assert_array_equal(frame[[f"e{i}" for i in range(5)]].to_numpy().astype(np.float16), rows)


def test_nothing_is_half_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(path, tmp_path / "a.npy", "npy")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fill_up(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.selection.export.np.lib.format.write_array_header_1_0", fill_up)
    with pytest.raises(PipelineError, match=r"No space left on device\): free space"):
        export(path, tmp_path / "a.npy", "npy")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_cannot_be_is_said_before_anything_is_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cache.h5").write_bytes(path.read_bytes())
    for output, kind, options, said in (
        (tmp_path, "csv", {}, "found the folder"),
        (tmp_path / "none" / "a.csv", "csv", {}, "expected the folder"),
        (tmp_path / "cache.h5", "parquet", {}, "was not written by this command"),
        (tmp_path / "a.xlsx", "xlsx", {}, "expected a kind of parquet"),
        (tmp_path / "a.csv", "csv", {"label": "dog"}, "found 'dog'"),
        (tmp_path / "a.csv", "csv", {"layer": "extra"}, "did you mean extra0"),
    ):
        with pytest.raises(PipelineError, match=said) as caught:
            export(path, output, kind, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(PipelineError, match="found none"):
        export(pipeline.open(path)[:0], tmp_path / "a.csv", "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["cache.h5"]


def test_the_command(path: Path, tmp_path: Path) -> None:
    for kind in KINDS[:3]:
        output = tmp_path / f"a.{kind}"
        done = run_command("export", str(path), "--to", kind, "-o", str(output), "--label", "ant")
        assert (done.exit_code, done.stdout) == (0, "")
        assert f"{output}" in done.stderr
    assert len(np.load(tmp_path / "a.npy")) == 8
    wrong = run_command("export", str(path), "--to", "csv", "-o", str(output), "--split", "val")
    assert wrong.exit_code == 1
    assert "expected a split of the cache, found 'val'" in wrong.stderr
