"""What is done with each container and mode: the table of docs/sources.md, which a test keeps equal to this one."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.decoding.formats import KINDS


@dataclass(frozen=True, slots=True)
class Mode:
    """A row of the table: what a header says, and what becomes of the samples."""

    container: str
    header: str
    outcome: str


_SCALED = "scaled by the type's own range and rounded"
_ALPHA = "over white"
TABLE = (
    Mode("every", "8 bits", "as they are"),
    Mode("every", "fewer than 8 bits, 9 to 15 bits", _SCALED),
    Mode("every", "16 bits", "divided by 257 and rounded"),
    Mode("every", "signed, above 16 bits, floating-point, complex", "unsupported: no stated range"),
    Mode("every", "grey", "three equal bands"),
    Mode("every", "palette", "its colours"),
    Mode("every", "alpha, straight or premultiplied; a transparent colour", _ALPHA),
    Mode("every", "CMYK", "RGB by Pillow's formula; Adobe's inverted JPEGs are inverted"),
    Mode("every", "YCbCr", "RGB by the decoder of the format"),
    Mode("every", "colour profile, gamma", "ignored: samples count as sRGB"),
    Mode("every", "EXIF or XMP orientation", "applied"),
    Mode("every", "several frames or pages", "the first"),
    Mode("every", "text, profile or EXIF of any length", "no damage"),
    Mode("JPEG, MPO", "8 bits; grey, YCbCr, RGB, CMYK, YCCK", "read; of MPO the first picture"),
    Mode("JPEG", "CMYK without Adobe's marker, or with one of three bands", "unsupported"),
    Mode("JPEG", "12 bits, JPEG-LS, 2 bands", "unsupported"),
    Mode("PNG, APNG", "every depth and colour type", "read; of APNG the default picture"),
    Mode("PNG", "damaged chunks that decide neither pixels nor orientation", "ignored"),
    Mode("PNG", "CgBI, as Apple's tools make it for iPhones", "unsupported"),
    Mode("GIF, WebP", "every mode", "read"),
    Mode("GIF", "a first frame that is a part of the picture", "over white"),
    Mode("BMP", "1, 4, 8, 16 (555, 565), 24, 32 bits; RLE; top-down", "read"),
    Mode("BMP", "32 bits whose alpha is 0 everywhere", "opaque"),
    Mode("BMP", "runs that leave pixels out", "the first colour of the palette there"),
    Mode("BMP", "other masks, embedded JPEG or PNG", "unsupported"),
    Mode("PPM, PGM, PBM", "any range to 65535, binary or text", "scaled by the range that the file states"),
    Mode("AVIF", "any brand of the file, 8 to 12 bits", "read, reduced to 8 bits by libavif"),
    Mode("JPEG 2000", "8 bits", "read by Pillow"),
    Mode("JPEG 2000", "other depths of grey, RGB and alpha", "read by imagecodecs"),
    Mode("JPEG 2000", "signed, more than 4 bands, other depths of other colours", "unsupported"),
    Mode("TIFF", "BigTIFF; strips, tiles, planes; both byte orders", "read"),
    Mode("TIFF", "MinIsWhite of any depth", "inverted"),
    Mode("TIFF", "first page a thumbnail or a mask", "the first page that is neither"),
    Mode("TIFF", "full picture in a SubIFD of a thumbnail", "the full picture"),
    Mode("TIFF", "further bands beside RGB, CMYK, one of grey", "ignored if declared, and not alpha"),
    Mode("TIFF", "a fourth band that is not declared", "ignored if opaque, else unsupported"),
    Mode("TIFF", "several bands of grey, other inks than CMYK, no photometric tag", "unsupported"),
    Mode("TIFF", "undefined sample format (4)", "as unsigned"),
    Mode("TIFF", "palette whose values are all below 256", "8-bit colours"),
    Mode("TIFF", "CIE Lab of 8 bits", "RGB by LittleCMS"),
    Mode("TIFF", "other Lab, LogLuv, masks, volumes, YCbCr of other depths", "unsupported"),
    Mode("TIFF", "camera RAW: DNG, NEF, ARW and others", "unsupported"),
    Mode("HEIC, HEIF", "every mode", "the primary picture, upright, reduced to 8 bits by libheif"),
    Mode("DICOM", "MONOCHROME1, MONOCHROME2", "rescaled; the first window or VOI table; 1 inverted"),
    Mode("DICOM", "the same without window or table", "the range of the stored bits"),
    Mode("DICOM", "a window of no width", "ignored"),
    Mode("DICOM", "RGB, YBR, PALETTE COLOR", "RGB"),
    Mode("DICOM", "several frames", "the first, by its own functional groups"),
    Mode("DICOM", "no preamble, no header", "read by the encoding of its data set"),
    Mode("DICOM", "samples in the high bits of their words", "unsupported"),
    Mode("DICOM", "above 16 bits, floating-point", "unsupported"),
)


def modes_in_markdown() -> str:
    """Return the table of containers and modes as it stands in docs/sources.md."""
    lines = [f"| {mode.container} | {mode.header} | {mode.outcome} |" for mode in TABLE]
    return "\n".join(["| container | header says | outcome |", "|---|---|---|", *lines])


def unread_in_markdown() -> str:
    """Return the table of kinds that are named and not read, as it stands in docs/sources.md."""
    lines = [
        f"| {kind.name} | {_short(kind.suffixes)} | {kind.remedy} |"
        for kind in KINDS
        if kind.remedy and kind.is_picture
    ]
    return "\n".join(["| kind | such as | what to do |", "|---|---|---|", *lines])


def _short(suffixes: str) -> str:
    names = suffixes.split()
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
