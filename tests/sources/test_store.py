"""Bytes by range come from the file that was listed, or not at all."""

from __future__ import annotations

import datetime
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from pipeline.core.items import Changed
from pipeline.sources import range_file
from pipeline.sources import store as store_module
from pipeline.sources.clients import Answer, raise_failed_listings
from pipeline.sources.retries import may_pass
from pipeline.sources.store import File, LocalStore, RemoteStore
from tests.hub_server import Repo, hub_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = "/changing/a.tar"


@pytest.fixture
def remote() -> tuple[RemoteStore, File]:
    fsspec.filesystem("memory").pipe_file(PATH, b"0123456789")
    store = RemoteStore("memory://changing/a.tar")
    return store, store.look(PATH)


def test_a_remote_file_that_was_replaced_before_the_first_read_is_found_out(remote: tuple[RemoteStore, File]) -> None:
    store, file = remote
    fsspec.filesystem("memory").pipe_file(PATH, b"9876543210")
    with pytest.raises(OSError, match="changed after it was listed"):
        store.read(file, 2, 3)


def test_a_remote_file_that_is_replaced_while_it_is_read_is_found_out(remote: tuple[RemoteStore, File]) -> None:
    store, file = remote
    assert store.read(file, 2, 3) == b"234"
    fsspec.filesystem("memory").pipe_file(PATH, b"9876543210")
    for _ in range(2):  # and stays so
        with pytest.raises(Changed):
            store.read(file, 2, 3)


@pytest.mark.parametrize("new", [b"01", None])
def test_a_read_that_fails_looks_at_once(new: bytes | None, remote: tuple[RemoteStore, File]) -> None:
    store, file = remote
    assert store.read(file, 2, 3) == b"234"
    if new is None:
        fsspec.filesystem("memory").rm(PATH)
    else:
        fsspec.filesystem("memory").pipe_file(PATH, new)
    with pytest.raises(OSError, match="no such file" if new is None else "changed after it was listed"):
        store.read(file, 2, 3)


@pytest.fixture
def tagged() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Return the URL of a server whose answers carry a tag of the bytes, and its files, which a test may replace."""
    files = {"/a.tar": b"0123456789"}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            data = files[self.path]
            start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end or len(data)) + 1]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(part)))
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/a.tar", files
        running.shutdown()


def test_an_answer_of_another_version_is_refused_without_another_request(
    tagged: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, files = tagged
    store = RemoteStore(url)
    file = store.look(store.path_of(url))

    def asked_again(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(RemoteStore, "_check", asked_again)
    assert (store.read(file, 2, 3), store.read_all(file), store.head(file, 4)) == (b"234", b"0123456789", b"0123")
    with store.open(file) as opened:
        assert (opened.seek(-3, 2), opened.read(), opened.read()) == (7, b"789", b"")
    for n in range(200):  # of the same length, within a second
        files["/a.tar"] = b"%010d" % n
        with pytest.raises(Changed):
            store.read(file, 2, 3)
        with pytest.raises(Changed):
            store.read_all(file)
        with pytest.raises(Changed):
            store.open(file).read(1)


def test_a_file_of_a_hub_that_another_commit_replaces_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("small.txt", "large.bin")  # sent at once; a redirect to another host
    with hub_server(monkeypatch, tmp_path) as hub:
        repo = hub.repos["org/net"] = Repo()
        repo.commit(dict.fromkeys(names, b"0123456789"))
        store = RemoteStore("hf://org/net/small.txt")
        files = [store.look(f"org/net/{name}") for name in names]
        assert all(file.version for file in files)
        assert [store.read_all(file) for file in files] == [b"0123456789"] * 2
        assert store.read(files[1], 2, 3) == b"234"
        repo.commit(dict.fromkeys(names, b"9876543210"))
        for file in files:
            with pytest.raises(Changed):
                store.read_all(file)
        with pytest.raises(Changed):
            store.read(files[1], 2, 3)


def test_two_versions_within_a_second_have_two_stamps() -> None:
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    stamps = [store_module._stamp({"LastModified": when, "ETag": tag}) for tag in ('"a"', '"b"', "a")]
    assert stamps[0] != stamps[1]
    assert stamps[0] == stamps[2]  # with or without quotes


def test_a_file_read_straight_on_is_read_ahead_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_file, "BLOCK_BYTES", 10)
    data = bytes(range(95))
    asked: list[int] = []

    def read(offset: int, size: int) -> bytes:
        asked.append(offset)
        return data[offset : offset + size]

    file = range_file.RangeFile(read, len(data))
    assert b"".join(iter(lambda: file.read(7), b"")) == data
    assert sorted(asked) == list(range(0, 95, 10))  # each block once
    assert (file.seek(33), file.read(20)) == (33, data[33:53])
    file.close()


def test_a_file_is_open_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = LocalStore().look(str(tmp_path / "a"))
    monkeypatch.setattr(store_module, "_handle", lambda file: store_module._Handle(file.path))  # as if always evicted
    assert LocalStore().read(file, 2, 3) == b"234"


class HalfListed(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Two folders, one of which cannot be listed now."""

    cachable = False

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
        if path.endswith("b"):
            raise TimeoutError("no answer")
        below = {"top": [("top/a", "directory"), ("top/b", "directory")], "top/a": [("top/a/1.png", "file")]}
        return [{"name": name, "type": kind, "size": 1} for name, kind in below[path]]


