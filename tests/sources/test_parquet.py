"""What a reader of Parquet keeps is bounded by bytes, and memory that runs out is no damage of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import open_source, parquet

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.sources.parquet import _Batches


def write(path: Path, size: int, count: int = 64) -> list[bytes]:
    rng = np.random.default_rng(size)
    images = [rng.bytes(size) for _ in range(count)]
    pq.write_table(pa.table({"image": images}), path, compression="none", use_dictionary=False)
    return images


def test_batches_of_files_that_were_left_are_not_kept(tmp_path: Path) -> None:
    images = [image for i in range(6) for image in write(tmp_path / f"{i}.parquet", (1 << 18) + i)]
    source = open_source(str(tmp_path / "*.parquet"))
    read = source.reader()
    parquet._batches.cache_clear()
    before = pa.total_allocated_bytes()
    assert all(read(source.locator(i)) == image for i, image in enumerate(images))
    assert pa.total_allocated_bytes() - before < len(images) << 18
    parquet._batches.cache_clear()


def test_large_images_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path / "a", 1 << 16)
    source = open_source(str(tmp_path / "a"))
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1 << 18)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1 << 19)
    parquet._batches.cache_clear()
    read = source.reader()
    for i in (*range(64), 5, 4, 63, 0, 31):
        assert read(source.locator(i)) == images[i]
    batches = parquet._batches(source.reader().store, source.reader().files[0], "image")  # type: ignore[attr-defined]
    assert {len(kept) for kept in batches._kept.values()} == {3}  # of 64 KiB, with what Parquet adds, in 256 KiB
    assert sum(kept.nbytes for kept in batches._kept.values()) <= 1 << 19
    parquet._batches.cache_clear()


def test_memory_that_runs_out_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 100, 2)
    source = open_source(str(tmp_path / "a"))

    def row(self: _Batches, group: int, row: int) -> bytes:
        raise pa.ArrowMemoryError("malloc of size 1 failed")

    monkeypatch.setattr(parquet._Batches, "row", row)
    with pytest.raises(MemoryError):
        source.reader()(source.locator(0))


def test_folders_of_a_partitioned_table_are_columns(tmp_path: Path) -> None:
    for folder, rows in (("label=sea%20otter/year=2020", 2), ("label=__HIVE_DEFAULT_PARTITION__/year=007", 1)):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "0.parquet", 10, rows)
    source = open_source(f"{tmp_path}/**/*.parquet")
    assert [source[i].label for i in range(3)] == [None, "sea otter", "sea otter"]
    assert source.items.columns["year"].tolist() == ["007", "2020", "2020"]


def test_a_column_of_the_files_counts_before_their_folders(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / f"label={label}").mkdir()
        pq.write_table(
            pa.table({"image": [b"x"], "label": [f"own {label}"]}), tmp_path / f"label={label}" / "0.parquet"
        )
    source = open_source(f"{tmp_path}/*/*.parquet")
    assert [source[i].label for i in range(2)] == ["own a", "own b"]
