"""The numbers contract at full width: 200 varied images against PIL, the weights' own transform and eager float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torchvision.models import ResNet18_Weights

from pipeline import open_cache
from pipeline.backbones import load_backbone
from pipeline.embedding.settings import RunSettings
from pipeline.engines.selfcheck import least_cosine
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = 200


@pytest.fixture(scope="module")
def varied(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 200 crops: many sizes, seven formats, eight modes, all EXIF orientations."""
    root = tmp_path_factory.mktemp("varied")
    rng = np.random.default_rng(11)
    forms = (
        ("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp"), ("CMYK", "jpg"),
        ("LA", "png"), ("RGB", "tiff"), ("1", "png"), ("RGB", "bmp"),
    )  # fmt: skip
    for i in range(IMAGES):
        photo = photographs[i % 2]
        width, height = (int(n) for n in np.exp(rng.uniform(np.log(16), np.log(420), 2)))
        left, top = int(rng.integers(0, photo.width - width)), int(rng.integers(0, photo.height - height))
        crop = photo.crop((left, top, left + width, top + height))
        mode, ending = forms[i % len(forms)]
        options: dict[str, Any] = {}
        if ending in ("jpg", "webp"):
            exif = Image.Exif()
            exif[0x0112] = i % 8 + 1
            options = {"exif": exif, "quality": int(rng.integers(40, 96))}
        if mode in ("RGBA", "LA"):
            crop.putalpha(Image.linear_gradient("L").resize(crop.size))
        crop.convert(mode).save(root / f"{i:03d}.{ending}", **options)
    return root


def slow_decode(file: Path) -> Image.Image:
    """Decode the plain way: upright, on white, RGB."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image.convert("RGB")


def timm_transform() -> Callable[[Image.Image], torch.Tensor]:
    import timm

    config = resolve_model_data_config(timm.create_model("tf_efficientnet_lite0"))  # type: ignore[no-untyped-call]
    return create_transform(**config, is_training=False)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize(
    ("name", "weights", "transform"),
    [
        ("efficientnet_lite0", None, timm_transform),
        ("torchvision/resnet18", "random", ResNet18_Weights.IMAGENET1K_V1.transforms),
    ],
)
def test_200_varied_images_equal_the_slow_reference(
    name: str, weights: str | None, transform: Any, engine: str, varied: Path, tmp_path: Path
) -> None:
    run = RunSettings(engine=engine, device="cpu", precision="float32")
    extract(str(varied), tmp_path / "c.h5", ExtractSettings(backbone=name, weights=weights, run=run))
    cache = open_cache(tmp_path / "c.h5")
    assert (cache.status == 1).all()
    body, prepare, expected = load_backbone(name, weights).network.body, transform(), []
    with torch.inference_mode():
        for key in cache.keys:
            expected.append(body(prepare(slow_decode(varied / str(key)))[None]).numpy()[0])
    wanted = np.stack(expected)
    cosine = least_cosine(cache.embeddings, wanted)
    print(f"{name}, {engine}: least cosine over {IMAGES} images {cosine:.9f}")
    assert cosine >= 0.99999
    # Each row is its own image's: no other row of the reference is nearer, but for one that is the same (blank crops).
    nearest = _cosines(cache.embeddings, wanted).argmax(1)
    assert np.diagonal(_cosines(wanted[nearest], wanted)).min() > 0.99999
    assert (nearest == np.arange(IMAGES)).mean() > 0.95


def _cosines(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
