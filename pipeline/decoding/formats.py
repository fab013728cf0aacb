"""The kinds of image files: how each is recognised, by content and by name, and what to do about those not read.

A file of any of these kinds gets a row, except documents and videos. Kinds that are not read are named in its reason,
so that a missing picture needs no guess.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

SNIFF_BYTES = 256
"""Enough for the brands of an AVIF or HEIC, and for the mark of a DICOM file at byte 128."""

HEIC, DICOM, TIFF = "HEIC", "DICOM", "TIFF"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of image file.

    Attributes
    ----------
    name : str
        Pillow's name of a format that is read; otherwise the name people know it by.
    suffixes : str
        Of file names, separated by spaces.
    remedy : str
        What to do with a file that is not read; empty for kinds that are.
    is_picture : bool
        Whether such a file beside images is meant as one. Documents and videos, which lie beside many collections, are
        not: they are left out as other files are.
    """

    name: str
    suffixes: str
    remedy: str = ""
    is_picture: bool = True


_EXPORT = "save it as PNG or TIFF"
_READ = (
    Kind("JPEG", "jpg jpeg jpe jfif mpo"),
    Kind("PNG", "png apng"),
    Kind("GIF", "gif"),
    Kind("BMP", "bmp"),
    Kind("WEBP", "webp"),
    Kind(TIFF, "tif tiff btf tf8 lsm svs ndpi"),
    Kind("PPM", "ppm pgm pbm pnm"),
    Kind("JPEG2000", "jp2 j2k jpx jpf j2c jpc"),
    Kind("AVIF", "avif avifs"),
    Kind(HEIC, "heic heif hif"),
    Kind(DICOM, "dcm dicom"),
)
RAW = Kind(
    "camera RAW file",
    "cr2 cr3 crw nef nrw arw srf sr2 dng orf raf rw2 rwl pef srw x3f 3fr fff iiq kdc dcr mrw erf mef",
    "develop it to JPEG or TIFF first",
)
_SVG = Kind("SVG drawing", "svg svgz", "render it to PNG at the size you need")
_PDF = Kind("PDF document", "pdf", "render its pages to PNG", is_picture=False)
_POSTSCRIPT = Kind("PostScript document", "eps", "render it to PNG")
_JXL = Kind("JPEG XL image", "jxl", "convert it to PNG or JPEG")
_EXR = Kind("OpenEXR image", "exr", "map its values, which have no stated range, to 8 or 16 bit")
_HDR = Kind("Radiance HDR image", "hdr", "map its values, which have no stated range, to 8 or 16 bit")
_PFM = Kind("floating-point PFM image", "pfm", "map its values, which have no stated range, to 8 or 16 bit")
_PAM = Kind("PAM image", "pam", _EXPORT)
_PSD = Kind("Photoshop document", "psd psb", "export it as PNG or TIFF")
_XCF = Kind("GIMP document", "xcf", "export it as PNG or TIFF")
_ICON = Kind("icon with several pictures", "ico cur icns", "extract the picture you need as PNG")
_DDS = Kind("DDS texture", "dds", _EXPORT)
_QOI = Kind("QOI image", "qoi", _EXPORT)
_TGA = Kind("Targa image", "tga", _EXPORT)
_PCX = Kind("PCX image", "pcx", _EXPORT)
_SGI = Kind("SGI image", "sgi", _EXPORT)
_SUN = Kind("Sun raster image", "ras", _EXPORT)
_XPM = Kind("X pixmap", "xpm xbm", _EXPORT)
_DIB = Kind("bitmap without its file header", "dib", "save it as BMP or PNG")
_DPX = Kind("DPX or Cineon film scan", "dpx cin", "map its values to 8 or 16 bit and save them as PNG or TIFF")
_KTX = Kind("KTX texture", "ktx ktx2", _EXPORT)
_METAFILE = Kind("Windows metafile", "wmf emf", "render it to PNG")
_JXR = Kind("JPEG XR image", "jxr wdp hdp", _EXPORT)
_JLS = Kind("JPEG-LS image", "jls", _EXPORT)
_BPG = Kind("BPG image", "bpg", _EXPORT)
_FLIF = Kind("FLIF image", "flif", _EXPORT)
_DJVU = Kind("DjVu document", "djvu djv", "render its pages to PNG", is_picture=False)
_MNG = Kind("MNG animation", "mng jng", "save a frame of it as PNG")
_FITS = Kind("FITS image", "fits fts", "map its values to 8 or 16 bit and save them as PNG or TIFF")
_VOLUME = Kind("medical volume", "nii nrrd mha", "save the slices you need as PNG or TIFF")
_MICROSCOPE = Kind("microscope file", "czi nd2 lif oib oif vsi mrxs", "export the planes you need as TIFF")
_VIDEO = Kind(
    "video", "mp4 m4v mov avi mkv webm mpg mpeg wmv 3gp", "extract the frames you need as images", is_picture=False
)
KINDS = (
    *_READ, RAW, _SVG, _PDF, _POSTSCRIPT, _JXL, _EXR, _HDR, _PFM, _PAM, _PSD, _XCF, _ICON, _DDS, _QOI, _TGA, _PCX, _SGI,
    _SUN, _XPM, _DIB, _DPX, _KTX, _METAFILE, _JXR, _JLS, _BPG, _FLIF, _DJVU, _MNG, _FITS, _VOLUME, _MICROSCOPE, _VIDEO,
)  # fmt: skip

