"""Tar and zip: what is an item, where labels come from, and that hostile archives are harmless."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.items import LeftOut
from pipeline.errors import SourceError
from pipeline.sources import archive as members_module
from pipeline.sources import open_source
from scripts.source_variants import add_to_tar
from tests.faulty_reader import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sources import Source

PNG = picture(1)
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def own_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def write_tar(path: Path, members: Members) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            add_to_tar(archive, name, data)
    return str(path)


def write_zip(path: Path, members: Members) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return str(path)


WRITERS: list[Callable[[Path, Members], str]] = [write_tar, write_zip]
both = pytest.mark.parametrize("write", WRITERS)


def keys(source: Source) -> list[str]:
    return [source[i].key for i in range(len(source))]


def labels(source: Source) -> list[str | None]:
    return [source[i].label for i in range(len(source))]


def left_out(source: Source) -> dict[str, str]:
    return {skip.key: skip.reason for skip in source.skipped}


def read_all(source: Source) -> list[bytes]:
    read = source.reader()
    return [read(source.locator(i)) for i in range(len(source))]


@both
def test_folders_inside_are_classes_and_splits(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    plain = open_source(write(tmp_path / "a", [("./cat/1.png", PNG), ("dog/2", PNG), ("3.png", PNG)]))
    assert keys(plain) == ["cat/1.png", "dog/2", "3.png"]
    assert labels(plain) == ["cat", "dog", None]
    split = open_source(write(tmp_path / "b", [("train/cat/1.png", PNG), ("test/dog/2.png", PNG)]))
    assert labels(split) == ["cat", "dog"]
    assert split.items.columns["split"].tolist() == ["train", "test"]


@both
def test_labels_come_from_members_of_the_same_sample(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    source = open_source(
        write(
            tmp_path / "a",
            [
                ("x/1.cls", b"7\n"), ("x/1.png", PNG),
                ("x/2.left.png", PNG), ("x/2.json", b'{"label": "cat", "split": "test", "caption": "a cat"}'),
                ("x/3.png", PNG), ("x/3.json", b"[[["), ("x/4.png", PNG), ("x/4.txt", b"a caption"),
                ("x/6.png", PNG), ("x/6.json", b'{"label": "\\ud800"}'),
                ("x/5.json", b'{"label": "no"}'), ("x/5.cls", b"yes"), ("x/5.png", PNG),
            ],
        )
    )  # fmt: skip
    assert dict(zip(keys(source), labels(source), strict=True)) == {
        "x/1.png": "7", "x/2.left.png": "cat", "x/3.png": None, "x/4.png": None, "x/5.png": "yes", "x/6.png": None,
    }  # fmt: skip
    assert source.items.columns["split"].tolist() == ["", "test", "", "", "", ""]
    assert left_out(source) == {
        "x/3.json": "label that cannot be read", "x/4.txt": "text beside an image, not its label",
        "x/6.json": "label that cannot be read",
    }  # fmt: skip


@both
def test_content_decides_and_the_rest_is_named(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    source = open_source(
        write(
            tmp_path / "a",
            [("1.txt", PNG), ("2.png", b"text"), (".hidden.png", PNG), ("empty.png", b""), ("notes", b"x")],
        )
    )
    assert keys(source) == ["1.txt", "2.png", "empty.png"]  # what is named like an image has a row
    assert left_out(source) == {".hidden.png": "hidden", "notes": "not an image"}


def test_members_that_are_lost_are_told_from_others(tmp_path: Path) -> None:
    source = open_source(
        write_zip(tmp_path / "a", [("1.png", PNG), (".hidden.png", PNG), ("x" * 2000 + ".png", PNG), ("notes", b"x")])
    )
    assert LeftOut.of(source.skipped).lost == 1  # the one with the long name
    cut = tmp_path / "cut.tar"
    whole = Path(write_tar(tmp_path / "b", [("1.png", PNG), ("2.png", PNG)])).read_bytes()
    cut.write_bytes(whole[:2100])
    assert LeftOut.of(open_source(str(cut)).skipped).lost == 1


@both
def test_names_are_keys_and_nothing_else(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    names = ["../../outside.png", "/etc/passwd.png", "a/./../b.png", "日本/é.png", "C:\\x.png"]
    source = open_source(write(tmp_path / "a", [(name, PNG) for name in names]))
    assert keys(source) == names
    assert read_all(source) == [PNG] * 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "xdg"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@both
def test_of_doubled_names_the_last_counts(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a", [("a.png", picture(1)), ("b.png", picture(2)), ("./a.png", picture(3))]))
    assert keys(source) == ["b.png", "a.png"]
    assert read_all(source) == [picture(2), picture(3)]
    assert left_out(source) == {"a.png": "superseded by a later member of the same name"}


@both
def test_names_too_long_and_members_too_large_are_left_out(
    write: Callable[[Path, Members], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.tar.MAX_MEMBER_BYTES", 1000)
    monkeypatch.setattr("pipeline.sources.zip.MAX_MEMBER_BYTES", 1000)
    source = open_source(write(tmp_path / "a", [("x" * 2000, PNG), ("big.png", PNG + bytes(5000)), ("1.png", PNG)]))
    assert keys(source) == ["1.png"]
    assert set(left_out(source).values()) == {"name of more than 1024 bytes", members_module.REASONS[5]}


def test_links_devices_and_sparse_members_of_tar_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        add_to_tar(archive, "1.png", PNG)
    source = open_source(str(tmp_path / "a.tar"))
    assert keys(source) == ["1.png"]
    assert set(left_out(source).values()) == {"not a regular file", "sparse"}
    assert len(source.skipped) == 5


def test_links_encrypted_and_oddly_packed_members_of_zip_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("packed.png", PNG, zipfile.ZIP_BZIP2)
        archive.writestr("secret.png", PNG)
        archive.writestr("1.png", PNG)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"secret.png"))
    data[at + 8] |= 1  # the flag of encryption, in the central directory
    (tmp_path / "a.zip").write_bytes(data)
    source = open_source(str(tmp_path / "a.zip"))
    assert keys(source) == ["1.png"]
    assert left_out(source) == {
        "link.png": "not a regular file",
        "packed.png": "packed by bzip2, not by deflate",
        "secret.png": "encrypted",
    }


def test_a_bomb_fails_in_its_row_and_costs_no_memory(tmp_path: Path) -> None:
    """A member that says it is small, and would unpack to a gigabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(PNG) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("bomb.png", bomb)
        archive.writestr("1.png", PNG)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, entry + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<L", data, entry + 24, 5000)
    (tmp_path / "a.zip").write_bytes(data)
    source = open_source(str(tmp_path / "a.zip"))
    assert keys(source) == ["bomb.png", "1.png"]
    read = source.reader()
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(OSError, match="differs from the one it states"):
        read(source.locator(0))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert read(source.locator(1)) == PNG


