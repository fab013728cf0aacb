"""The index of an archive is made once, and again when the archive changes or the index is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sources import open_source, tar
from pipeline.sources.archive_index import index_folder
from scripts.source_variants import make_tars
from tests.faulty_reader import picture

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = {f"{i % 2}/{i}.png": picture(i) for i in range(6)}


@pytest.fixture
def walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows with every archive that is walked through."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    make_tars(tmp_path / "tars", IMAGES, 2)
    walked: list[object] = []
    walk = tar._walk

    def count(raw: object, listing: object) -> None:
        walked.append(raw)
        walk(raw, listing)  # type: ignore[arg-type]

    monkeypatch.setattr(tar, "_walk", count)
    return walked


def keys(folder: Path) -> list[bytes]:
    found: list[bytes] = open_source(str(folder / "tars" / "*.tar")).items.keys.tolist()
    return found


def test_it_is_made_once_and_again_for_what_changes(walks: list[object], tmp_path: Path) -> None:
    first = keys(tmp_path)
    assert keys(tmp_path) == first
    assert len(walks) == 2
    make_tars(tmp_path / "other", {"0/x.png": picture(9)}, 1)
    (tmp_path / "other" / "shard-0.tar").replace(tmp_path / "tars" / "shard-1.tar")
    assert keys(tmp_path) == [*first[:3], b"shard-1.tar/0/x.png"]
    assert len(walks) == 3
    assert len(list(index_folder().iterdir())) == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255))
def test_a_damaged_index_is_made_again(walks: list[object], tmp_path: Path, where: float, change: int) -> None:
    right = keys(tmp_path)
    reader = open_source(str(tmp_path / "tars" / "*.tar"))
    path = sorted(index_folder().iterdir())[0]
    whole = path.read_bytes()
    at = int(where * len(whole))
    path.write_bytes(whole[:at] if not change else whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
    assert keys(tmp_path) == right
    again = open_source(str(tmp_path / "tars" / "*.tar"))
    assert [again.locator(i) for i in range(6)] == [reader.locator(i) for i in range(6)]
    path.write_bytes(whole)


def test_where_it_cannot_be_kept_it_is_made_each_time(
    walks: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keys(tmp_path) == keys(tmp_path)
    assert len(walks) == 4


def test_it_never_runs_what_it_reads(walks: list[object], tmp_path: Path) -> None:
    keys(tmp_path)
    path = next(index_folder().iterdir())
    with path.open("wb") as file:
        np.savez(file, of=np.array([print], dtype=object))
    keys(tmp_path)
    assert len(walks) == 3
