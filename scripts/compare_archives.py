"""Compare the members of odd archives with what bsdtar and 7z unpack from them.

python scripts/compare_archives.py

Each archive is written by another program or has another oddity. An image that is unpacked by another program has to be
a row of the same bytes, or is left out by its name with a reason. Needs bsdtar, 7z, GNU tar and Info-ZIP's zip; prints
the table of `docs/reliability.md`, and what differs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.decoding.formats import SNIFF_BYTES, kind_of_image, named_like_an_image
from pipeline.errors import SourceError
from pipeline.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable

SEVEN_ZIP = shutil.which("7zz") or shutil.which("7z") or ""
PROGRAMS = ("bsdtar", "tar", "zip")
UTF_8 = {**os.environ, "LC_ALL": "C.UTF-8"}
NAMES = ("cat/1.png", "cat/two words.png", "dog/é日.png", "dog/" + "long" * 40 + ".png", "dog/deep/er/3.png")
Images = dict[str, bytes]


def picture(number: int) -> bytes:
    """Return a small PNG of its own colour, which is not packed, so that archivers pack it."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (number % 256, number // 256, 90)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def run(*command: str | Path, cwd: Path, **options: Any) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True, env=UTF_8, **options)


def make_images(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Write an image for each name into ``folder``."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def make_links(folder: Path) -> Path:
    make_images(folder)
    os.link(folder / "cat/1.png", folder / "dog/hard.png")
    (folder / "dog/soft.png").symlink_to("../cat/1.png")
    return folder


def make_holes(folder: Path) -> Path:
    """Add a bitmap whose file has a hole in the middle."""
    make_images(folder)
    file = io.BytesIO()
    Image.new("RGB", (600, 600)).save(file, "BMP")
    with (folder / "cat/holes.bmp").open("wb") as bitmap:
        bitmap.write(file.getvalue()[:64])
        bitmap.truncate(len(file.getvalue()))
    return folder


# --- writers ---------------------------------------------------------------------------------------------------


def gnu_tar(*options: str, fill: Callable[[Path], Path] = make_links) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        run("tar", *options, "-cf", folder / "a.tar", "cat", "dog", cwd=fill(folder / "in"))
        return folder / "a.tar"

    return write


def bsd_tar(*options: str, name: str = "a.tar", fill: Callable[[Path], Path] = make_links) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        run("bsdtar", *options, "-cf", folder / name, "cat", "dog", cwd=fill(folder / "in"))
        return folder / name

    return write


def bsd_tar_piped(*options: str) -> Callable[[Path], Path]:
    """Write where it cannot seek, so that sizes follow the data."""

    def write(folder: Path) -> Path:
        made = ["bsdtar", *options, "-cf", "-", "cat", "dog"]
        data = subprocess.run(made, cwd=make_links(folder / "in"), check=True, capture_output=True, env=UTF_8).stdout
        (folder / "a.zip").write_bytes(data)
        return folder / "a.zip"

    return write


def info_zip(*options: str, fill: Callable[[Path], Path] = make_images) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        run("zip", *options, "-r", folder / "a.zip", "cat", "dog", cwd=fill(folder / "in"))
        return folder / "a.zip"

    return write


def info_zip_piped(folder: Path) -> Path:
    made = ["zip", "-r", "-", "cat", "dog"]
    data = subprocess.run(made, cwd=make_images(folder / "in"), check=True, capture_output=True, env=UTF_8).stdout
    (folder / "a.zip").write_bytes(data)
    return folder / "a.zip"


def seven_zip(*options: str, name: str = "a.zip") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        run(SEVEN_ZIP, "a", *options, folder / name, "cat", "dog", cwd=make_images(folder / "in"))
        return folder / name

    return write


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w", **options) as archive:
            for member, data in members:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return folder / "a.tar"

    return write


def zip_of(
    members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, *, system: int = 3, comment: bytes = b""
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.comment = comment
            for name, data in members:
                info = zipfile.ZipInfo(name)
                info.create_system, info.compress_type, info.filename = system, method, name
                archive.writestr(info, data)
        return folder / "a.zip"

    return write


def named(*names: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(name), picture(i)) for i, name in enumerate(names)]


def pictures(*names: str) -> list[tuple[str, bytes]]:
    return [(name, picture(i)) for i, name in enumerate(names)]


def put_together(folder: Path) -> Path:
    parts = [tar_of(named(f"{number}/1.png", f"{number}/2.png"))(folder).read_bytes() for number in range(3)]
    (folder / "a.tar").write_bytes(b"".join(parts))
    return folder / "a.tar"


def appended(folder: Path) -> Path:
    """Add members again, with other bytes: the last ones count."""
    path = gnu_tar()(folder)
    (folder / "in/cat/1.png").write_bytes(picture(77))
    run("tar", "-rf", path, "cat/1.png", cwd=folder / "in")
    return path


def of_volumes(folder: Path) -> Path:
    """Return the first of two volumes; a member goes over their border."""
    make_images(folder / "in")
    (folder / "in/cat/large.bmp").write_bytes(b"BM" + bytes(30_000))
    volumes = ("-f", str(folder / "a.tar"), "-f", str(folder / "b.tar"))
    run("tar", "-M", "-L", "40", *volumes, "-c", "dog", "cat", cwd=folder / "in")
    return folder / "a.tar"


def incremental(folder: Path) -> Path:
    run("tar", "-g", folder / "state", "-cf", folder / "a.tar", "cat", "dog", cwd=make_images(folder / "in"))
    return folder / "a.tar"


def hard_links_with_data(folder: Path) -> Path:
    """Write a hard link that has its data beside it, as POSIX allows in pax archives."""
    one = tarfile.TarInfo("cat/1.png")
    one.size = len(picture(1))
    link = tarfile.TarInfo("cat/2.png")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "cat/1.png", len(picture(1))
    body = picture(1) + bytes(-len(picture(1)) % 512)
    last = tarfile.TarInfo("dog/3.png")
    last.size = len(picture(3))
    parts = [one.tobuf(tarfile.USTAR_FORMAT), body, link.tobuf(tarfile.USTAR_FORMAT), body]
    parts += [last.tobuf(tarfile.USTAR_FORMAT), picture(3) + bytes(-len(picture(3)) % 512), bytes(1024)]
    (folder / "a.tar").write_bytes(b"".join(parts))
    return folder / "a.tar"


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def raw_tar(*members: tuple[bytes, bytes, bytes]) -> Callable[[Path], Path]:
    """Write members of raw name, type and data."""

    def write(folder: Path) -> Path:
        blocks = []
        for name, kind, data in members:
            info = tarfile.TarInfo("x")
            info.size = len(data)
            header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
            header[: len(name)] = name
            header[156:157] = kind
            blocks += [with_checksum(header), data, bytes(-len(data) % 512)]
        (folder / "a.tar").write_bytes(b"".join([*blocks, bytes(1024)]))
        return folder / "a.tar"

    return write


def size_in_pax_alone(folder: Path) -> Path:
    """State the size in the PAX header alone; the header itself says 0."""
    body = picture(1)
    record = b"%d size=%d\n" % (9 + len(str(len(body))), len(body))
    record = b"%d%s" % (len(record), record[record.index(b" ") :])
    info = tarfile.TarInfo("cat/1.png")
    extended = tarfile.TarInfo("PaxHeaders/1.png")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    parts = [extended.tobuf(tarfile.USTAR_FORMAT), record + bytes(-len(record) % 512)]
    parts += [info.tobuf(tarfile.USTAR_FORMAT), body + bytes(-len(body) % 512), bytes(1024)]
    (folder / "a.tar").write_bytes(b"".join(parts))
    return folder / "a.tar"


def cut(write: Callable[[Path], Path], keep: float) -> Callable[[Path], Path]:
    def cut_off(folder: Path) -> Path:
        path = write(folder)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return cut_off


def surrounded(write: Callable[[Path], Path], before: bytes, after: bytes) -> Callable[[Path], Path]:
    def put_around(folder: Path) -> Path:
        path = write(folder)
        path.write_bytes(before + path.read_bytes() + after)
        return path

    return put_around


def raw_names(*names: bytes, system: int = 3, flag: int = 0) -> Callable[[Path], Path]:
    """Write a zip with raw names."""

    def write(folder: Path) -> Path:
        data, directory = b"", b""
        for i, name in enumerate(names):
            body = picture(i)
            fields = struct.pack("<HHHHLLLHH", flag, 0, 0, 0, zlib.crc32(body), len(body), len(body), len(name), 0)
            entry = b"PK\x01\x02" + bytes([20, system]) + b"\x14\0" + fields
            directory += entry + struct.pack("<HHHLL", 0, 0, 0, 0, len(data)) + name
            data += b"PK\x03\x04\x14\0" + fields + name + body
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(names), len(names), len(directory), len(data), 0)
        (folder / "a.zip").write_bytes(data + directory + end)
        return folder / "a.zip"

    return write


