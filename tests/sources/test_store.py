"""Bytes by range come from the file that was listed, or not at all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import fsspec
import pytest

from pipeline.sources import store as store_module
from pipeline.sources.store import LocalStore, RemoteStore

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.sources.store import File

PATH = "/changing/a.tar"


@pytest.fixture
def remote() -> tuple[RemoteStore, File]:
    fsspec.filesystem("memory").pipe_file(PATH, b"0123456789")
    store = RemoteStore("memory://changing/a.tar")
    return store, store.look(PATH)


def test_a_remote_file_that_was_replaced_before_the_first_read_is_found_out(remote: tuple[RemoteStore, File]) -> None:
    store, file = remote
    fsspec.filesystem("memory").pipe_file(PATH, b"9876543210")
    with pytest.raises(OSError, match="the archive changed after it was listed"):
        store.read(file, 2, 3)


def test_a_remote_file_that_is_replaced_while_it_is_read_is_found_out(
    remote: tuple[RemoteStore, File], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = remote
    assert store.read(file, 2, 3) == b"234"
    later = time.monotonic() + 31
    fsspec.filesystem("memory").pipe_file(PATH, b"9876543210")
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for _ in range(2):  # and stays so
        with pytest.raises(OSError, match="the archive changed after it was listed"):
            store.read(file, 2, 3)


@pytest.mark.parametrize("new", [b"01", None])
def test_a_read_that_fails_looks_at_once(new: bytes | None, remote: tuple[RemoteStore, File]) -> None:
    store, file = remote
    assert store.read(file, 2, 3) == b"234"
    if new is None:
        fsspec.filesystem("memory").rm(PATH)
    else:
        fsspec.filesystem("memory").pipe_file(PATH, new)
    with pytest.raises(OSError, match="no such file" if new is None else "the archive changed after it was listed"):
        store.read(file, 2, 3)


def test_looks_are_few(remote: tuple[RemoteStore, File], monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = remote
    looked: list[str] = []
    look = RemoteStore.look

    def count(self: RemoteStore, path: str) -> File:
        looked.append(path)
        return look(self, path)

    monkeypatch.setattr(RemoteStore, "look", count)
    for _ in range(5):
        store.read(file, 2, 3)
    assert looked == [PATH]


def test_a_file_is_open_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = LocalStore().look(str(tmp_path / "a"))
    monkeypatch.setattr(store_module, "_handle", lambda file: store_module._Handle(file.path))  # as if always evicted
    assert LocalStore().read(file, 2, 3) == b"234"
