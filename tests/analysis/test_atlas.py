from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from pipeline.analysis.atlas import atlas_command, check_atlas, write_atlas_table
from pipeline.analysis.projection import map_cache
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive


def test_the_table_has_the_map_the_columns_and_the_paths(tmp_path: Path) -> None:
    cache = archive(12, images=False, source={"root": "/pictures"})
    cache.columns = {"split": cache.keys.copy(), "x": cache.labels}
    cache.status[3] = 2
    write_atlas_table(tmp_path / "a.parquet", cache, map_cache(cache, "pca"))
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert table.columns.tolist() == ["key", "label", "x", "y", "split", "column_x", "image"]
    assert (table["split"] == table["key"]).all()
    assert table["image"][0] == "/pictures/0.png"
    assert len(table) == 11


def test_the_options_are_those_of_the_installed_atlas() -> None:
    package = importlib.util.find_spec("embedding_atlas")
    if package is None or package.origin is None:
        pytest.skip("needs embedding-atlas")
    source = Path(package.origin).with_name("cli.py").read_text()
    for option in (word for word in atlas_command("t.parquet") if word.startswith("--")):
        assert f'"{option}"' in source


def test_a_missing_atlas_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AnalysisError, match=r"embedding-pipeline\[explore\]"):
        check_atlas()