def as_macos_packs(folder: Path) -> Path:
    """Write as the Finder does: names in NFD without the flag, streamed, with resource forks beside."""
    members = [("cat/e\u0301.png", picture(1)), ("__MACOSX/cat/._e\u0301.png", b"\0\x05\x16\x07" + bytes(40))]
    return zip_of([*members, ("cat/.DS_Store", b"\0\0\0\x01Bud1"), ("dog/2.png", picture(2))])(folder)


@dataclass(frozen=True)
class Odd:
    """A kind of archive.

    Attributes
    ----------
    what : str
        What is odd about it.
    write : callable
        Writes one into a folder.
    explained : dict of str to str
        Program → why it reads the archive in another way.
    """

    what: str
    write: Callable[[Path], Path]
    explained: dict[str, str] = field(default_factory=dict)


PNGS = [(f"{label}/{i}.png", picture(10 * i)) for i, label in enumerate(("cat", "dog", "cat"))]
ODD = [
    *(Odd(f"GNU tar, format {style}", gnu_tar(f"--format={style}")) for style in ("gnu", "oldgnu", "pax")),
    *(Odd(f"bsdtar, format {style}", bsd_tar("--format", style)) for style in ("gnutar", "pax", "paxr")),
    *(
        Odd(f"GNU tar, sparse file, format {style}", gnu_tar("-S", f"--format={style}", fill=make_holes))
        for style in ("gnu", "oldgnu")
    ),
    *(
        Odd(
            f"GNU tar, sparse file, PAX {version}",
            gnu_tar("-S", "--format=pax", f"--sparse-version={version}", fill=make_holes),
            {"7z": "does not know the name of the file"} if version != "0.0" else {},
        )
        for version in ("0.0", "0.1", "1.0")
    ),
    Odd(
        "bsdtar, sparse file",
        bsd_tar("--format", "pax", fill=make_holes),
        {"7z": "does not know the name of the file"},
    ),
    Odd("GNU tar, label of the volume", gnu_tar("-V", "photos")),
    Odd("GNU tar, extended attributes", gnu_tar("--format=pax", "--xattrs", "--acls")),
    Odd("GNU tar, one block a record", gnu_tar("-b", "1")),
    Odd("GNU tar, first of two volumes", of_volumes),
    Odd("GNU tar, incremental", incremental, {"7z": "takes times for a part of the name"}),
    Odd("GNU tar, members added again", appended, {"7z": "writes through hard links"}),
    Odd("three tars put together", put_together),
    Odd(
        "tar, absolute names and ..",
        tar_of(named("/abs/1.png", "../up/2.png", "a/../b/3.png", "./c/4.png")),
        {"7z": "leaves .. out of names"},
    ),
    Odd("tar, line break, tab, backslash, spaces", tar_of(named("a\nb.png", "a\tb.png", "a\\b.png", " a .png"))),
    Odd("tar, names of Windows", tar_of(named("cat\\1.png", "dog\\2.png"))),
    Odd("tar, name of 100, folder of 155 letters", tar_of(named("d" * 155 + "/" + "n" * 96 + ".png"), format=0)),
    Odd("tar, same name twice", tar_of([*named("a.png", "b.png"), (tarfile.TarInfo("a.png"), picture(9))])),
    Odd("tar, names not UTF-8", raw_tar((b"cat/\xe9.png", b"0", picture(1)), (b"cat/\xff.png", b"0", picture(2)))),
    Odd("tar, types 7 and NUL", raw_tar((b"1.png", b"7", picture(1)), (b"2.png", b"\0", picture(2)))),
    Odd("tar, type of no standard", raw_tar((b"1.png", b"Q", picture(1)), (b"2.png", b"0", picture(2)))),
    Odd("tar, hard link with data", hard_links_with_data),
    Odd("tar, size in the PAX header alone", size_in_pax_alone),
    Odd("tar, comment for all members", tar_of(named("a.png"), format=1, pax_headers={"comment": "é"})),
    Odd("tar, cut off", cut(tar_of(named(*NAMES)), 0.45)),
    Odd("tar, without an end", cut(tar_of(named("1.png", "2.png")), 0.2)),
    Odd("tar, bytes after the end", surrounded(tar_of(named("1.png")), b"", b"a signature")),
    Odd("Info-ZIP", info_zip()),
    Odd("Info-ZIP, stored", info_zip("-0")),
    Odd("Info-ZIP, links", info_zip("-y", fill=make_links)),
    Odd("Info-ZIP, zip64", info_zip("-fz")),
    Odd("Info-ZIP, streamed", info_zip_piped),
    Odd("Info-ZIP, bzip2", info_zip("-Z", "bzip2")),
    Odd("Info-ZIP, encrypted", info_zip("-P", "x")),
    Odd("Info-ZIP, without folders", info_zip("-D")),
    Odd("bsdtar, zip", bsd_tar("--format", "zip", name="a.zip")),
    Odd("bsdtar, zip, stored", bsd_tar("--format", "zip", "--options", "compression=store", name="a.zip")),
    Odd("bsdtar, zip, streamed", bsd_tar_piped("--format", "zip")),
    Odd("bsdtar, zip, zip64", bsd_tar("--format", "zip", "--options", "zip:zip64", name="a.zip")),
    Odd("7z, zip", seven_zip("-tzip")),
    Odd("7z, zip, UTF-8 names", seven_zip("-tzip", "-mcu=on")),
    *(
        Odd(f"7z, zip, {method}", seven_zip("-tzip", f"-mm={method}"))
        for method in ("Copy", "Deflate64", "BZip2", "LZMA", "PPMd")
    ),
    *(Odd(f"7z, zip, {method}", seven_zip("-tzip", "-px", f"-mem={method}")) for method in ("AES256", "ZipCrypto")),
    Odd("7z, tar", seven_zip("-ttar", name="a.tar")),
    Odd("Python, zip, LZMA", zip_of(PNGS, zipfile.ZIP_LZMA)),
    Odd("zip, same name twice", zip_of([*PNGS, (PNGS[0][0], picture(9))])),
    Odd("zip, a comment that looks like a directory", zip_of(PNGS, comment=b"PK\x01\x02 and PK\x03\x04")),
    Odd("zip, behind a program", surrounded(zip_of(PNGS), b"MZ" + bytes(4000), b"")),
    Odd("zip, bytes after the end", surrounded(zip_of(PNGS), b"", b"\r\n")),
    Odd("zip, cut off", cut(zip_of(PNGS), 0.9)),
    Odd(
        "zip, absolute names, drives and ..",
        zip_of(pictures("/abs/1.png", "../up/2.png", "C:/x/3.png", "a/../b/4.png")),
        {"7z": "leaves .. out of names"},
    ),
    Odd(
        "zip, folders by backslash",
        raw_names(b"cat\\1.png", b"dog\\2.png", system=0),
        {"7z": "keeps backslashes in names"},
    ),
    Odd(
        "zip, backslash in names of Unix",
        raw_names(b"a\\1.png", b"dog/2.png"),
        {"bsdtar": "takes every backslash for a slash"},
    ),
    Odd("zip, UTF-8 names without the flag", raw_names("dog/é日.png".encode(), b"cat/2.png")),
    Odd(
        "zip, names of code page 437",
        raw_names("dog/é.png".encode("cp437"), b"cat/2.png", system=0),
        dict.fromkeys(("bsdtar", "7z"), "keeps the bytes"),
    ),
    Odd("zip, line break and tab", raw_names(b"a\nb.png", b"a\tb.png", flag=0x800)),
    Odd("zip as macOS packs", as_macos_packs),
]


