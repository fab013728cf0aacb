from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.core.items import LeftOut
from pipeline.errors import SourceError
from pipeline.sources import FolderSource, folder, open_source

if TYPE_CHECKING:
    from pathlib import Path


def test_folders_are_classes_in_a_stable_order(image_folder: Path) -> None:
    source = open_source(str(image_folder))
    assert source.kind == "folder"
    assert len(source) == 24
    assert source.items.label_names == ("ant", "bee", "cat")
    keys = [source[i].key for i in range(len(source))]
    assert keys == sorted(keys)
    assert all(source[i].label == keys[i].split("/")[0] for i in range(24))
    assert (source.items.sizes == [(image_folder / key).stat().st_size for key in keys]).all()


def test_reader_gives_the_bytes_of_the_item(image_folder: Path) -> None:
    source = open_source(str(image_folder))
    read = source.reader()
    for i in (0, 11, 23):
        assert read(source.locator(i)) == (image_folder / source[i].key).read_bytes()


def test_train_and_test_folders_are_splits(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "train")
    shutil.copytree(image_folder, tmp_path / "Validation")
    source = open_source(str(tmp_path))
    assert source.items.label_names == ("ant", "bee", "cat")
    assert set(source.items.columns["split"]) == {"train", "val"}
    assert source[0].split == "val"
    assert source[0].label == "ant"


def test_a_class_named_train_alone_is_a_class(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "ant", tmp_path / "train")
    shutil.copytree(image_folder / "bee", tmp_path / "plane")
    source = open_source(str(tmp_path))
    assert source.items.label_names == ("plane", "train")
    assert "split" not in source.items.columns


def test_content_decides_and_the_rest_is_named(image_folder: Path, tmp_path: Path) -> None:
    image = next(image_folder.glob("*/*.png"))
    (tmp_path / "sub").mkdir()
    shutil.copy(image, tmp_path / "sub" / "picture.txt")
    shutil.copy(image, tmp_path / "flat")
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(image.read_bytes())
    os.mkfifo(tmp_path / "pipe")
    source = FolderSource(str(tmp_path))
    assert [(source[i].key, source[i].label) for i in range(len(source))] == [
        ("flat", None),
        ("notes.jpg", None),
        ("sub/picture.txt", "sub"),
    ]
    assert {skip.key: skip.reason for skip in source.skipped} == {
        ".hidden.png": "hidden",
        "pipe": "not a regular file",
    }


def test_documents_and_videos_are_left_out_as_other_files_are(image_folder: Path, tmp_path: Path) -> None:
    shutil.copy(next(image_folder.glob("*/*.png")), tmp_path / "1.png")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    found = FolderSource(str(tmp_path))
    left_out = LeftOut.of(found.skipped)
    assert {"notes.pdf", "film.mp4"} <= set(left_out.examples)
    assert left_out.lost == 0


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [("notes.pdf", b"%PDF-1.7\n", "a PDF document: render"), ("film.mp4", b"\0\0\0\x18ftypmp42", "a video: extract")],
)
def test_a_document_or_video_alone_is_named(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data + bytes(40))
    with pytest.raises(SourceError, match=what):
        open_source(str(tmp_path / name))


def test_a_folder_that_cannot_be_read_is_lost(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    shutil.copy(next(image_folder.glob("*/*.png")), tmp_path / "a.png")
    scandir = os.scandir

    def refuse(folder: bytes) -> object:
        if folder.endswith(b"closed"):  # the tests may run as a user for whom no folder is closed
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    source = FolderSource(str(tmp_path))
    assert [(skip.key, skip.is_lost) for skip in source.skipped] == [("closed", True)]
    assert LeftOut.of(source.skipped).lost == 1


def test_any_file_name_survives(image_folder: Path, tmp_path: Path) -> None:
    names = [b"new\nline", b"not-utf-8-\xff\xfe", "日本 é".encode(), b" spaces ", b"x" * 255]
    data = next(image_folder.glob("*/*.png")).read_bytes()
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    source = FolderSource(str(tmp_path))
    assert sorted(bytes(key) for key in source.items.keys) == sorted(names)
    assert all(source.reader()(source.locator(i)) == data for i in range(len(source)))


def test_links_are_followed_and_loops_end(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    shutil.copy(next(image_folder.glob("*/*.png")), tmp_path / "real" / "a.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    source = FolderSource(str(tmp_path))
    assert "linked/a.png" in [source[i].key for i in range(len(source))]
    assert any(skip.reason == "link to a folder above it" for skip in source.skipped)
    assert len(source) < 10


def test_a_link_to_itself_is_named(image_folder: Path, tmp_path: Path) -> None:
    shutil.copy(next(image_folder.glob("*/*.png")), tmp_path / "a.png")
    (tmp_path / "self").symlink_to("self")
    source = FolderSource(str(tmp_path))
    assert len(source) == 1
    assert source.skipped[0].key == "self"


def test_an_unreadable_file_stays_an_item(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(next(image_folder.glob("*/*.png")), tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    source = FolderSource(str(tmp_path))
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = FolderSource(str(tmp_path))
    assert [source[i].key for i in range(len(source))] == ["a.png", "dangling.png", "pipe.jpg"]
    with pytest.raises(FileNotFoundError):
        source.reader()(source.locator(1))
    assert [(skip.key, skip.is_lost) for skip in source.skipped] == [("dangling", False)]
    assert "cannot be looked at" in source.skipped[0].reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "found an empty folder"),
        (lambda path: (path / "a.txt").write_text("x"), "found 1 other file: a.txt (not an image)"),
    ],
)
def test_a_folder_without_images_is_refused(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing: check the path"):
        open_source(str(tmp_path / "none"))


def test_labels_do_not_depend_on_other_folders(image_folder: Path) -> None:
    source = open_source(str(image_folder))
    assert source.items.labels.dtype == np.int32
    names = np.array(source.items.label_names)[source.items.labels]
    assert [str(name) for name in names] == [source[i].key.split("/")[0] for i in range(len(source))]


def test_what_a_cache_knows_is_not_opened_again(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    for name in ("changed", "same"):
        shutil.copy(root / "ant" / "06.png", root / name)
    before = FolderSource(str(root))
    (root / "changed").write_bytes((root / "ant" / "06.png").read_bytes() + b"more")
    shutil.copy(root / "ant" / "06.png", root / "new.png")
    (root / "new.txt").write_text("none")
    opened = []
    look = folder._looks_like_image

    def count(root: bytes, key: bytes) -> bool:
        opened.append(key)
        return look(root, key)

    monkeypatch.setattr(folder, "_looks_like_image", count)
    after = open_source(str(root), known=(before.items.keys, before.items.sizes, before.items.mtimes_ns))
    assert sorted(opened) == [b"changed", b"new.txt"]
    assert np.array_equal(after.items.keys, FolderSource(str(root)).items.keys)
    assert [skip.key for skip in after.skipped] == ["new.txt"]
