"""Outputs are refused before the work, or written through; nothing is replaced that is not ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import pipeline
from pipeline.core.files import replacing, replacing_folder
from pipeline.core.outputs import check_different, check_file, check_folder, is_own
from pipeline.errors import AnalysisError, PipelineError
from pipeline.selection.export import KINDS, export
from pipeline.selection.frames import write_table
from tests.cache import synthetic

if TYPE_CHECKING:
    from collections.abc import Callable

FOREIGN = {
    "labels.csv": b"path,label\na.png,cat\n",
    "page.html": b"<!doctype html>\n<title>of another program</title>\n",
    "data.parquet": b"PAR1 of another program PAR1",
    "data.h5ad": b"\x89HDF\r\n\x1a\n of another program",
    "rows.npy": b"\x93NUMPY\x01\0",
    "image.png": b"\x89PNG\r\n\x1a\n",
    "text": b"key",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_program_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FOREIGN[name])
    with pytest.raises(AnalysisError, match="exists and was not written by this command: remove it first"):
        check_file(tmp_path / name, AnalysisError)
    assert (tmp_path / name).read_bytes() == FOREIGN[name]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "columns",
    [
        ("query", "rank", "key", "label", "cosine"),
        ("group", "key", "label", "similarity", "how"),
        ("key", "given", "suggested", "quality", "is_issue"),
        ("rank", "key", "label", "score"),
        ("key", "label", "x", "y"),
        ("key", "predicted", "p_a", "p_b", "error"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_our_tables_are_known_again(tmp_path: Path, columns: tuple[str, ...], kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(pd.DataFrame({name: ["x"] for name in columns}), path)
    assert check_file(path) == path
    write_table(pd.DataFrame({name: ["y"] for name in columns}), path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "h5ad"])
def test_our_exports_are_known_again(tmp_path: Path, kind: str) -> None:
    cache = synthetic.make_full(tmp_path / "c.h5", 3)
    export(cache, tmp_path / f"a.{kind}", kind)
    before = (tmp_path / f"a.{kind}").read_bytes()
    export(cache, tmp_path / f"a.{kind}", kind)
    assert (tmp_path / f"a.{kind}").read_bytes() == before


def test_our_anndata_is_known_again(tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    export(synthetic.make_full(tmp_path / "c.h5", 3), tmp_path / "a.h5ad", "h5ad")
    assert is_own(tmp_path / "a.h5ad")
    assert not is_own(tmp_path / "c.h5")  # a cache is ours, but takes hours: no table replaces it


def test_an_empty_file_as_mktemp_makes_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert check_file(tmp_path / "a") == tmp_path / "a"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(("make", "what"), [(make_pipe, "a pipe"), (make_socket, "a socket")])
@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, make: object, what: str, link: bool) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    (tmp_path / "link").symlink_to("x")
    path = tmp_path / ("link" if link else "x")
    mode = path.lstat().st_mode
    with pytest.raises(PipelineError, match=f"expected a file name for the output, found {what}"):
        check_file(path)
    with pytest.raises(PipelineError, match="device or a pipe"), replacing(path):
        pass
    assert path.lstat().st_mode == mode


def test_a_device_is_refused() -> None:
    with pytest.raises(PipelineError, match="found a device at /dev/null"):
        check_file("/dev/null")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/a.csv", "expected the folder .*none"),
        (".", "found the folder"),
        ("a-{shard}.csv", "add --shard I/N"),
        ("s3://bucket/a.csv", "of this machine"),
        ("x" * 250, "File name too long"),
        ("round", "a link that leads nowhere"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("round").symlink_to("round")
    with pytest.raises(PipelineError, match=said):
        check_file(name)
    assert [path.name for path in tmp_path.iterdir()] == ["round"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """As another user, since root may write everywhere."""
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PipelineError, match="Permission denied"):
            check_file(tmp_path / "closed" / "a")
        return
    with pytest.raises(PipelineError, match=r"cannot write /proc/a \("):
        check_file("/proc/a")
    with pytest.raises(PipelineError, match=r"cannot write /proc/a/run"):
        check_folder("/proc/a/run")


def test_a_full_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for check in (check_file, check_folder):
        with pytest.raises(PipelineError, match="No space left on device"):
            check(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    check_different(tmp_path / "a", None, tmp_path / "b")
    with pytest.raises(PipelineError, match="expected different files"):
        check_different(tmp_path / "a", tmp_path / "link")


def test_a_file_is_written_through_a_link_also_where_there_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    link = tmp_path / "a.csv"
    link.symlink_to("large/b.csv")
    for text in ("one", "two"):
        assert check_file(link, replaceable=False) == tmp_path / "large" / "b.csv"
        with replacing(link) as part:
            part.write_text(text)
            assert part.parent == tmp_path / "large"
        assert link.is_symlink()
        assert (tmp_path / "large" / "b.csv").read_text() == text


def test_a_folder_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    link = tmp_path / "run"
    link.symlink_to("large/run")
    for text in ("one", "two"):
        with replacing_folder(check_folder(link)) as part:
            (part / "file").write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "large" / "run" / "file").read_text() == text


VERBS = [
    ("search", "c.h5", "0000.png"),
    ("duplicates", "c.h5", "--no-images"),
    ("check-labels", "c.h5"),
    ("map", "c.h5", "--method", "pca"),
    ("select", "c.h5"),
    ("export", "c.h5", "--to", "csv"),
    ("merge", "c.h5"),
    ("extract", "images"),
    ("predict", "run", "images"),
    ("fit-head", "c.h5"),
]


def test_every_command_refuses_before_it_looks_at_its_input(tmp_path: Path) -> None:
    """No input exists: what is said is about the output."""
    code = """