NO_PICTURES = {kind.name: kind.remedy for kind in KINDS if not kind.is_picture}
_NAMED = {kind.name: kind for kind in _READ}
IMAGE_SUFFIXES = frozenset(
    b"." + suffix.encode() for kind in KINDS if kind.is_picture for suffix in kind.suffixes.split()
)

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", _NAMED["JPEG"]),
    (b"\x89PNG\r\n\x1a\n", _NAMED["PNG"]),
    (b"GIF87a", _NAMED["GIF"]),
    (b"GIF89a", _NAMED["GIF"]),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _NAMED["JPEG2000"]),
    (b"\xff\x4f\xff\x51", _NAMED["JPEG2000"]),
    (b"II*\0\x10\0\0\0CR", RAW),  # Canon's, which begin like a TIFF
    (b"II*\0", _NAMED[TIFF]),
    (b"MM\0*", _NAMED[TIFF]),
    (b"II+\0", _NAMED[TIFF]),
    (b"MM\0+", _NAMED[TIFF]),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
    (b"II\x1a\0\0\0HEAPCCDR", RAW),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"\0MRM", RAW),
    (b"FOVb", RAW),
    (b"%PDF-", _PDF),
    (b"%!PS", _POSTSCRIPT),
    (b"\xc5\xd0\xd3\xc6", _POSTSCRIPT),
    (b"\xff\x0a", _JXL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (b"\x76\x2f\x31\x01", _EXR),
    (b"#?RADIANCE", _HDR),
    (b"#?RGBE", _HDR),
    (b"PF\n", _PFM),
    (b"Pf\n", _PFM),
    (b"PF\r\n", _PFM),
    (b"Pf\r\n", _PFM),
    (b"P7\n", _PAM),
    (b"8BPS\0", _PSD),
    (b"gimp xcf ", _XCF),
    (b"icns\0", _ICON),
    (b"DDS |\0\0\0", _DDS),
    (b"qoif", _QOI),
    (b"\x59\xa6\x6a\x95", _SUN),
    (b"/* XPM */", _XPM),
    (b"SDPX\0", _DPX),
    (b"XPDS\0", _DPX),
    (b"\x80\x2a\x5f\xd7\0\0", _DPX),
    (b"\xd7\x5f\x2a\x80", _DPX),
    (b"\xabKTX ", _KTX),
    (b"\xd7\xcd\xc6\x9a\0\0", _METAFILE),
    (b"II\xbc\x01", _JXR),
    (b"BPG\xfb", _BPG),
    (b"FLIF", _FLIF),
    (b"AT&TFORM", _DJVU),
    (b"\x8aMNG\r\n\x1a\n", _MNG),
    (b"\x8bJNG\r\n\x1a\n", _MNG),
    (b"SIMPLE  =", _FITS),
    (b"NRRD000", _VOLUME),
    (b"ZISRAWFILE", _MICROSCOPE),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"\0\0\x01\xba", _VIDEO),
    (b"\0\0\x01\xb3", _VIDEO),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
_BARE_DICOM = re.compile(
    rb"\x02\0[\0\x01\x02\x10]\0(?:UL|OB|UI)"  # the header alone; or the data set alone, with types or without
    rb"|\x08\0[\0\x01\x05\x08\x16]\0(?:UL|CS|UI)"
    rb"|\x08\0[\x05\x08\x16]\0[\x02-\x40]\0\0\0(?:ISO|ORIG|DERI|1\.2\.)"
    rb"|\x08\0\0\0\x04\0\0\0....\x08\0",
    re.DOTALL,
)
"""How a DICOM file without its mark begins, in little endian."""
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_XBM_SIZE = re.compile(rb"(?:/\*.*?\*/\s*)?#define\s+\S*_(?:width|height)\s", re.DOTALL)
_BARE_METAFILE = re.compile(rb"[\1\2]\0\x09\0\0[\1\3]")
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body")
_OTHERS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"version https://git-lfs", "a pointer of Git LFS (run 'git lfs pull')"),
)


def kind_of_image(head: bytes) -> Kind | None:
    """Return the kind of image that a file's first `SNIFF_BYTES` bytes show, or None."""
    if head[128:132] == b"DICM":
        return _NAMED[DICOM]  # whose first 128 bytes may be those of another format
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    if head[:4] == b"RIFF":
        return {b"WEBP": _NAMED["WEBP"], b"AVI ": _VIDEO}.get(head[8:12])
    return _kind_by_structure(head)


