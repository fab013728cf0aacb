"""The commands that ask a cache, on a small one of made-up rows, through the command line itself."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pytest

from tests.cache.synthetic import make_full, make_items, make_spec
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"class{n % 3}/{n:03d}.png" for n in range(60)]
    items = make_items(names, labels=[name[:6] for name in names])
    return make_full(tmp_path_factory.mktemp("cache") / "c.h5", items, make_spec(8, layers=(4,)))


DUPLICATES = "group,key,label,similarity,how"


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("arguments", "columns", "rows"),
    [
        (["search", "{}", "class0/000.png", "class1/001.png", "-k", "4"], "query,rank,key,label,cosine", 8),
        # Two of the made-up rows are equal.
        (["duplicates", "{}", "--no-images", "--threshold", "1"], DUPLICATES, 2),
        (["duplicates", "{}", "--no-images", "--threshold", "1", "--across", "label"], DUPLICATES, 2),
        (["outliers", "{}"], "key,label,why,z,distance,nearest,contrast,sharpness,width,height", 60),
        (["map", "{}", "--method", "pca"], "key,label,x,y", 60),
        (["select", "{}", "--all", "-k", "5", "--method", "k-centre"], "rank,key,label,score", 5),
    ],
)
def test_a_table_goes_to_standard_output_and_messages_do_not(
    arguments: list[str], columns: str, rows: int, path: Path
) -> None:
    done = run_command(*[argument.format(path) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == columns
    assert len(lines(done.stdout)) == rows
    assert done.stderr


def test_queries_may_come_from_standard_input(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "class0/000.png\nclass1/001.png\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
    done = run_command("search", path, "-", "-k", 1)
    assert [line["query"] for line in lines(done.stdout)] == asked.split()


def test_layers_of_one_cache_are_compared(path: Path) -> None:
    done = run_command("compare-caches", str(path))
    assert done.exit_code == 0, done.stderr
    assert "cka" in done.stdout
    assert ":extra0" in done.stdout


def test_what_is_wrong_is_one_line(path: Path, tmp_path: Path) -> None:
    for arguments in (
        ["search", str(path), "nothing.png"],
        ["map", str(path), "--method", "pca", "-o", str(tmp_path / "none" / "m.csv")],
        ["select", str(path)],
        ["compare-caches", str(path), "--layer", "extra0"],
        ["duplicates", str(tmp_path / "none.h5")],
        ["outliers", str(tmp_path / "none.h5")],
    ):
        done = run_command(*arguments)
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert done.stderr.count("error: ") == 1
        assert done.stdout == ""
