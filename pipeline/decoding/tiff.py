"""TIFF files: the header decides which page is the picture, what its samples mean, and which library reads them.

Pillow reads the ordinary layouts, as it always did. tifffile reads what Pillow reads wrongly or not at all. What has no
stated range, or no stated meaning, is refused by name.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError, check_size, unsupported
from pipeline.decoding.formats import RAW
from pipeline.decoding.orientation import orientation_in_xmp, turned
from pipeline.decoding.samples import CMYK, COLOURS, GREY, PREMULTIPLIED, RGB, STRAIGHT, Samples

if TYPE_CHECKING:
    from collections.abc import Callable

    import tifffile
    from PIL import Image

MIN_IS_WHITE, MIN_IS_BLACK, PHOTOMETRIC_RGB, PALETTE, MASK, SEPARATED, YCBCR = range(7)
_LAB = 8
_PHOTOMETRICS = {
    MIN_IS_WHITE: GREY,
    MIN_IS_BLACK: GREY,
    PHOTOMETRIC_RGB: RGB,
    SEPARATED: CMYK,
}
_CFA, _LINEAR_RAW = 32803, 34892
_REFUSED_COLOURS = {
    MASK: "a transparency mask",
    9: "ICC Lab colours",
    10: "ITU Lab colours",
    32844: "LogL values",
    32845: "LogLuv values",
    51177: "depth values",
}
_RAW_COMPRESSIONS = (32767, 32769, 34713, 65000, 65535)
_FORMS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_UNDEFINED_FORM = 4  # which TIFF 6.0 lets readers take for unsigned integers
_UNSIGNED = 1
_OF_PILLOW = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
"""Compressions of every build of Pillow: none, CCITT's (2 to 4), LZW, JPEG's (6, 7), deflate, PackBits."""
_REDUCED, _MASK_PAGE = 1, 4
_MOST_SAMPLES, _MOST_PAGES = 64, 64
_ASSOCIATED, _UNASSOCIATED = 1, 2


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header of a page says about its samples; the names are those of TIFF's tags."""

    width: int
    height: int
    bits: tuple[int, ...]
    forms: tuple[int, ...]
    photometric: int | None
    planar: bool
    samples: int
    extras: tuple[int, ...] | None
    compression: int
    inks: int
    subsampling: tuple[int, ...]

    @classmethod
    def of_tags(cls, value: Callable[[int, Any], Any]) -> Layout:
        """Return the layout, given the function that looks up a tag by its number, with a default."""
        photometric = value(262, None)
        # Some writers of JPEG leave it out, and Lab and YCbCr have three in any case.
        samples = int(_first(value(277, 3 if photometric in (YCBCR, _LAB) else 1)))
        extras = value(338, None)
        return cls(
            width=int(_first(value(256, 0))),
            height=int(_first(value(257, 0))),
            bits=_numbers(value(258, 1)),
            forms=_numbers(value(339, _UNSIGNED)),
            photometric=None if photometric is None else int(_first(photometric)),
            planar=int(_first(value(284, 1))) == 2 and samples > 1,
            samples=samples,
            extras=None if extras is None else _numbers(extras),
            compression=int(_first(value(259, 1))),
            inks=int(_first(value(332, 1))),
            subsampling=_numbers(value(530, (2, 2))),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """How a page is read: what its bands are, and whether Pillow gives the same.

    Attributes
    ----------
    colour : str or None
        See `Samples`; None for palettes.
    bits : int
    inverted : bool
    alpha : str or None
        See `Samples`.
    undeclared : bool
        A fourth band that the header does not explain: it must be opaque everywhere.
    by_pillow : bool
    """

    colour: str | None
    bits: int
    inverted: bool = False
    alpha: str | None = None
    undeclared: bool = False
    by_pillow: bool = False


def reading_of(layout: Layout) -> Reading:
    """Decide by the header how a page is read.

    Raises
    ------
    DecodeError
        Its samples have no stated range or meaning; the reason names their type.
    """
    bits = _bits(layout)
    photometric = layout.photometric
    if photometric in (_CFA, _LINEAR_RAW) or layout.compression in _RAW_COMPRESSIONS:
        raise unsupported(f"{RAW.name}: {RAW.remedy}")
    if photometric in _REFUSED_COLOURS:
        raise unsupported(f"TIFF with {_REFUSED_COLOURS[photometric]}: convert it to RGB or grey")
    if photometric == YCBCR:
        # Pillow unpacks what is compressed by libtiff, which knows subsampling and planes, and other files by itself.
        is_whole = layout.subsampling == (1, 1) and not layout.planar
        if bits != 8 or layout.samples != 3 or layout.compression not in _OF_PILLOW:
            raise unsupported(f"TIFF with YCbCr colours in {layout.samples} × {bits} bits: convert it to RGB")
        if layout.compression == 1 and not is_whole:
            raise unsupported("TIFF with YCbCr colours, uncompressed, in planes or subsampled: convert it to RGB")
        return Reading(RGB, bits, by_pillow=True)
    if photometric == _LAB:
        if bits != 8 or layout.samples != 3 or layout.planar or layout.compression not in _OF_PILLOW:
            raise unsupported(f"TIFF with CIE Lab colours in {layout.samples} × {bits} bits: convert it to RGB")
        return Reading(RGB, bits, by_pillow=True)
    if photometric == PALETTE:
        with_alpha = layout.samples == 2 and bits == 8 and layout.extras in ((0,), (2,)) and not layout.planar
        if bits > 8 or not (layout.samples == 1 or with_alpha) or layout.compression not in _OF_PILLOW:
            raise unsupported(f"TIFF with a palette and {layout.samples} × {bits} bits: convert it to RGB")
        return Reading(None, bits, by_pillow=layout.forms[0] == _UNSIGNED)
    if photometric not in _PHOTOMETRICS:
        raise unsupported(f"TIFF that does not say what its samples mean (photometric {photometric}): save it again")
    colour = _PHOTOMETRICS[photometric]
    alpha, undeclared = _alpha(layout, colour)
    reading = Reading(colour, bits, photometric == MIN_IS_WHITE, alpha, undeclared)
    if reading.inverted and alpha == PREMULTIPLIED:
        raise unsupported("TIFF with inverted grey and premultiplied alpha: convert it to RGB")
    return Reading(colour, bits, reading.inverted, alpha, undeclared, by_pillow=_suits_pillow(layout, reading))


def _bits(layout: Layout) -> int:
    """Return the bits of a sample, all of one unsigned type."""
    bits, forms = layout.bits, layout.forms
    if not 0 < layout.samples <= _MOST_SAMPLES:
        raise unsupported(f"TIFF with {layout.samples} samples per pixel: save the bands you need")
    if len(set(bits)) > 1 or len(set(forms)) > 1:
        raise unsupported(f"TIFF whose bands differ in type (bits {bits}, sample formats {forms}): save it again")
    form = _FORMS.get(forms[0])
    if form is not None:
        raise unsupported(f"TIFF of {bits[0]}-bit {form}, which have no stated range: convert it to 8 or 16 bit")
    if forms[0] not in (_UNSIGNED, _UNDEFINED_FORM):
        raise unsupported(f"TIFF of an unknown sample format ({forms[0]}): convert it to 8 or 16 bit")
    if not 0 < bits[0] <= 16:
        raise unsupported(
            f"TIFF of {bits[0]}-bit unsigned integers, which have no stated range: convert it to 8 or 16 bit"
        )
    return bits[0]


def _alpha(layout: Layout, colour: str) -> tuple[str | None, bool]:
    """Return the kind of alpha, and whether a fourth band of RGB is undeclared."""
    further = layout.samples - COLOURS[colour]
    if further < 0:
        raise unsupported(f"TIFF of {colour} with {layout.samples} bands: save it again")
    if colour == CMYK and layout.inks != 1:
        raise unsupported(f"TIFF of inks that are not CMYK (InkSet {layout.inks}): convert it to RGB")
    extras = layout.extras or ()
    if len(extras) > further:
        raise unsupported(f"TIFF of {layout.samples} bands, {len(extras)} of them beside {colour}: save it again")
    if further and not extras and colour == RGB and further == 1:
        return None, True
    if further and not extras:
        raise unsupported(f"TIFF of {layout.samples} bands without a stated meaning: save the bands you need as RGB")
    alpha = {_ASSOCIATED: PREMULTIPLIED, _UNASSOCIATED: STRAIGHT}.get(extras[0]) if further else None
    if colour == GREY and further > 1:
        raise unsupported(f"TIFF of {layout.samples} bands without a stated colour: save the bands you need as RGB")
    if colour == CMYK and alpha:
        raise unsupported("TIFF of CMYK with alpha: convert it to RGB")
    return alpha, False


def _suits_pillow(layout: Layout, reading: Reading) -> bool:
    """Return whether Pillow reads the layout rightly: what it read in every version of this program."""
    if layout.compression not in _OF_PILLOW or layout.forms[0] != _UNSIGNED or reading.undeclared:
        return False
    if layout.planar and layout.compression not in (6, 7):
        return False
    if reading.colour == GREY:
        return layout.samples == 1 and reading.bits in (1, 2, 4, 8)
    return reading.bits == 8 and layout.samples - COLOURS[reading.colour or RGB] <= (reading.colour == RGB)


def read_tiff(data: bytes, max_pixels: int) -> Image.Image | bytes:
    """Read a TIFF, or return it for Pillow.

    Parameters
    ----------
    data : bytes
    max_pixels : int
        See `pipeline.decoding.image.DecodePolicy`.

    Returns
    -------
    Image or bytes
        The picture, upright RGB; or a file that Pillow reads rightly, and whose first page is the picture.

    Raises
    ------
    DecodeError
        As `reading_of`; or the file is damaged or too large.
    """
    import tifffile  # keeps it out of workers that meet no TIFF

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it reports what is raised here anyway
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _picture(file)
        value = page.tags.valueof
        layout = Layout.of_tags(value)
        check_size((layout.width, layout.height), max_pixels)
        reading = reading_of(layout)
        palette = value(320, None) if reading.colour is None else None
        small_palette = palette is not None and np.max(palette) < 256  # written as 8-bit values: black to Pillow
        if reading.by_pillow and not small_palette and not data.startswith(b"MM\0+"):
            return data if page.offset == file.pages[0].offset else _with_first_page(data, page.offset)
        image = _samples(page, layout, reading, palette).rgb()
        return turned(image, value(274, None) or orientation_in_xmp(value(700, b"")))


def check_read_by_pillow(tags: Callable[[int, Any], Any]) -> None:
    """Check that an image which Pillow has opened as a TIFF is one that it reads rightly.

    Parameters
    ----------
    tags : callable
        Looks up a tag by its number, with a default.

    Raises
    ------
    DecodeError
        It is not.
    """
    layout = Layout.of_tags(tags)
    reading = reading_of(layout)
    # Of 16-bit colours it keeps the high bytes, which is one level off at most.
    is_plain = reading.bits in (8, 16) and not (layout.planar or reading.inverted or reading.undeclared)
    if not (reading.by_pillow or is_plain):
        raise unsupported("TIFF that Pillow does not read rightly: pass the path of the file instead")


def _picture(file: tifffile.TiffFile) -> Any:
    """Return the page that is the picture: the first that is no thumbnail and no mask."""
    first: Any = file.pages[0]
    nested = list(first.pages or ())[:_MOST_PAGES] if 330 in first.tags else []
    if 50706 in first.tags or any(page.tags.valueof(262, None) in (_CFA, _LINEAR_RAW) for page in nested):
        raise unsupported(f"{RAW.name}: {RAW.remedy}")  # a DNG, or a maker's own, whose first page is a preview
    if not _is_side_image(first):
        return first
    pages = [first]
    while len(pages) < _MOST_PAGES:
        try:
            pages.append(file.pages[len(pages)])
        except IndexError:
            break
    for page in (*pages, *nested):
        if not _is_side_image(page):
            return page
    return max(pages, key=lambda page: page.tags.valueof(256, 0) * page.tags.valueof(257, 0))


def _is_side_image(page: Any) -> bool:
    return bool(page.tags.valueof(254, 0) & (_REDUCED | _MASK_PAGE)) or page.tags.valueof(255, 1) == 2


def _with_first_page(data: bytes, offset: int) -> bytes:
    """Return the file with another page as its first."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        return data[:8] + struct.pack(order + "Q", offset) + data[16:]
    return data[:4] + struct.pack(order + "I", offset) + data[8:]


def _samples(page: Any, layout: Layout, reading: Reading, palette: Any) -> Samples:
    """Read a page by tifffile."""
    import tifffile  # as above

    try:
        tifffile.TIFF.DECOMPRESSORS[layout.compression]
    except KeyError:
        raise unsupported(f"TIFF packed by method {layout.compression}: save it again, without") from None
    if not all(page.databytecounts):
        raise DecodeError(Status.CORRUPT, "a strip or tile is missing")
    bands, depth, *_ = page.shaped
    if depth != 1:
        raise unsupported(f"TIFF of a volume of {depth} planes: save the planes you need")
    found = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    values = np.moveaxis(found[..., 0], 0, -1) if bands > 1 else found[0]
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.uint16) or values.shape[:2] != (layout.height, layout.width):
        raise unsupported(f"TIFF that is read as {values.dtype} of shape {values.shape}: save it again")
    if reading.colour is None:
        return Samples(_colours_of(palette, values[..., 0]), 255, RGB)
    top = (1 << reading.bits) - 1
    if reading.undeclared and values[..., 3].min() < top:
        raise unsupported("TIFF of 4 bands without a stated meaning: save the bands you need as RGB")
    return Samples(values, top, reading.colour, reading.inverted, reading.alpha)


def _colours_of(palette: Any, indices: Any) -> Any:
    """Look up the colours of a palette, whose values are 16-bit, or 8-bit in the files of some programs."""
    table = np.array(palette, np.uint16).reshape(3, -1).T
    return (table if table.max(initial=0) < 256 else table // 256).astype(np.uint8)[indices]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in value) if isinstance(value, (tuple, list)) else (int(value),)
