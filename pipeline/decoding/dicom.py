"""DICOM images, where the extra `dicom` is installed: stored values → grey levels, as the standard displays them.

Modality transformation, then the first window or table of values of interest (PS3.3 C.11.1, C.11.2). Where the file
has none, the range of the stored bits. Of several frames the first.
"""

from __future__ import annotations

import io
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
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise unsupported("DICOM of floating-point pixels, which have no stated range: map them to 16 bit")
        raise DecodeError(Status.NOT_AN_IMAGE, "a DICOM object without pixels, such as a report or a plan")
    check_size((int(dataset.Columns), int(dataset.Rows)), max_pixels)
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if kind not in (*_GREY, *_COLOURS, _PALETTE):
        raise unsupported(f"DICOM with the photometric interpretation {kind or 'of none'}: export it as PNG")
    frame = _first_frame(dataset)
    if kind in _GREY:
        levels = _grey_levels(frame, dataset)
        return Image.fromarray(255 - levels if kind == "MONOCHROME1" else levels).convert("RGB")
    if kind == _PALETTE:
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(frame, dataset)
        return Samples(colours, _top_of(colours), RGB).rgb()
    if int(dataset.get("PixelRepresentation", 0)) or frame.dtype.itemsize > 2:
        raise unsupported(f"DICOM with colours of type {frame.dtype}, which have no stated range: export it as PNG")
    return Samples(frame, (1 << int(dataset.BitsStored)) - 1, RGB).rgb()


def _first_frame(dataset: Any) -> Any:
    from pydicom.pixels.utils import pixel_array

    try:
        return pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError) as error:
        if "plugin" in str(error) or "decompress" in str(error) or isinstance(error, NotImplementedError):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise unsupported(
                f"DICOM packed by {syntax}, for which pydicom has no decoder here: pip install pylibjpeg"
            ) from None
        raise DecodeError(Status.CORRUPT, first_words(error)) from None


def _grey_levels(stored: Any, dataset: Any) -> NDArray[np.uint8]:
    """Return the displayed grey levels, 0 black, before any inversion."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    if int(dataset.get("BitsStored", 8)) > 16:
        raise unsupported(f"DICOM of {dataset.BitsStored}-bit pixels, which have no stated range: map them to 16 bit")
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        top = (1 << (int(table.LUTDescriptor[2]) or 16)) - 1
        return _scaled(np.asarray(apply_voi(values, dataset, index=0), np.float64), 0.0, float(top))
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None:
        function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").upper()
        return _windowed(np.asarray(values, np.float64), float(centre), float(width), function)
    if dataset.get("ModalityLUTSequence"):
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) or 16
        return _scaled(np.asarray(values, np.float64), 0.0, float((1 << bits) - 1))
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0))
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    slope = float(dataset.get("RescaleSlope", 1) or 1)
    low, high = ends if slope > 0 else ends[::-1]
    return _scaled(np.asarray(stored, np.float64), float(low), float(high))


def _windowed(values: Values, centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return np.asarray(np.rint(255 / (1 + np.exp(-4 * (values - centre) / width))), np.uint8)
    if function == "LINEAR_EXACT":
        return _scaled(values, centre - width / 2, centre + width / 2)
    if width <= 1:  # a threshold
        return np.where(values > centre - 0.5, 255, 0).astype(np.uint8)
    return _scaled(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _scaled(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)), np.uint8)


def _top_of(values: Any) -> int:
    return 65535 if values.dtype.itemsize == 2 else 255


def _first(value: Any) -> Any:
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) and len(value) else value
