"""Names of any bytes pass through the verbs, and are found again by what the verbs wrote."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.cache import CacheWriter, open_cache
from pipeline.cache.failures import append_reasons
from pipeline.cache.merge import merge
from pipeline.core.items import ItemTable, Status
from pipeline.core.names import name_form
from pipeline.fitting.run_folder import write_json
from pipeline.sources.label_table import with_labels
from tests.cache import synthetic
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [
    "plain.png", "two\nlines.png", "three\tfields.png", "caf\udce9.png", "cafe\u0301.png", "\u05d0\u05d1 \u202e.png",
    "x" * 900 + ".png", 'a "quote", a comma; a bar|.png', "back\\slash.png", "\r.png", "\u2028\x85\x1b.png",
    " space .png",
]  # fmt: skip


def items_of(names: list[str]) -> ItemTable:
    plain = synthetic.make_items(len(names), labels=[f"class {i % 2}\udcff" for i in range(len(names))])
    keys = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
    return ItemTable(keys, plain.labels, ("a\udcff", "b\n"), plain.sizes, plain.mtimes_ns, {})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_full(tmp_path_factory.mktemp("names") / "c.h5", items_of(NAMES))


def test_lists_have_a_line_for_each_name_and_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = synthetic.make_cache(tmp_path / "f.h5", items_of(NAMES))
    writer = CacheWriter(path)
    for row in range(len(NAMES)):
        writer.fail(row, Status.CORRUPT)
    writer.close()
    append_reasons(path, [(name, f"bad\nreason of {name}") for name in NAMES])
    lines = run_command("info", "--failed", path).stdout.splitlines()
    assert len(lines) == len(NAMES)
    listed = [line.split("\t") for line in lines]
    assert {len(cells) for cells in listed} == {2}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{k}\n" for k, _ in listed).encode())))
    found = run_command("search", cache, "-", "-k", "1")
    assert found.exit_code == 0, found.stderr
    answers = list(csv.DictReader(io.StringIO(found.stdout, newline="")))
    assert [row["query"] for row in answers] == [key for key, _ in listed]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_exported_tables_label_the_same_images_again(kind: str, tmp_path: Path, cache: Path) -> None:
    table = tmp_path / f"t.{kind}"
    done = run_command("select", cache, "--all", "-k", len(NAMES), "-o", table)
    assert done.exit_code == 0, done.stderr
    if kind == "csv":
        keys = [row["key"] for row in csv.DictReader(io.StringIO(table.read_bytes().decode(), newline=""))]
    else:
        keys = pq.read_table(table)["key"].to_pylist()
    assert sorted(map(name_form, keys)) == sorted(map(name_form, NAMES))
    with_all, out = with_labels(items_of(NAMES), str(table))
    assert out == []
    assert np.sort(with_all.columns["rank"]).tolist() == list(range(1, len(NAMES) + 1))
    joined = pipeline.open(cache).join(table, columns=["rank"])
    assert joined.unmatched == (0, 0)
    assert joined.columns["rank"].tolist() == with_all.columns["rank"].tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_exports_hold_every_name(kind: str, tmp_path: Path, cache: Path) -> None:
    assert run_command("export", cache, "--to", kind, "-o", tmp_path / f"e.{kind}").exit_code == 0
    joined = pipeline.open(cache).join(tmp_path / f"e.{kind}", columns=["e0"] if kind == "csv" else ["key"][:0])
    assert joined.unmatched == (0, 0)


def test_merged_caches_hold_the_same_bytes(tmp_path: Path, cache: Path) -> None:
    synthetic.make_full(tmp_path / "d.h5", items_of(["another.png"]))
    merge([cache, tmp_path / "d.h5"], tmp_path / "e.h5")
    assert open_cache(tmp_path / "e.h5").keys.tolist() == [*NAMES, "another.png"]


def test_pages_info_and_json_are_utf_8(tmp_path: Path, cache: Path) -> None:
    page = tmp_path / "p.html"
    assert run_command("search", cache, NAMES[3], "-o", tmp_path / "s.csv", "--page", page).exit_code == 0
    assert r"caf\xe9.png" in page.read_text("utf-8")
    assert r"caf\xe9.png" in (tmp_path / "s.csv").read_text("utf-8")
    write_json(tmp_path / "r.json", {"class_names": ["a\udcff", "é"]})
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["class_names"] == ["a\udcff", "é"]


def test_errors_are_one_line_whatever_names_hold(tmp_path: Path) -> None:
    ran = run_command("info", tmp_path / "two\nlines.h5")
    assert ran.exit_code == 1
    assert len(ran.stderr.splitlines()) == 1