# --- comparison ------------------------------------------------------------------------------------------------


def unpack(program: str, path: Path, folder: Path) -> Images:
    """Return the images that a program unpacks, by name; hidden files, which are left out here, are not images."""
    folder.mkdir()
    if program == "bsdtar":
        command = ["bsdtar", "-xf", str(path), "-C", str(folder), "--passphrase", "x"]
    else:
        command = [SEVEN_ZIP, "x", "-y", "-snld20", "-px", f"-o{folder}", str(path)]
    subprocess.run(command, check=False, capture_output=True, env=UTF_8, stdin=subprocess.DEVNULL)
    found: Images = {}
    for place, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # a link that leads nowhere
                os.chmod(os.path.join(place, name), 0o700)  # noqa: PTH101, PTH118  # bytes; members may forbid reading
        folders[:] = [name for name in folders if not name.startswith(b".") and name != b"__MACOSX"]
        for name in files:
            file = os.path.join(place, name)  # noqa: PTH118  # bytes
            data = Path(os.fsdecode(file)).read_bytes() if os.path.exists(file) else b""  # noqa: PTH110  # as above
            if not name.startswith(b".") and (kind_of_image(data[:SNIFF_BYTES]) or named_like_an_image(name)):
                found[os.fsdecode(os.path.relpath(file, os.fsencode(folder)))] = data
    return found