def test_a_folder_that_could_not_be_listed_is_not_an_empty_one() -> None:
    assert HalfListed().find("top") == ["top/a/1.png"]  # what fsspec makes of it
    fs = raise_failed_listings(raise_failed_listings(HalfListed()))
    with pytest.raises(Exception, match="no answer") as caught:
        fs.find("top")
    assert may_pass(caught.value)


def test_bytes_from_another_place_are_refused(
    tagged: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = tagged
    store = RemoteStore(url)
    file = store.look(store.path_of(url))
    monkeypatch.setattr(store_module, "fetch", lambda *asked: Answer(b"345", file.version, 10, 3))
    with pytest.raises(OSError, match="expected bytes from 2, found them from 3") as caught:
        store.read(file, 2, 3)
    assert may_pass(caught.value)


def test_a_file_of_unknown_size_that_is_cut_off_is_refused(
    tagged: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = tagged
    store = RemoteStore(url)
    file = File(store.path_of(url))  # as a page of links tells it
    assert store.read_all(file) == b"0123456789"
    monkeypatch.setattr(store_module, "fetch", lambda *asked: Answer(b"01234", "", 5))
    with pytest.raises(OSError, match=r"two answers|expected a file") as caught:
        store.read_all(file)
    assert may_pass(caught.value)
    assert not isinstance(caught.value, Changed)


def test_credentials_that_expire_twice_are_out_of_reach_and_wrong_ones_are_refused_at_once(
    tagged: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class ExpiredError(Exception):
        status = 401

    def expired(*asked: object) -> Answer:
        raise ExpiredError("expired")

    url, _ = tagged
    store = RemoteStore(url)
    file = store.look(store.path_of(url))
    monkeypatch.setattr(store_module, "fetch", expired)
    with pytest.raises(OSError, match="expired") as caught:
        store.read(file, 2, 3)
    assert may_pass(caught.value)
    with pytest.raises(OSError, match="expired") as caught:  # of a listing: they may never have been right
        store._once(file.path, expired)
    assert not may_pass(caught.value)


def test_a_folder_that_is_taken_for_a_file_is_listed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/taken/a.png", b"0123")
    answers = [["/taken"], fs.find("/taken", detail=True)]
    monkeypatch.setattr(fs, "find", lambda *args, **options: answers.pop(0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert [file.path for file in RemoteStore("memory://taken").find("/taken")] == ["/taken/a.png"]
