from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.analysis.search import search
from pipeline.errors import AnalysisError, PipelineError
from pipeline.selection.frames import write_table
from tests.analysis.archive import archive

if TYPE_CHECKING:
    from pathlib import Path


def test_a_key_finds_its_nearest_and_not_itself() -> None:
    cache = archive()
    found = search(cache, ["7.png", "0.png"], k=5)
    unit = cache.embeddings / np.linalg.norm(cache.embeddings, axis=1, keepdims=True)
    order = [row for row in np.argsort(-(unit @ unit[7]), kind="stable") if row != 7][:5]
    assert found.rows[0].tolist() == order
    assert found.table["key"][:5].tolist() == [f"{row}.png" for row in order]
    assert found.table["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    assert found.table["label"][0] == cache.label_names[cache.labels[order[0]]]


def test_rows_that_are_not_done_are_neither_found_nor_asked() -> None:
    cache = archive(30)
    first = search(cache, ["0.png"], k=1).rows[0, 0]
    cache.status[first] = 2
    assert first not in search(cache, ["0.png"], k=29).rows
    with pytest.raises(AnalysisError, match="neither"):
        search(cache, [f"{first}.png"])


def test_an_approximate_search_says_its_recall() -> None:
    pytest.importorskip("faiss")
    cache = archive(400)
    found = search(cache, [f"{n}.png" for n in range(0, 400, 7)], k=10, approximate=True)
    exact = search(cache, [f"{n}.png" for n in range(0, 400, 7)], k=10)
    assert found.recall is not None
    assert found.recall > 0.95
    same = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found.rows, exact.rows, strict=True)])
    assert same == pytest.approx(found.recall, abs=0.02)
    assert not (found.rows == found.query_rows[:, None]).any()


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = archive(10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    for queries, further in (
        (["nothing.png"], {}),
        (["1.png"], {"approximate": True}),
        (["1.png"], {"layer": "penultimat"}),
    ):
        with pytest.raises(PipelineError) as caught:
            search(cache, queries, **further)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_table_keeps_names_that_are_not_utf8_or_spells_them(name: str, tmp_path: Path) -> None:
    import pandas as pd

    cache = archive(10)
    keys: Any = cache.keys.astype(object)
    keys[3] = b"\xff,\n.png".decode("utf-8", "surrogateescape")
    cache.keys = keys
    table = search(cache, [keys[3], "0.png"], k=9).table
    write_table(table, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith("csv"):
        assert '"\\xff,\n.png"' in (tmp_path / name).read_text(encoding="utf-8")
    else:
        back = pd.read_parquet(tmp_path / name)
        assert "\\udcff,\n.png" in back["key"].tolist() or "\\xff,\n.png" in back["key"].tolist()
        assert np.allclose(back["cosine"], table["cosine"])
    with pytest.raises(AnalysisError):
        write_table(table, tmp_path / "none" / name)
