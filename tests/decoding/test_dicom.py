from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode

pydicom = pytest.importorskip("pydicom")
Array = np.ndarray[Any, Any]
_random = np.random.default_rng(3)


def dicom(pixels: Array, kind: str = "MONOCHROME2", stored: int | None = None, **tags: Any) -> bytes:
    """Return a DICOM file of (H, W) or (H, W, 3) pixels; (F, H, W) with NumberOfFrames."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"II*\0" + bytes(124))
    bands = 3 if kind in ("RGB", "YBR_FULL") else 1
    file.Rows, file.Columns = pixels.shape[-2 - (bands > 1)], pixels.shape[-1 - (bands > 1)]
    file.SamplesPerPixel, file.PhotometricInterpretation = bands, kind
    if bands > 1:
        file.PlanarConfiguration = 0
    file.BitsAllocated = pixels.dtype.itemsize * 8
    file.BitsStored = stored or file.BitsAllocated
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.add_new(0x7FE00010, "OB" if pixels.dtype.itemsize == 1 else "OW", pixels.tobytes())
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def grey(data: bytes) -> Array:
    found = decode(data)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def test_without_a_window_the_stored_bits_are_the_range() -> None:
    twelve = _random.integers(0, 4096, (7, 9)).astype(np.uint16)
    expected = np.rint(twelve * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(grey(dicom(twelve, stored=12)), expected)
    assert np.array_equal(grey(dicom(twelve, "MONOCHROME1", stored=12)), 255 - expected)
    signed = _random.integers(-2048, 2048, (7, 9)).astype(np.int16)
    expected = np.rint((signed.astype(float) + 2048) * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(grey(dicom(signed, stored=12)), expected)
    assert np.array_equal(grey(dicom(signed, stored=12, RescaleSlope="2", RescaleIntercept="-1000")), expected)
    eight = _random.integers(0, 256, (7, 9)).astype(np.uint8)
    assert np.array_equal(grey(dicom(eight)), eight)
    downwards = grey(dicom(eight, RescaleSlope="-1", RescaleIntercept="255"))
    assert np.array_equal(downwards, 255 - eight)


def test_the_first_window_applies_to_rescaled_values() -> None:
    stored = _random.integers(0, 4096, (7, 9)).astype(np.uint16)
    units = stored.astype(float) - 1024
    window: dict[str, Any] = {
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "WindowCenter": ["40", "7"],
        "WindowWidth": ["400", "9"],
    }
    # PS3.3 C.11.2.1.2, written as the standard does.
    linear = np.where(
        units <= 40 - 0.5 - 399 / 2, 0, np.where(units > 40 - 0.5 + 399 / 2, 255, ((units - 39.5) / 399 + 0.5) * 255)
    )
    assert np.array_equal(grey(dicom(stored, stored=12, **window)), np.rint(linear))
    exact = np.clip(((units - 40) / 400 + 0.5) * 255, 0, 255)
    assert np.array_equal(grey(dicom(stored, stored=12, VOILUTFunction="LINEAR_EXACT", **window)), np.rint(exact))
    sigmoid = 255 / (1 + np.exp(-4 * (units - 40) / 400))
    assert np.array_equal(grey(dicom(stored, stored=12, VOILUTFunction="SIGMOID", **window)), np.rint(sigmoid))


def test_colours_and_frames() -> None:
    rgb = _random.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    assert np.array_equal(decode(dicom(rgb, "RGB")), rgb)
    frames = _random.integers(0, 256, (2, 7, 9)).astype(np.uint8)
    assert np.array_equal(grey(dicom(frames, NumberOfFrames=2)), frames[0])


def item(**tags: Any) -> Any:
    """Return a sequence of one item."""
    made = pydicom.Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return pydicom.Sequence([made])


def lookup(entries: Array, bits: int) -> Any:
    table = item(LUTDescriptor=[len(entries), 0, bits])
    table[0].add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return table


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_enhanced_objects_state_their_window_in_functional_groups(groups: str) -> None:
    stored = _random.integers(0, 4096, (7, 9)).astype(np.uint16)
    window: dict[str, Any] = {"WindowCenter": "40", "WindowWidth": "400"}
    rescale: dict[str, Any] = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    group = item(FrameVOILUTSequence=item(**window), PixelValueTransformationSequence=item(**rescale))
    assert np.array_equal(grey(dicom(stored, **{groups: group})), grey(dicom(stored, **window, **rescale)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", ["0", "-100"])
def test_a_window_of_no_width_counts_as_none(function: str, width: str) -> None:
    stored = _random.integers(0, 4096, (7, 9)).astype(np.uint16)
    window: dict[str, Any] = {"WindowCenter": "2000", "WindowWidth": width, "VOILUTFunction": function}
    assert np.array_equal(grey(dicom(stored, stored=12, **window)), grey(dicom(stored, stored=12)))


def test_tables_of_values() -> None:
    stored = _random.integers(0, 4096, (7, 9)).astype(np.uint16)
    up = np.arange(4096)
    for entries, bits in ((up // 16, 8), (up, 12), (up * 16, 16)):  # more entries than 8 bits count
        expected = np.rint(entries[stored] * (255 / ((1 << bits) - 1)))
        assert np.array_equal(grey(dicom(stored, stored=12, VOILUTSequence=lookup(entries, bits))), expected)
        assert np.array_equal(grey(dicom(stored, stored=12, ModalityLUTSequence=lookup(entries, bits))), expected)
    short = lookup(up, 16)
    short[0].LUTData = short[0].LUTData[:8000]
    with pytest.raises(DecodeError, match="a table of 4096 entries has 4000") as caught:
        decode(dicom(stored, stored=12, VOILUTSequence=short))
    assert caught.value.status == Status.CORRUPT


@pytest.mark.parametrize(("bits", "kind", "scale"), [(8, "u1", 1), (8, "<u2", 1), (8, "<u2", 257), (16, "<u2", 257)])
def test_palettes_of_each_width(bits: int, kind: str, scale: int) -> None:
    colours = _random.integers(0, 256, (256, 3))
    indices = _random.integers(0, 256, (7, 9)).astype(np.uint8)
    tags: dict[str, Any] = {}
    for band, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = (colours[:, band] * scale).astype(kind).tobytes()
    assert np.array_equal(decode(dicom(indices, "PALETTE COLOR", **tags)), colours[indices])


def test_samples_in_the_high_bits_are_refused() -> None:
    ten = _random.integers(0, 1024, (7, 9)).astype(np.uint16)
    with pytest.raises(DecodeError, match="10-bit samples end at bit 15") as caught:
        decode(dicom(ten << 6, stored=10, HighBit=15))
    assert caught.value.status == Status.UNSUPPORTED
    assert np.array_equal(grey(dicom(ten, stored=10, HighBit=15)), grey(dicom(ten, stored=10)))


@pytest.mark.parametrize("is_implicit", [False, True])
def test_files_without_preamble_or_header_are_read(is_implicit: bool) -> None:
    eight = _random.integers(0, 256, (7, 9)).astype(np.uint8)
    whole = dicom(eight, SpecificCharacterSet="ISO_IR 100")
    assert np.array_equal(grey(whole[132:]), eight)
    out = io.BytesIO()
    pydicom.dcmwrite(
        out,
        pydicom.Dataset(pydicom.dcmread(io.BytesIO(whole))),
        implicit_vr=is_implicit,
        little_endian=True,
        enforce_file_format=False,
    )
    assert out.getvalue()[128:132] != b"DICM"
    for start in (b"", bytes(128) + b"DICM"):
        assert np.array_equal(grey(start + out.getvalue()), eight)


def test_a_file_that_is_cut_off_is_corrupt() -> None:
    eight = _random.integers(0, 256, (7, 9)).astype(np.uint8)
    whole = dicom(eight)
    packed = io.BytesIO()
    file = pydicom.dcmread(io.BytesIO(whole))
    file.compress(pydicom.uid.RLELossless)
    file.save_as(packed)
    at = whole.index(b"\xe0\x7f\x10\0")
    for data in (whole[:-20], whole[:at], packed.getvalue()[:-30]):
        with pytest.raises(DecodeError) as caught:
            decode(data)
        assert caught.value.status == Status.CORRUPT


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = dicom(np.zeros((7, 9), np.uint32))
    for data, status, words in (
        (wide, Status.UNSUPPORTED, "32-bit"),
        (dicom(np.zeros((7, 9), np.uint8), "HSV"), Status.UNSUPPORTED, "HSV"),
        (dicom(np.zeros((7, 9), np.uint8))[:-20], Status.CORRUPT, "expected"),
    ):
        with pytest.raises(DecodeError, match=words) as caught:
            decode(data)
        assert caught.value.status == status
    with pytest.raises(DecodeError) as caught:
        decode(dicom(np.zeros((7, 9), np.uint8)), DecodePolicy(max_pixels=60))
    assert caught.value.status == Status.TOO_LARGE
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DecodeError, match=r"pip install 'embedding-pipeline\[dicom\]'") as caught:
        decode(wide)
    assert caught.value.status == Status.UNSUPPORTED