@dataclass
class Here:
    """What this program makes of an archive: rows, what is left out with its reason, or why it is refused."""

    rows: Images = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: str = ""


def read_here(path: Path) -> Here:
    try:
        source = open_source(str(path))
    except SourceError as error:
        return Here(refused=str(error).replace(str(path.parent), ""))
    here, read = Here(left_out={skip.key: skip.reason for skip in source.skipped}), source.reader()
    for i in range(len(source)):
        try:
            here.rows[source[i].key] = read(source.locator(i))
        except OSError:
            here.damaged.add(source[i].key)
    return here


def as_unpacked(key: str) -> str:
    """Return the name that an unpacking program gives a member: in the composed form, and never outside its folder."""
    return os.path.normpath(unicodedata.normalize("NFC", key).lstrip("/")).replace("../", "").replace("C:/", "")


def differences(here: Here, there: Images) -> list[str]:
    """Return what another program unpacks and is neither a row of the same bytes nor left out by its name."""
    if here.refused:
        return []
    there = {as_unpacked(name): data for name, data in there.items()}
    rows = {as_unpacked(key): data for key, data in here.rows.items()}
    named_here = {as_unpacked(key) for key in [*here.left_out, *here.damaged]}
    found = [f"{name!r} is lost" for name in there if name not in rows and name not in named_here]
    return found + [f"{name!r} has other bytes" for name in there if name in rows and rows[name] != there[name]]