def test_overlapping_members_of_zip_are_checked_one_by_one(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", [("1.png", picture(1)), ("2.png", picture(2))])
    data = bytearray((tmp_path / "a.zip").read_bytes())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, second + 42, 0)  # the second entry points at the first member
    (tmp_path / "a.zip").write_bytes(data)
    try:
        source = open_source(str(tmp_path / "a.zip"))
    except SourceError:
        return  # newer zipfile refuses the whole archive
    read = source.reader()
    assert read(source.locator(0)) == picture(1)
    with pytest.raises(OSError, match="differs"):
        read(source.locator(1))


def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(4)])
    whole = (tmp_path / "a.tar").read_bytes()
    for cut in (512 * 5 + 100, 512 * 4 + 20, 512 * 4):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        source = open_source(str(tmp_path / "a.tar"))
        read, found = source.reader(), []
        for i in range(len(source)):
            try:
                found.append(read(source.locator(i)))
            except OSError as error:
                assert "ends inside" in str(error)  # noqa: PT017  # how many raise depends on the cut
        assert found == [picture(i) for i in range(len(found))]
        assert len(found) >= 1
        said = "here the archive is cut off" in left_out(source).values() or len(source) > len(found)
        assert said or cut % 1024 == 0  # between two members there is nothing to tell by


def test_a_tar_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i}.png", PNG) for i in range(4)])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[1024 + 100] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match="no header at byte 1024, after sound ones") as caught:
        open_source(str(tmp_path / "a.tar"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1 << 62, (1 << 33), -512])
