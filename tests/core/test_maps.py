"""A map stays that of its file, and says whether a file that is open is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.maps import is_file_of, map_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_map_knows_its_file_from_another_of_the_same_name(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"first")
    other.write_bytes(b"other")
    with path.open("rb") as file:
        mapped = map_file(file)
        assert is_file_of(mapped, file)
    other.replace(path)
    assert mapped.tobytes() == b"first"
    with path.open("rb") as file:
        assert not is_file_of(mapped, file)
