"""DICOM images, where the extra `dicom` is installed: stored values → grey levels, as the standard displays them.

Modality transformation, then the first window or table of values of interest (PS3.3 C.11.1, C.11.2). Where the file
has none, the range of the stored bits. Of several frames the first.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError, check_size, first_words, unsupported
from pipeline.decoding.samples import RGB, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def read_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """Read the first frame as RGB.

    Raises
    ------
    DecodeError
        The extra is not installed; the file holds no picture, or one of a type without a stated range; it is too large.
    """
    try:
        import pydicom  # an extra
    except ModuleNotFoundError:
        raise unsupported(
            "DICOM image: pip install 'embedding-pipeline[dicom]' and extract with --retry-failed, or export it as PNG"
        ) from None
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)  # without its preamble too
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise unsupported("DICOM of floating-point pixels, which have no stated range: map them to 16 bit")
        if "Rows" in dataset or not len(dataset):  # pydicom drops what it has read of a file that is cut off
            raise DecodeError(Status.CORRUPT, "its pixels are missing, as of an unfinished copy")
        raise DecodeError(Status.NOT_AN_IMAGE, "a DICOM object without pixels, such as a report or a plan")
    _name_transfer_syntax(dataset)
    _apply_functional_groups(dataset)
    check_size((int(dataset.Columns), int(dataset.Rows)), max_pixels)
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if kind not in (*_GREY, *_COLOURS, _PALETTE):
        raise unsupported(f"DICOM with the photometric interpretation {kind or 'of none'}: export it as PNG")
    frame = _first_frame(dataset)
    if kind in _GREY:
        levels = _grey_levels(frame, dataset)
        return Image.fromarray(255 - levels if kind == "MONOCHROME1" else levels).convert("RGB")
    if kind == _PALETTE:
        return _palette_colours(frame, dataset)
    if int(dataset.get("PixelRepresentation", 0)) or frame.dtype.itemsize > 2:
        raise unsupported(f"DICOM with colours of type {frame.dtype}, which have no stated range: export it as PNG")
    return Samples(frame, (1 << int(dataset.BitsStored)) - 1, RGB).rgb()


def _name_transfer_syntax(dataset: Any) -> None:
    """State the encoding that the data set was read by, where the file has no header that does."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit


def _apply_functional_groups(dataset: Any) -> None:
    """Copy what an enhanced object states for its first frame alone, or for all frames, to where others state it."""
    for groups in _GROUPS:
        for group in list(dataset.get(groups) or ())[:1]:
            for macro in _MACROS:
                for item in list(group.get(macro) or ())[:1]:
                    dataset.update(item)


def _first_frame(dataset: Any) -> Any:
    from pydicom.pixels.utils import pixel_array

    _check_position(dataset)
    try:
        return pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError) as error:
        if "plugin" in str(error) or "decompress" in str(error) or isinstance(error, NotImplementedError):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise unsupported(
                f"DICOM packed by {syntax}, for which pydicom has no decoder here: pip install 'pylibjpeg[all]' and "
                "extract with --retry-failed, or export it as PNG"
            ) from None
        raise DecodeError(Status.CORRUPT, first_words(error)) from None


def _check_position(dataset: Any) -> None:
    """Refuse samples that do not lie in the low bits of their words, as files before 2011 may have it.

    A file whose header says so while the high bits are empty contradicts itself, and is read as the others are.
    """
    stored, allocated = int(dataset.get("BitsStored", 0)), int(dataset.get("BitsAllocated", 0))
    high = int(dataset.get("HighBit", stored - 1))
    if high != stored - 1 and allocated in (8, 16) and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        order = "<" if dataset.original_encoding[1] else ">"
        words = np.frombuffer(dataset.PixelData[: len(dataset.PixelData) & ~1], f"{order}u{allocated // 8}")
        if words.max(initial=0) >> stored:
            raise unsupported(f"DICOM whose {stored}-bit samples end at bit {high} of their words: export it as PNG")