def test_sizes_from_nowhere_are_harmless(size: int, tmp_path: Path) -> None:
    member = tarfile.TarInfo("huge.png")
    member.size = abs(size)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        header[124:136] = b"\xff" * 4 + struct.pack(">q", size)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    one = tarfile.TarInfo("1.png")
    one.size = len(PNG)
    first = one.tobuf() + PNG + bytes(-len(PNG) % 512)
    (tmp_path / "a.tar").write_bytes(first + bytes(header) + PNG)
    try:
        source = open_source(str(tmp_path / "a.tar"))
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017  # refusing it is as good
        return
    assert keys(source)[:1] == ["1.png"]
    assert source.reader()(source.locator(0)) == PNG


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz"])
def test_packed_tars_are_refused_with_the_way_out(packed: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", f"w:{packed}") as archive:  # type: ignore[call-overload]
        add_to_tar(archive, "1.png", PNG)
    with pytest.raises(SourceError, match="unpack the outer"):
        open_source(str(tmp_path / "a.tar"))


def test_an_archive_that_changes_after_listing_gives_no_wrong_bytes(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", [("1.png", picture(1)), ("2.png", picture(2))]))
    read = source.reader()
    assert read(source.locator(0)) == picture(1)
    write_tar(tmp_path / "a.tar", [("0.png", picture(9)), ("1.png", picture(1))])
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    with pytest.raises(OSError, match="changed after it was listed"):
        read(source.locator(1))


def test_several_shards_of_the_same_name_keep_their_folders(tmp_path: Path) -> None:
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / "a.tar", [("1.png", PNG)])
    assert keys(open_source(str(tmp_path / "*" / "a.tar"))) == ["x/a.tar/1.png", "y/a.tar/1.png"]


@both
def test_an_archive_without_images_is_refused(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"found 1 other members: a.txt \(not an image\)"):
        open_source(write(tmp_path / "a", [("a.txt", b"text")]))


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found an empty archive"):
        open_source(write_zip(tmp_path / "b", []))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@both
def test_flipped_bytes_give_the_right_bytes_or_an_error(
    write: Callable[[Path, Members], str], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever one byte of the archive is turned into, nothing escapes but `SourceError` and `OSError`."""
    right = {f"{i}.png": picture(i) for i in range(3)}
    path = tmp_path / "a"
    write(path, list(right.items()))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        source = open_source(str(path))
    except SourceError:
        return
    read = source.reader()
    for i in range(len(source)):
        try:
            found = read(source.locator(i))
        except OSError:
            continue
        if write is write_zip:  # which has checksums of its own
            assert found in right.values()


def test_a_million_names_cost_no_objects(tmp_path: Path) -> None:
    """Columns: what is kept of a member is a few dozen bytes."""
    source = open_source(write_tar(tmp_path / "a.tar", [(f"{i:06d}.png", PNG) for i in range(300)]))
    assert source.items.keys.dtype == np.dtype("S10")
    assert source.items.keys.nbytes == 3000
    assert source._numbers.nbytes == 300 * 2 * 8  # type: ignore[attr-defined]


def test_old_tars_are_known_by_their_checksum(tmp_path: Path) -> None:
    one = tarfile.TarInfo("1.png")
    one.size = len(PNG)
    header = bytearray(one.tobuf(tarfile.USTAR_FORMAT))
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a").write_bytes(bytes(header) + PNG + bytes(-len(PNG) % 512) + bytes(1024))
    assert keys(open_source(str(tmp_path / "a"))) == ["1.png"]


def test_an_image_alone_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    source = open_source(str(tmp_path / "1.png"))
    assert keys(source) == ["1.png"]
    assert read_all(source) == [PNG]


@both
def test_parts_of_a_name_that_are_no_folder_are_no_class(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    names = ["/1.png", "/cat/2.png", "../up/3.png", "dog//4.png", "./dog/./5.png"]
    source = open_source(write(tmp_path / "a", [(name, PNG) for name in names]))
    assert keys(source)[:4] == names[:4]
    assert [source[i].label for i in range(5)] == [None, "cat", "up", "dog", "dog"]


def test_a_link_to_a_sidecar_is_that_label_once_more(tmp_path: Path) -> None:
    with tarfile.open(path := tmp_path / "a.tar", "w") as archive:
        for name, data in (("1.png", PNG), ("1.cls", b"cat"), ("2.png", PNG), ("3.png", PNG), ("4.png", PNG)):
            add_to_tar(archive, name, data)
        for name, kind, target in (
            ("2.cls", tarfile.LNKTYPE, "1.cls"),
            ("3.cls", tarfile.SYMTYPE, "./1.cls"),
            ("4.cls", tarfile.SYMTYPE, "gone.cls"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    source = open_source(str(path))
    assert [source[i].label for i in range(4)] == ["cat", "cat", "cat", None]
    assert [(skip.key, skip.reason) for skip in source.skipped] == [("4.cls", "not a regular file")]