def is_image(head: bytes) -> bool:
    """Return whether a file's first `SNIFF_BYTES` bytes are those of an image of any kind, read or not."""
    kind = kind_of_image(head)
    return kind is not None and kind.is_picture


def named_like_an_image(name: bytes) -> bool:
    """Return whether the suffix of a file's name is that of an image of any kind, read or not.

    Examples
    --------
    >>> named_like_an_image(b"cat/1.JPG"), named_like_an_image(b"raw/1.nef"), named_like_an_image(b"labels.csv")
    (True, True, False)
    """
    _, dot, suffix = name.rpartition(b"/")[2].lower().rpartition(b".")
    return dot + suffix in IMAGE_SUFFIXES


def unread_kind(data: bytes) -> Kind | None:
    """Return the kind of a file that has a row, by signs that are too weak to find images by; none of these is read."""
    start = data[: 16 * SNIFF_BYTES]
    plain = _plain(start)
    text = _start_of_text(plain)
    if text.startswith(b"<") and b"<svg" in text and not text.startswith(_WEB_PAGE):
        return _SVG
    if _XBM_SIZE.match(text):
        return _XPM
    if text.startswith((b"objecttype = image", b"ndims =")) or plain[344:348] in (b"n+1\0", b"ni1\0"):
        return _VOLUME
    if _BARE_METAFILE.match(start):
        return _METAFILE
    if len(start) >= 40 and struct.unpack_from("<I", start)[0] in _BMP_HEADERS[2:] and start[12:14] == b"\1\0":
        return _DIB
    return _TGA if _is_targa(start) or data.endswith(b"TRUEVISION-XFILE.\0") else None


def _plain(start: bytes) -> bytes:
    """Return the start of a text that is packed by gzip, or in UTF-16, as it would be without."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return start.decode("utf-16", "ignore").encode()
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, len(start))
    except zlib.error:
        return start


def _is_targa(start: bytes) -> bool:
    """Return whether a header of 18 bytes is that of a Targa image of the first version, which has no mark."""
    if len(start) < 18:
        return False
    _, has_colours, kind, first, colours, bits, _, _, width, height, depth, flags = struct.unpack(
        "<BBBHHBHHHHBB", start[:18]
    )
    table_fits = (colours > first and bits in (15, 16, 24, 32)) if has_colours else (first, colours, bits) == (0, 0, 0)
    kind_fits = kind in ((1, 9) if has_colours else (2, 3, 10, 11)) and depth in (8, 15, 16, 24, 32)
    return has_colours < 2 and table_fits and kind_fits and width * height > 0 and flags < 64


def what_it_is(data: bytes) -> str:
    """Say of bytes that are no image what they seem to be."""
    if not data:
        return "an empty file"
    text = _start_of_text(data[:SNIFF_BYTES])
    if text.startswith(_WEB_PAGE):
        return "a web page (HTML), perhaps of a failed download"
    if not any(data[:SNIFF_BYTES]):
        return "zeros, as of an unfinished copy"
    for magic, what in _OTHERS:
        if data.startswith(magic):
            return what
    if text.startswith((b"{", b"[", b"<")):
        return "JSON or XML text"
    return "no image of a known format"


def _kind_of_brands(head: bytes) -> Kind | None:
    """Distinguish the files of the ISO base media format by the brands in their first box: any of them counts."""
    length = struct.unpack(">I", head[:4])[0]
    listed = head[8:12] + head[16 : min(length, len(head))]
    brands = {listed[at : at + 4] for at in range(0, len(listed) - 3, 4)}
    if b"crx " in brands:
        return RAW
    if b"jxl " in brands:
        return _JXL
    if head[8:12] in _HEIC_BRANDS - {b"mif1", b"msf1"}:
        return _NAMED[HEIC]
    if brands & _AVIF_BRANDS:
        return _NAMED["AVIF"]
    return _NAMED[HEIC] if brands & _HEIC_BRANDS else _VIDEO


def _kind_by_structure(head: bytes) -> Kind | None:
    """Recognise kinds whose first bytes alone are too short to be certain: text may begin with them."""
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack("<I", head[14:18])[0] in _BMP_HEADERS:
        return _NAMED["BMP"]
    if len(head) < 4:
        return None
    if _BARE_DICOM.match(head):
        return _NAMED[DICOM]
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#":
        return _NAMED["PPM"] if head[2:3] == b"#" or head[3:4] in b"0123456789# \t\r\n" else None
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and 0 < int.from_bytes(head[4:6], "little") <= 64 and head[9:10] == b"\0":
        return _ICON
    if head[:2] == b"\x01\xda" and head[2:3] in (b"\0", b"\1") and head[3:4] in (b"\1", b"\2"):
        return _SGI
    if head[:1] == b"\n" and head[1:2] in b"\0\2\3\4\5" and head[2:3] == b"\1" and head[3:4] in b"\1\2\4\10":
        return _PCX
    if head[:4] == b"\1\0\0\0" and head[40:44] == b" EMF":
        return _METAFILE
    text = _start_of_text(head)
    return _SVG if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text) else None


def _start_of_text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