import sys
from tests.cli.run import run_command
from tests.core.test_outputs import VERBS
for verb in VERBS:
    ran = run_command(*verb, "-o", "pipe")
    error = ran.stderr.splitlines()[-1]
    print(verb[0], ran.exit_code, error.startswith(("error: expected a file name", "error: pipe exists")))
"""
    os.mkfifo(tmp_path / "pipe")
    synthetic.make_full(tmp_path / "c.h5", 3)
    root = str(Path(pipeline.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert ran.stdout == "".join(f"{verb[0]} 1 True\n" for verb in VERBS), ran.stderr


def test_the_array_of_an_export_is_known_by_the_table_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert not is_own(tmp_path / "a.npy")
    (tmp_path / "a.npy.csv").write_text("key,label\n")
    assert is_own(tmp_path / "a.npy")


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "found an empty one"),
        ("~/mine", "found ~ in ~/mine, which no shell replaced"),
        ("x" * 300, "File name too long"),
        ("x" * 250, "File name too long"),
        ("/", "expected"),
        (".", "expected"),
        ("..", "expected"),
    ],
)
def test_a_name_that_no_output_can_have_is_refused(
    check: Callable[[str], Path], name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=said):
        check(name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_named_by_a_tilde_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    assert check_file("~/a.csv") == Path("~/a.csv")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy"])
def test_an_output_may_have_a_name_that_is_not_utf8(kind: str, tmp_path: Path) -> None:
    cache = synthetic.make_full(tmp_path / "c.h5", 3)
    path = tmp_path / os.fsdecode(b"caf\xe9." + kind.encode())
    export(cache, path, kind)
    assert path.stat().st_size
    if kind == "parquet":
        write_table(pd.DataFrame({"key": ["a"]}), path)
        assert is_own(path)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_an_export_of_two_files_refuses_what_is_no_name_of_one(name: str, tmp_path: Path) -> None:
    cache = synthetic.make_full(tmp_path / "c.h5", 3)
    with pytest.raises(PipelineError, match="expected a"):
        export(cache, name, "npy")
