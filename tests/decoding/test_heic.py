from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.items import Status
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode

pillow_heif = pytest.importorskip("pillow_heif")


def heic(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=-1, chroma=444, **options)
    return out.getvalue()


@pytest.fixture
def small(photographs: list[Image.Image]) -> Image.Image:
    return photographs[0].resize((48, 32))


def test_colour_grey_and_alpha(small: Image.Image) -> None:
    rgb = np.asarray(small).astype(int)
    assert np.abs(decode(heic(small)).astype(int) - rgb).max() <= 3
    grey = np.asarray(small.convert("L").convert("RGB")).astype(int)
    assert np.abs(decode(heic(small.convert("L"))).astype(int) - grey).max() <= 1
    clear = small.copy()
    clear.putalpha(0)
    assert (decode(heic(clear)) == 255).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_it_is_upright_once(orientation: int, small: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode(heic(small, exif=exif.tobytes())).astype(int)
    expected = np.rot90(np.asarray(small), {3: 2, 6: -1, 8: 1}[orientation]).astype(int)
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).mean() < 2


def test_too_large_damaged_and_without_the_extra(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(small)
    with pytest.raises(DecodeError, match="above the limit of 100") as caught:
        decode(data, DecodePolicy(max_pixels=100))
    assert caught.value.status == Status.TOO_LARGE
    with pytest.raises(DecodeError) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.status == Status.CORRUPT
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match=r"pip install 'embedding-pipeline\[heic\]'") as caught:
        decode(data)
    assert caught.value.status == Status.UNSUPPORTED
