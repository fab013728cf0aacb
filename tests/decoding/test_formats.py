from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.formats import KINDS, SNIFF_BYTES, is_image, kind_of_image, named_like_an_image
from pipeline.decoding.image import DecodePolicy, decode
from pipeline.decoding.table import modes_in_markdown, unread_in_markdown

SOURCES_PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def box(*brands: bytes) -> bytes:
    """Return the first box of a file of the ISO base media format; the first brand is the major one."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 4) + body


def outcome(data: bytes) -> tuple[Status, str]:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (box(b"avif"), "AVIF"),
        (box(b"mif1", b"avif", b"miaf"), "AVIF"),
        (box(b"miaf", b"MA1B", b"mif1", b"avis"), "AVIF"),
        (box(b"mif1", *[b"miaf"] * 20, b"avif"), "AVIF"),
        (box(b"heic", b"mif1", b"avif"), "HEIC"),
        (box(b"mif1", b"heic"), "HEIC"),
        (box(b"msf1", b"hevc"), "HEIC"),
        (box(b"mif1"), "HEIC"),
        (box(b"crx ", b"isom"), "camera RAW file"),
        (box(b"jxl "), "JPEG XL image"),
        (box(b"isom", b"mp42"), "video"),
        (box(b"qt  "), "video"),
    ],
)
def test_any_brand_counts(head: bytes, kind: str) -> None:
    found = kind_of_image(head[:SNIFF_BYTES])
    assert found is not None
    assert found.name == kind


UNREAD = {
    "camera RAW file": [
        b"II*\0\x10\0\0\0CR\2\0",
        b"IIRO\x08\0",
        b"IIU\0",
        b"FUJIFILMCCD-RAW ",
        b"FOVb",
        b"II\x1a\0\0\0HEAPCCDR",
    ],
    "SVG drawing": [
        b'<svg width="2">',
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg>',
        b"<!-- " + b"x" * 2000 + b" --><svg>",
        gzip.compress(b"<svg/>"),
        "<svg/>".encode("utf-16"),
    ],
    "PDF document": [b"%PDF-1.7\n"],
    "PostScript document": [b"%!PS-Adobe-3.0 EPSF"],
    "JPEG XL image": [b"\xff\x0a\0\0", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "OpenEXR image": [b"\x76\x2f\x31\x01\2\0\0\0"],
    "Radiance HDR image": [b"#?RADIANCE\n"],
    "floating-point PFM image": [b"PF\n2 2\n-1.0\n", b"Pf\r\n2 2\r\n-1.0\r\n"],
    "Photoshop document": [b"8BPS\0\1"],
    "icon with several pictures": [b"\0\0\1\0\1\0\x10\x10\0\0\1\0", b"\0\0\2\0\1\0\x10\x10\0\0\1\0", b"icns\0\0\0\x20"],
    "DDS texture": [b"DDS |\0\0\0"],
    "FITS image": [b"SIMPLE  =                    T"],
    "JPEG XR image": [b"II\xbc\x01"],
    "medical volume": [
        b"NRRD0004\n",
        b"ObjectType = Image\nNDims = 3\n",
        struct.pack("<I", 348) + bytes(340) + b"n+1\0",
    ],
    "Windows metafile": [b"\1\0\x09\0\0\3", b"\xd7\xcd\xc6\x9a\0\0"],
    "X pixmap": [b"/* XPM */", b"#define dot_width 8\n", b"/* made by hand */\n#define dot_width 8\n"],
    "bitmap without its file header": [struct.pack("<IiiHHII", 40, 2, 2, 1, 24, 0, 16).ljust(40, b"\0")],
    "DPX or Cineon film scan": [b"SDPX\0\0", b"XPDS\0\x20", b"\x80\x2a\x5f\xd7\0\0"],
    "KTX texture": [b"\xabKTX 20\xbb\r\n\x1a\n"],
    "video": [b"RIFF\0\0\0\0AVI LIST", b"\x1aE\xdf\xa3", box(b"mp42")],
}


@pytest.mark.parametrize("name", UNREAD)
def test_kinds_that_are_not_read_say_what_to_do(name: str) -> None:
    remedy = next(kind.remedy for kind in KINDS if kind.name == name)
    for start in UNREAD[name]:
        assert outcome(start.ljust(600, b" ")) == (Status.UNSUPPORTED, f"{name}: {remedy}")


@pytest.mark.parametrize("compression", [None, "tga_rle"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_targa_is_known_by_its_end_or_its_header(mode: str, compression: str | None) -> None:
    out = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(out, "TGA", compression=compression)
    whole, mark = out.getvalue(), b"TRUEVISION-XFILE.\0"
    for data in (whole, whole.removesuffix(mark), b"words" + mark):
        status, reason = outcome(data)
        assert (status, "Targa" in reason) == (Status.UNSUPPORTED, True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n <HTML><svg></svg></HTML>", "a web page"),
        (bytes(5000), "zeros"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"error": "denied"}', "JSON"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
        (b"words", "no image of a known format"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, words: str) -> None:
    status, reason = outcome(data)
    assert status == Status.NOT_AN_IMAGE
    assert words in reason


@pytest.mark.parametrize(
    "text", [b"BMW,2020,4.5\nAudi,2021,3\n", b"P1 score\n0.5\n", b"P5\tgene\n", b"\nabcd", b"path,label\n", b"PF 1\n"]
)
def test_text_that_begins_like_an_image_is_none(text: bytes) -> None:
    assert not is_image(text.ljust(SNIFF_BYTES, b"x"))


def test_names_of_every_kind() -> None:
    for name in (
        "a.JPG",
        "b/c.heic",
        "x.CR2",
        "x.dcm",
        "x.svg",
        "x.jxl",
        "x.exr",
        "x.webp",
        "a.b.tif",
    ):
        assert named_like_an_image(name.encode()), name
    for name in (
        "a",
        "jpg",
        "a.csv",
        "a.jpg.txt",
        ".gitignore",
        "a.jpg/readme",
        "x.npy",
        "x.h5",
        "x.tar",
        "x.pdf",
        "x.mp4",
    ):
        assert not named_like_an_image(name.encode()), name


def test_the_formats_of_a_policy_are_kept() -> None:
    out = io.BytesIO()
    Image.new("RGB", (3, 2)).save(out, "PNG")
    with pytest.raises(DecodeError, match="PNG is not among"):
        decode(out.getvalue(), DecodePolicy(formats=("JPEG",)))
    assert np.asarray(decode(out.getvalue(), DecodePolicy(formats=("PNG",)))).shape == (2, 3, 3)


def test_the_document_has_the_tables_of_the_code() -> None:
    text = SOURCES_PAGE.read_text(encoding="utf-8")
    assert modes_in_markdown() in text
    assert unread_in_markdown() in text
