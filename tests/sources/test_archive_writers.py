"""Archives as other programs write them, held against what unpacking them gives."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from pipeline.errors import SourceError
from pipeline.sources import open_source
from scripts.compare_archives import ODD, Odd, compare, missing_programs
from scripts.source_variants import add_to_tar
from tests.faulty_reader import picture
from tests.sources.test_archive import keys, labels, left_out, own_indexes, read_all, write_tar, write_zip

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["own_indexes"]
NAMES = ["cat/1.png", "dog/2.png", "dog/" + "long" * 40 + ".png", "dog/é.png", "dog/two\nlines.png"]


def unpacked(path: Path, folder: Path) -> dict[str, bytes]:
    """Return the images that GNU tar unpacks, by name."""
    folder.mkdir()
    subprocess.run(["tar", "-xf", str(path), "-C", str(folder)], check=True)
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def listed(path: Path) -> dict[str, bytes]:
    source = open_source(str(path))
    return dict(zip(keys(source), read_all(source), strict=True))


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the program tar")
@pytest.mark.parametrize("style", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_every_format_of_gnu_tar(style: str, tmp_path: Path) -> None:
    names = NAMES if style in ("gnu", "oldgnu", "pax") else [name for name in NAMES if len(name) < 90]
    for i, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(picture(i))
    os.link(tmp_path / "images/cat/1.png", tmp_path / "images/dog/hard.png")
    (tmp_path / "images/dog/soft.png").symlink_to("../cat/1.png")
    made = ["tar", f"--format={style}", "-cf", str(tmp_path / "a.tar"), "-C", str(tmp_path / "images"), "cat", "dog"]
    subprocess.run(made, check=True, env={**os.environ, "LC_ALL": "C"})
    assert listed(tmp_path / "a.tar") == unpacked(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("zeros", [0, 512, 1024, 10240, 1 << 17])
def test_tars_put_together_are_read_to_the_end(zeros: int, tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        write_tar(tmp_path / "part", [(f"{number}/{i}.png", picture(2 * number + i)) for i in range(2)])
        data = (tmp_path / "part").read_bytes()
        parts.append(data[: data.rindex(picture(2 * number + 1)[-8:]) + 512 & ~511] + bytes(zeros))
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert list(listed(tmp_path / "a.tar").values()) == [picture(i) for i in range(6)]
    assert labels(open_source(str(tmp_path / "a.tar"))) == ["0", "0", "1", "1", "2", "2"]


def test_other_bytes_after_the_end_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("1.png", picture(1))])
    with path.open("ab") as file:
        file.write(b"a signature")
    source = open_source(str(path))
    assert keys(source) == ["1.png"]
    assert left_out(source) == {"the end": "bytes after the end of the archive"}


def test_pax_headers_of_all_and_of_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}) as archive:
        for i, name in enumerate(NAMES):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(picture(i)), {"SCHILY.xattr.user.x": "y", "mtime": "1.5"}
            archive.addfile(member, io.BytesIO(picture(i)))
    assert listed(tmp_path / "a.tar") == {name: picture(i) for i, name in enumerate(NAMES)}


def test_sizes_in_base_256_and_names_that_are_not_utf_8(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x/1.png")
    member.size = len(picture(1))
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[:7] = b"x/\xe9.png"
    header[124:136] = b"\x80" + member.size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + picture(1) + bytes(-len(picture(1)) % 512 + 1024))
    source = open_source(str(tmp_path / "a.tar"))
    assert bytes(source.items.keys[0]) == b"x/\xe9.png"
    assert read_all(source) == [picture(1)]


def test_links_lead_to_members_and_nowhere_else(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:

        def link(name: str, target: str, kind: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)

        link("early.png", "later.png", tarfile.SYMTYPE)
        add_to_tar(archive, "a/1.png", picture(1))
        link("b/hard.png", "a/1.png", tarfile.LNKTYPE)
        link("b/soft.png", "../a/1.png", tarfile.SYMTYPE)
        link("b/chain.png", "soft.png", tarfile.SYMTYPE)
        link("b/circle.png", "circle.png", tarfile.SYMTYPE)
        link("b/out.png", "/etc/passwd", tarfile.SYMTYPE)
        link("b/up.png", "../../a/1.png", tarfile.SYMTYPE)
        link("b/none.png", "nothing", tarfile.LNKTYPE)
        link("b/folder", "../a", tarfile.SYMTYPE)
        link("b/.hidden.png", "../a/1.png", tarfile.SYMTYPE)
        add_to_tar(archive, "a/1.png", picture(2))  # the hard link was made to the one before
        add_to_tar(archive, "later.png", picture(3))
    assert listed(tmp_path / "a.tar") == {
        "early.png": picture(3), "b/hard.png": picture(1), "b/soft.png": picture(2), "b/chain.png": picture(2),
        "a/1.png": picture(2), "later.png": picture(3),
    }  # fmt: skip
    assert (
        sum(reason == "not a regular file" for reason in left_out(open_source(str(tmp_path / "a.tar"))).values()) == 6
    )


def without_flag(path: Path, names: list[bytes], *, system: int = 3, extra: bytes = b"") -> str:
    """Write a zip with raw names of which no flag says that they are UTF-8."""
    data, directory = b"", b""
    for i, name in enumerate(names):
        body = picture(i)
        fields = struct.pack("<HHHHLLLHH", 0, 0, 0, 0, zlib.crc32(body), len(body), len(body), len(name), 0)
        entry = b"PK\x01\x02" + bytes([20, system]) + b"\x14\0" + fields[:-2] + struct.pack("<H", len(extra))
        directory += entry + struct.pack("<HHHLL", 0, 0, 0, 0, len(data)) + name + extra
        data += b"PK\x03\x04\x14\0" + fields + name + body
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(names), len(names), len(directory), len(data), 0)
    path.write_bytes(data + directory + end)
    return str(path)


@pytest.mark.parametrize(
    ("raw", "system", "key"),
    [
        ("schön/é1.png".encode(), 3, "schön/é1.png"),
        ("日本/1.png".encode(), 0, "日本/1.png"),
        ("schön/1.png".encode("cp437"), 0, "schön/1.png"),
        (b"cat\\1.png", 0, "cat/1.png"),
        (b"cat\\1.png", 10, "cat/1.png"),
        (b"cat\\1.png", 3, "cat\\1.png"),
        (b"cat/a\\1.png", 0, "cat/a\\1.png"),
    ],
)
def test_names_of_zip_without_the_flag(raw: bytes, system: int, key: str, tmp_path: Path) -> None:
    source = open_source(without_flag(tmp_path / "a.zip", [raw], system=system))
    assert keys(source) == [key]
    assert read_all(source) == [picture(0)]


@pytest.mark.parametrize("sound", [True, False])
def test_the_name_in_info_zips_extra_field(sound: bool, tmp_path: Path) -> None:
    field = b"\x01" + struct.pack("<L", zlib.crc32(b"?.png") + (not sound)) + "日.png".encode()
    extra = struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(field)) + field
    source = open_source(without_flag(tmp_path / "a.zip", [b"?.png"], extra=extra))
    assert keys(source) == ["日.png" if sound else "?.png"]


def test_what_macos_and_windows_pack_beside_the_files_is_left_out(tmp_path: Path) -> None:
    names = ["photos/cat/1.png", "photos/dog/2.png", "photos/cat/.DS_Store", "photos/cat/._1.png"]
    odd = ["__MACOSX/photos/cat/._1.png", "__MACOSX/photos/cat/1.png", "photos/cat/Thumbs.db"]
    members = [(name, picture(i)) for i, name in enumerate(names)] + [(name, picture(9)) for name in odd[:2]]
    source = open_source(write_zip(tmp_path / "a.zip", [*members, (odd[2], b"\xd0\xcf\x11\xe0")]))
    assert keys(source) == names[:2]
    assert labels(source) == ["cat", "dog"]


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize(
    ("names", "classes", "splits"),
    [
        (["p/train/cat/1", "p/train/dog/2", "p/test/cat/3"], ["cat", "dog", "cat"], ["train", "train", "test"]),
        (["a/b/c/cat/1", "a/b/c/dog/2"], ["cat", "dog"], None),
        (["p/cat/1", "p/dog/2", "p/3"], ["cat", "dog", None], None),
        (["cat/1", "cat/2"], ["cat", "cat"], None),
        (["p/cat/1", "q/dog/2"], ["p", "q"], None),
    ],
)
def test_folders_that_hold_everything_are_looked_through(
    write: object, names: list[str], classes: list[str], splits: list[str] | None, tmp_path: Path
) -> None:
    assert callable(write)
    source = open_source(write(tmp_path / "a", [(name, picture(i)) for i, name in enumerate(names)]))
    assert keys(source) == names
    assert labels(source) == classes
    assert (source.items.columns["split"].tolist() if splits else None) == splits


def test_zips_that_are_streamed_large_or_follow_a_program(tmp_path: Path) -> None:
    class Pipe:
        """A file that cannot seek, so that sizes follow the data."""

        def __init__(self, file: BinaryIO) -> None:
            self.write = file.write

        def flush(self) -> None: ...

    file: Any = (tmp_path / "a").open("wb")
    with file, zipfile.ZipFile(Pipe(file), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        with archive.open("1.png", "w", force_zip64=True) as member:
            member.write(picture(1))
        archive.writestr("2.png", picture(2))
    (tmp_path / "b").write_bytes(b"MZ\0\0" * 100 + (tmp_path / "a").read_bytes())
    for name in "ab":
        assert listed(tmp_path / name) == {"1.png": picture(1), "2.png": picture(2)}


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (14, "LZMA"), (93, "Zstandard"), (77, "an unknown method")]
)
def test_other_ways_to_pack_are_refused_by_name(method: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_zip(path, [("1.png", picture(1))])
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, method)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=rf"1.png \(packed by {name}, not by deflate\)"):
        open_source(str(path))


def test_a_workbook_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found a workbook: save its sheet as CSV"):
        open_source(write_zip(tmp_path / "a.xlsx", [("[Content_Types].xml", b"<x/>"), ("xl/workbook.xml", b"<x/>")]))


@pytest.mark.skipif(bool(missing_programs()), reason="needs bsdtar, 7z, GNU tar and zip")
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.what)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_programs_unpack_the_same(odd: Odd, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    here, programs = compare(odd, tmp_path / "made")
    assert here.rows or here.refused or here.damaged
    assert {program for program, (_, differ) in programs.items() if differ} <= odd.explained.keys()


def gnu_header(name: bytes, size: int, times: bytes) -> bytes:
    """Return a header of GNU tar, which writes times where POSIX has the front of the name."""
    member = tarfile.TarInfo("x")
    member.size = size
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[: len(name)] = name
    header[345 : 345 + len(times)] = times
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_times_of_gnu_tar_are_no_part_of_a_name(tmp_path: Path) -> None:
    times = b"15302015323\015302015323\0"
    blocks = []
    for i, name in enumerate([b"cat/1.png", b"15302015323/15302015323/2.png", b"dog/3.png"]):
        blocks += [gnu_header(name, len(picture(i)), times if i < 2 else b""), picture(i)]
        blocks.append(bytes(-len(picture(i)) % 512))
    (tmp_path / "a.tar").write_bytes(b"".join([*blocks, bytes(1024)]))
    source = open_source(str(tmp_path / "a.tar"))
    assert keys(source) == ["cat/1.png", "15302015323/15302015323/2.png", "dog/3.png"]
    assert labels(source) == ["cat", "15302015323", "dog"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_cut_behind_the_header_of_a_long_name_is_a_cut(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("1.png", picture(1)), ("long" * 60 + ".png", picture(2))])
    data = path.read_bytes()
    second = 512 + len(picture(1)) + -len(picture(1)) % 512
    path.write_bytes(data[: second + keep * 512])
    source = open_source(str(path))
    assert keys(source) == ["1.png"]
    assert left_out(source) == {"the end": "here the archive is cut off"}