def _palette_colours(indices: Any, dataset: Any) -> Image.Image:
    if "RedPaletteColorLookupTableData" not in dataset:  # in segments
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(indices, dataset)
        return Samples(colours, 65535 if colours.dtype.itemsize == 2 else 255, RGB).rgb()
    names = [f"{band}PaletteColorLookupTable" for band in ("Red", "Green", "Blue")]
    tables = [_Table.of(dataset[f"{name}Descriptor"].value, dataset[f"{name}Data"].value, dataset) for name in names]
    # Some writers state 8 bits for values of 16.
    top = tables[0].top if all(table.entries.max() <= table.top for table in tables) else 65535
    return Samples(np.stack([table.of_values(indices) for table in tables], axis=-1), top, RGB).rgb()


@dataclass(frozen=True, slots=True)
class _Table:
    """A lookup table (PS3.3 C.11.1.1): the entry of ``first``, of the values that follow it, and their range."""

    entries: NDArray[np.uint16]
    first: int
    top: int

    @classmethod
    def of(cls, descriptor: Any, data: Any, dataset: Any) -> _Table:
        """Return the table of a descriptor and its data.

        Raises
        ------
        DecodeError
            The entries have no stated range, or some are missing.
        """
        count, first, bits = (int(number) for number in descriptor)
        count = count & 0xFFFF or 1 << 16
        if not 8 <= bits <= 16:
            raise unsupported(f"DICOM with a table of {bits}-bit entries: export it as PNG")
        top = (1 << bits) - 1
        if isinstance(data, bytes):
            entries = np.frombuffer(data[: len(data) & ~1], "<u2" if dataset.original_encoding[1] else ">u2")
            if len(entries) < count <= len(data) <= count + 1:  # two in a word
                entries, top = entries.astype("<u2").view(np.uint8), 255
        else:
            entries = np.asarray(data, np.int64) & 0xFFFF
        entries = entries[:count].astype(np.uint16)
        if len(entries) < count:
            raise DecodeError(Status.CORRUPT, f"a table of {count} entries has {len(entries)}")
        return cls(entries, first, top)

    @classmethod
    def of_item(cls, item: Any, dataset: Any) -> _Table:
        """Return the table of an item of a sequence of tables."""
        return cls.of(item.LUTDescriptor, item.LUTData, dataset)

    def of_values(self, values: Any) -> NDArray[np.uint16]:
        """Return the entries of values; those outside the table have its first or last."""
        at = np.subtract(values, self.first, dtype=np.float64)
        found: NDArray[np.uint16] = self.entries[np.clip(at, 0, len(self.entries) - 1).astype(np.intp)]
        return found


def _grey_levels(stored: Any, dataset: Any) -> NDArray[np.uint8]:
    """Return the displayed grey levels, 0 black, before any inversion."""
    if int(dataset.get("BitsStored", 8)) > 16:
        raise unsupported(f"DICOM of {dataset.BitsStored}-bit pixels, which have no stated range: map them to 16 bit")
    values = _modality_values(stored, dataset)
    if dataset.get("VOILUTSequence"):
        table = _Table.of_item(dataset.VOILUTSequence[0], dataset)
        return _scaled(table.of_values(values), 0, table.top)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None and float(width) > 0:  # the standard knows no other
        function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").upper()
        return _windowed(np.asarray(values, np.float64), float(centre), float(width), function)
    if dataset.get("ModalityLUTSequence"):
        return _scaled(values, 0, _Table.of_item(dataset.ModalityLUTSequence[0], dataset).top)
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0))
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    slope = float(dataset.get("RescaleSlope", 1) or 1)
    low, high = ends if slope > 0 else ends[::-1]
    return _scaled(stored, low, high)


def _modality_values(stored: Any, dataset: Any) -> Any:
    if dataset.get("ModalityLUTSequence"):
        return _Table.of_item(dataset.ModalityLUTSequence[0], dataset).of_values(stored)
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        return stored.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return stored


def _windowed(values: Values, centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return np.asarray(np.rint(255 / (1 + np.exp(-4 * (values - centre) / width))), np.uint8)
    if function == "LINEAR_EXACT":
        return _scaled(values, centre - width / 2, centre + width / 2)
    if width <= 1:  # a threshold
        return np.where(values > centre - 0.5, 255, 0).astype(np.uint8)
    return _scaled(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)), np.uint8)


def _first(value: Any) -> Any:
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) and len(value) else value
