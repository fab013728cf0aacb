"""What a user may name, what is refused, and that credentials stay out of everything that is kept or said."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from pipeline import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.errors import SourceError
from pipeline.sources import hdf5, open_source, parquet, public, store
from pipeline.sources.opening import expand_braces
from pipeline.sources.reopen import image_bytes
from pipeline.stages.extract import ExtractSettings, extract
from scripts.source_variants import make_encoded_hdf5, make_folder, make_parquet, make_tars, make_zip
from scripts.trivial_network import trivial_network
from tests.faulty_reader import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS = ExtractSettings(run=RunSettings(workers=1))
IMAGES = {f"{'ant' if i % 2 else 'bee'}/{i}.png": picture(i) for i in range(6)}


@pytest.fixture(autouse=True)
def own_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


# ---- what may be named ----


def test_braces_in_the_order_they_are_written(tmp_path: Path) -> None:
    make_tars(tmp_path, IMAGES, 3)
    source = open_source(str(tmp_path / "shard-{2,0}.tar"))
    assert [source[i].key.partition("/")[0] for i in range(4)] == ["shard-2.tar"] * 2 + ["shard-0.tar"] * 2
    with pytest.raises(SourceError, match=r"cannot read .*shard-3.tar: No such file"):
        open_source(str(tmp_path / "shard-{0..3}.tar"))
    with pytest.raises(SourceError, match="correct the braces"):
        expand_braces("{0..99999}{0..99999}")


def test_a_file_that_is_called_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    make_zip(tmp_path / "odd[1]{2}#3.zip", IMAGES, deflated=True)
    assert len(open_source(str(tmp_path / "odd[1]{2}#3.zip"))) == 6


def test_a_folder_that_is_called_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    folders = {"set[1]": "a.png", "set1": "b.png", "x{1,2}": "c.png", "deep/a*[b]": "d/e.png"}
    for folder, name in folders.items():
        make_folder(tmp_path / folder, {name: picture(0)})
    for pattern, key in (("set[1]/*.png", b"a.png"), ("x{1,2}/*.png", b"c.png"), ("deep/a*[b]/*/*.png", b"d/e.png")):
        source = open_source(str(tmp_path / pattern))
        assert source.items.keys.tolist() == [key]
        assert source.reader()(source.locator(0)) == picture(0)
    assert len(open_source(str(tmp_path / "set[0-9]/*.png"))) == 1
    with pytest.raises(SourceError, match=r"expected files that match .*set\[1\]/\*.gif, found none"):
        open_source(str(tmp_path / "set[1]/*.gif"))


def test_a_column_or_data_set_may_be_named(tmp_path: Path) -> None:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    left, right = [picture(1), picture(2)], [picture(3), picture(4)]
    pq.write_table(pa.table({"left": left, "right": right}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match=r"found 'left', 'right': name it, as in FILE.parquet#COLUMN"):
        open_source(str(tmp_path / "two.parquet"))
    source = open_source(str(tmp_path / "two.parquet") + "#right")
    assert [source.reader()(source.locator(i)) for i in range(2)] == right
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["x/left"] = np.zeros((2, 4, 4), np.uint8)
        file["x/right"] = np.ones((2, 4, 4, 3), np.uint8)
        file["other"] = np.zeros((2, 4))
    with pytest.raises(SourceError, match=r"'x/left \(2, 4, 4\) uint8', 'x/right"):
        open_source(str(tmp_path / "two.h5"))
    source = open_source(str(tmp_path / "two.h5") + "#x/right")
    assert source.reader()(source.locator(1)) == b"P6 4 4 255\n" + bytes([1] * 48)
    assert source.describe()["address"].endswith("two.h5#x/right")


def test_a_mark_in_the_name_of_a_folder_cuts_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path / "run", {"0.png": picture(0)})
    make_folder(tmp_path / "run#2", {"1.png": picture(1), "2.png": picture(2)})
    make_parquet(tmp_path / "run#2" / "x.parquet", IMAGES, hugging_face=True)
    assert open_source(str(tmp_path / "run#2" / "*.png")).items.keys.tolist() == [b"1.png", b"2.png"]
    assert open_source(str(tmp_path / "run#2" / "{2,1}.png")).items.keys.tolist() == [b"1.png", b"2.png"]
    for name in ("x.parquet", "*.parquet", "{x,x}.parquet"):
        assert len(open_source(f"{tmp_path}/run#2/{name}#image")) == 6
    assert open_source(f"memory://{copied(tmp_path / 'run#2')}/*.png").items.keys.tolist() == [b"1.png", b"2.png"]
    with pytest.raises(SourceError, match="found nothing"):
        open_source(str(tmp_path / "run#3"))


def copied(folder: Path) -> str:
    import fsspec

    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/marked/{folder.name}/{path.name}", path.read_bytes())
    return f"marked/{folder.name}"


def test_a_name_of_what_holds_no_columns_is_refused(archive: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "run", IMAGES)
    (tmp_path / "t.csv").write_text("path\nrun/bee/0.png\n")
    for location, found in (
        (archive, "zip"),
        (f"{tmp_path}/run/*/*.png", "an image"),
        (f"{tmp_path}/t.csv", "a table"),
    ):
        with pytest.raises(SourceError, match=f"expected a Parquet or HDF5 file before '#x' in .*, found {found}"):
            open_source(f"{location}#x")


@pytest.mark.parametrize("named", ["a.zip", "*.zip", "{a,b}.zip", "p.parquet", "e.h5", "f/*/*.png", "./f/bee/0.png"])
def test_relative_paths_are_read_from_any_folder(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "odd [x]{1,2}#3"
    here.mkdir()
    for name in ("a.zip", "b.zip"):
        make_zip(here / name, IMAGES, deflated=True)
    make_parquet(here / "p.parquet", IMAGES, hugging_face=True)
    make_encoded_hdf5(here / "e.h5", IMAGES)
    make_folder(here / "f", IMAGES)
    monkeypatch.chdir(here)
    source = open_source(named)
    assert source.describe()["location"] == named
    assert not any(str(tmp_path) in source[i].key for i in range(len(source)))
    read = source.reader()
    expected = [read(source.locator(i)) for i in range(len(source))]
    for cache in (store._handle, parquet._batches, hdf5._dataset):
        cache.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert [read(source.locator(i)) for i in range(len(source))] == expected
    assert set(expected) <= set(IMAGES.values())


def test_a_cache_is_no_source(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", IMAGES)
    with trivial_network():
        extract(str(tmp_path / "images"), tmp_path / "c.h5", SETTINGS)
    with pytest.raises(SourceError, match="found a cache of embeddings"):
        open_source(str(tmp_path / "c.h5"))


def test_rows_of_parquet_without_bytes_fail_alone(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": picture(1), "path": "a"}, {"bytes": None, "path": "b"}, None, {"bytes": picture(2), "path": "d"}]
    pq.write_table(pa.table({"image": rows, "note": ["x", "y" * 300, "z", ""], "n": [1, 2, 3, 4]}), tmp_path / "p")
    source = open_source(str(tmp_path / "p"))
    assert list(source.items.columns) == ["n"]  # a text of 300 characters is no column of a cache
    assert [(skip.key, skip.reason) for skip in source.skipped] == [
        ("note", "column 'note': texts above 256 characters")
    ]
    read = source.reader()
    assert [read(source.locator(0)), read(source.locator(3))] == [picture(1), picture(2)]
    for i in (1, 2):
        with pytest.raises(OSError, match="holds no bytes"):
            read(source.locator(i))


def test_lists_of_text_in_parquet_are_label_sets(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "image": [picture(i) for i in range(3)],
        "label": [["cat", "dog"], [], None],
        "tags": [["a"], ["b", "c"], []],
    }
    pq.write_table(pa.table({**table, "box": [[1.0, 2.0]] * 3}), tmp_path / "p")
    source = open_source(str(tmp_path / "p"))
    assert [source[i].label for i in range(3)] == ["cat|dog", "|", None]
    assert {name: values.tolist() for name, values in source.items.columns.items()} == {
        "tags": ["a", "b|c", "|"],
        "box": ["1.0|2.0"] * 3,
    }


def test_class_names_of_hugging_face(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": pa.array([{"bytes": picture(i), "path": None} for i in range(3)]), "label": [1, 0, 1]})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "p")
    source = open_source(str(tmp_path / "p"))
    assert [source[i].label for i in range(3)] == ["dog", "cat", "dog"]
    assert source[2].key == "00000002"


def test_several_parquet_and_hdf5_files(tmp_path: Path) -> None:
    for part in ("a", "b"):
        make_parquet(tmp_path / f"{part}.parquet", IMAGES, hugging_face=True)
        make_encoded_hdf5(tmp_path / f"{part}.h5", IMAGES)
    for kind in ("parquet", "h5"):
        source = open_source(str(tmp_path / f"*.{kind}"))
        assert len(source) == 12
        assert source[7].key.startswith(f"b.{kind}/")
        assert source.reader()(source.locator(7)) == list(IMAGES.values())[1]
    with pytest.raises(SourceError, match="files of one kind"):
        open_source(str(tmp_path / "*.*"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{tmp}/*.jpg", "expected files that match"),
        ("nosuch://bucket/x", "cannot open nosuch://bucket/x: Protocol not known"),
        ("gs://bucket/x.tar", "embedding-pipeline\\[gcs\\]"),
        ("memory://nothing/here.tar", "cannot read memory:///nothing/here.tar: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    location: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(SourceError, match=message) as caught:
        open_source(location.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


# ---- labels from a side table ----


@pytest.fixture
def archive(tmp_path: Path) -> str:
    make_zip(tmp_path / "a.zip", IMAGES, deflated=False)
    return str(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_side_table_tells_labels_and_more(kind: str, archive: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "key": ["ant/1.png", "bee/0.png", "gone.png"],
            "label": ["worker", "queen", "drone"],
            "split": ["test", "train", "train"],
            "age": [3, 4, 5],
        }
    )
    frame.to_csv(tmp_path / "t", index=False) if kind == "csv" else frame.to_parquet(tmp_path / "t")
    source = open_source(archive, labels=str(tmp_path / "t"))
    assert {source[i].key: source[i].label for i in range(2)} == {"bee/0.png": "queen", "ant/1.png": "worker"}
    assert [source[i].label for i in range(2, 6)] == [None] * 4
    assert source.items.label_names == ("queen", "worker")
    assert source.items.columns["split"].tolist() == ["train", "test", "", "", "", ""]
    assert np.array_equal(source.items.columns["age"], [4, 3, *[np.nan] * 4], equal_nan=True)
    assert [(skip.key, skip.reason) for skip in source.skipped] == [("gone.png", "in the table of labels only")]


def test_a_side_table_tells_label_sets_and_leaves_long_texts_out(archive: str, tmp_path: Path) -> None:
    keys = ["ant/1.png", "bee/0.png", "k" * 300]
    frame = pd.DataFrame({"key": keys, "label": [["cat", "dog"], ["cat"], []], "caption": ["a", "b" * 257, ""]})
    frame.to_parquet(tmp_path / "t")
    source = open_source(archive, labels=str(tmp_path / "t"))
    assert source.items.label_names == ("cat", "cat|dog")
    assert list(source.items.columns) == []
    assert [(skip.key, skip.reason) for skip in source.skipped] == [
        ("caption", "column 'caption': texts above 256 characters"),
        ("k" * 300, "in the table of labels only"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nx,y\n", "expected a column 'key' and others"),
        ("key\nbee/0.png\n", "expected a column 'key' and others"),
        ("key,label\nbee/0.png,a\nbee/0.png,b\n", "found 'bee/0.png' more than once"),
        ("key,label\n0.png,a\n", "such as 'bee/0.png', found '0.png'"),
        ("key,label\n", "found 'none'"),
    ],
)
def test_side_tables_that_do_not_fit_are_refused(text: str, message: str, archive: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        open_source(archive, labels=str(tmp_path / "t.csv"))


def test_other_labels_relabel_the_cache_and_compute_nothing(archive: str, tmp_path: Path) -> None:
    with trivial_network():
        extract(archive, tmp_path / "c.h5", SETTINGS)
        (tmp_path / "t.csv").write_text("key,label\nbee/0.png,wasp\n")
        summary = extract(archive, tmp_path / "c.h5", replace(SETTINGS, labels=str(tmp_path / "t.csv")))
    assert summary.computed == 0
    assert summary.changes["relabelled"] == 6
    assert open_cache(tmp_path / "c.h5").label_names == ("wasp",)


def test_an_archive_made_again_with_one_other_image_computes_that_one(archive: str, tmp_path: Path) -> None:
    with trivial_network():
        extract(archive, tmp_path / "c.h5", SETTINGS)
        make_zip(tmp_path / "a.zip", {**IMAGES, "bee/2.png": picture(77)}, deflated=True)
        summary = extract(archive, tmp_path / "c.h5", SETTINGS)
    assert (summary.computed, summary.changes["changed"], summary.changes["unchanged"]) == (1, 1, 5)


# ---- credentials ----


class _Handler(BaseHTTPRequestHandler):
    """Serves one file by range to those who bring the signature."""

    def __init__(self, body: bytes, *given: object) -> None:
        self.body = body
        super().__init__(*given)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "Signature=s3cr3t" not in self.path:
            self.send_error(403)
            return
        first, last = 0, len(self.body) - 1
        if wanted := self.headers.get("Range"):
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop or last), last)
        body = self.body[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.body)}")
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *given: object) -> None:
        return


@contextmanager
def serving(body: bytes) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, body)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def server(archive: str) -> Iterator[str]:
    from pathlib import Path

    with serving(Path(archive).read_bytes()) as host:
        yield f"{host}/a.zip"


def test_a_signed_url_is_read_and_its_signature_is_kept_nowhere(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with trivial_network():
        summary = extract(f"{server}?Signature=s3cr3t", tmp_path / "c.h5", SETTINGS, say=said.append)
    assert (summary.computed, summary.failed) == (6, 0)
    assert open_cache(tmp_path / "c.h5").source == {"kind": "zip", "location": server, "address": server}
    with pytest.raises(SourceError) as caught:
        open_source(f"{server}?Signature=wr0ng")
    assert "wr0ng" not in str(caught.value)
    assert image_bytes(open_cache(tmp_path / "c.h5"), 0) is None  # 403 without its signature
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) >= 3
    assert not any(b"s3cr3t" in data for data in kept)
    assert not any("s3cr3t" in text for text in (*said, *capfd.readouterr()))


def test_no_signature_is_in_the_keys_of_several_archives(server: str, tmp_path: Path) -> None:
    said: list[str] = []
    with trivial_network():
        shards = server.replace("a.zip", "{1..2}.zip?Signature=s3cr3t")
        summary = extract(shards, tmp_path / "c.h5", SETTINGS, say=said.append)
    assert (summary.computed, summary.failed) == (12, 0)
    assert open_cache(tmp_path / "c.h5").keys[::6].tolist() == ["1.zip/bee/0.png", "2.zip/bee/0.png"]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"s3cr3t" in data for data in kept)
    assert not any("s3cr3t" in text for text in said)


@pytest.mark.parametrize("table", [False, True])
def test_no_signature_is_in_the_keys_of_images(table: bool, tmp_path: Path) -> None:
    with serving(picture(1)) as host, trivial_network():
        images = f"{host}/x/img{{1..3}}.png?Signature=s3cr3t&more=a.b/c"
        if table:
            images = str(tmp_path / "t.csv")
            (tmp_path / "t.csv").write_text(
                "path\n" + "".join(f"{host}/x/img{i}.png?Signature=s3cr3t\n" for i in (1, 2, 3))
            )
        summary = extract(images, tmp_path / "c.h5", SETTINGS)
    before = f"{host}/x/" if table else ""
    assert open_cache(tmp_path / "c.h5").keys.tolist() == [f"{before}img{i}.png" for i in (1, 2, 3)]
    assert (summary.computed, summary.failed) == (3, 0)
    assert b"s3cr3t" not in (tmp_path / "c.h5").read_bytes()


@pytest.mark.parametrize("table", [False, True])
def test_urls_that_differ_in_their_query_only_are_refused(table: bool, tmp_path: Path) -> None:
    with serving(picture(1)) as host:
        images = f"{host}/img.png?id={{1..2}}&Signature=s3cr3t"
        if table:
            images = str(tmp_path / "t.csv")
            (tmp_path / "t.csv").write_text("path\n" + "".join(f"{host}/img.png?id={i}&s=s3cr3t\n" for i in (1, 2)))
        with pytest.raises(SourceError, match=r"differ before their query, .* found http://.*/img.png with") as caught:
            open_source(images)
    assert "s3cr3t" not in str(caught.value)


def test_a_side_table_may_name_signed_urls(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\nhttps://h/1.png?sig=s3cr3t\n")
    (tmp_path / "l.csv").write_text("key,label\nhttps://h/1.png?sig=0ther,cat\nhttps://h/2.png?sig=0ther,dog\n")
    source = open_source(str(tmp_path / "t.csv"), labels=str(tmp_path / "l.csv"))
    assert (source[0].key, source[0].label) == ("https://h/1.png", "cat")
    assert [skip.key for skip in source.skipped] == ["https://h/2.png"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ftp://me:p%40ss@host/x{1..2}.tar", "ftp://host/x{1..2}.tar"),
        ("403, message='Forbidden', url='https://h/a?X-Amz-Credential=k&X-Amz-Signature=s'", "403, message='Forbidden', url='https://h/a'"),
        ("s3://bucket/a?versionId=3#column", "s3://bucket/a#column"),
        ("plain/file?.png", "plain/file?.png"),
        ("https://u:p@ss@h/a", "https://h/a"),
        ("https://h/my file.jpg?sig=a'b) c#d", "https://h/my file.jpg#d"),
    ],
)  # fmt: skip
def test_what_may_be_shown_of_a_url(given: str, shown: str) -> None:
    assert public(given) == shown