def compare(odd: Odd, folder: Path) -> tuple[Here, dict[str, tuple[Images, list[str]]]]:
    """Write an archive into ``folder`` and read it with all programs; return what differs, by program."""
    path = odd.write(folder)
    here = read_here(path)
    programs = {}
    for program in ("bsdtar", "7z"):
        there = unpack(program, path, folder / program)
        programs[program] = there, differences(here, there)
    return here, programs


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name)] + ([] if SEVEN_ZIP else ["7z"])


def cell(odd: Odd, program: str, here: Here, there: Images, differ: list[str]) -> str:
    """Return what a program unpacks, for the table."""
    if differ:
        return odd.explained.get(program) or "**" + "; ".join(differ) + "**"
    more = len({as_unpacked(key) for key in here.rows} - {as_unpacked(name) for name in there})
    return f"{len(there)} of {len(there) + more}" if more else str(len(there))


def outcome(here: Here) -> str:
    """Return the reasons of what is no row, for the table."""
    if here.refused:
        reason = re.search(r" \((.+?)\)|archive \S+: (.+): ", here.refused)
        assert reason is not None
        return f"refused: {reason[1] or reason[2]}"
    reasons = set(here.left_out.values()) | ({"damaged"} if here.damaged else set())
    return ", ".join(sorted(reasons)) or "–"


def main() -> int:
    if missing := missing_programs():
        print(f"expected {', '.join(missing)}, found none: install libarchive-tools, 7zip, tar, zip", file=sys.stderr)
        return 1
    wrong = 0
    print("| archive | rows | no rows | bsdtar | 7z |\n|---|---|---|---|---|")
    for odd in ODD:
        with tempfile.TemporaryDirectory() as name:
            os.environ["XDG_CACHE_HOME"] = f"{name}/indexes"
            here, programs = compare(odd, Path(name))
        cells = [cell(odd, program, here, *found) for program, found in programs.items()]
        wrong += sum("**" in text for text in cells)
        print(f"| {odd.what} | {len(here.rows)} | {outcome(here)} | {' | '.join(cells)} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
