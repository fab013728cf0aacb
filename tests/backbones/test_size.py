"""``--size``: position embeddings as the family interpolates them, and the size in the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision.models as models
from safetensors.torch import save_file
from torchvision.models.vision_transformer import interpolate_embeddings

from pipeline.backbones import finetuned, load_backbone
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.errors import BackboneError
from tests.backbones import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def normalised(images: torch.Tensor, backbone: Any) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    return (images.permute(0, 3, 1, 2) / 255.0 - mean) / std


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_at_another_size_gives_timms_own_numbers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model(name).state_dict(), file)
    backbone = load_backbone(f"timm/{name}", str(file), size=224)
    sized: dict[str, Any] = {"img_size": 224} if name == "test_vit" else {}
    theirs: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **sized).eval()
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(normalised(images, backbone)), pre_logits=True)
        assert torch.nn.functional.cosine_similarity(backbone.network(images)[0], expected).min() > 0.999999
    data: Any = timm.data
    crop_pct = data.resolve_model_data_config(theirs)["crop_pct"]
    assert backbone.preprocess.crop == (224, 224)
    assert backbone.preprocess.resize == (int(224 / crop_pct),)


def test_the_size_is_part_of_the_numbers_and_of_the_spec() -> None:
    own, other = (load_backbone("timm/test_resnet", "random", size=size) for size in (0, 192))
    assert "size" not in own.to_spec()["preprocess"]
    assert other.to_spec()["preprocess"]["size"] == 192
    assert load_backbone("timm/test_resnet", "random", size=192).to_spec() == other.to_spec()  # remembered
    assert load_backbone("timm/test_resnet", "random").to_spec() == own.to_spec()
    assert backbone_of_spec(other.to_spec()).to_spec() == other.to_spec()


def test_torchvisions_transformers_by_its_own_interpolation() -> None:
    # A small one; the family's own are large.
    whole = models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=1000).eval()
    from pipeline.backbones.network import Body
    from pipeline.backbones.torchvision import _at_size
    from pipeline.decoding.preprocess import Preprocess

    plain = Preprocess((40,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)
    state = interpolate_embeddings(64, 8, whole.state_dict())
    larger = models.VisionTransformer(64, 8, 1, 2, 16, 32, num_classes=1000).eval()
    larger.load_state_dict(state)
    body = _at_size(Body("v", whole, plain, "n", "o"), 64)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(body.module(x), larger(x))
    assert body.preprocess.resize == (80,)
    with pytest.raises(BackboneError, match="multiple of its patches of 8 pixels, found 60: pass 56"):
        _at_size(body, 60)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("timm/test_vit", 100, "cannot take images of 100 × 100"), ("torchvision/maxvit_t", 256, "takes no other input")],
)
def test_a_size_that_a_network_cannot_take_is_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name, "random", size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["transformers", "open_clip"])
def test_families_that_take_one_size_refuse_another_by_name(family: str, tmp_path: Path) -> None:
    pytest.importorskip(family)
    if family == "transformers":
        tiny.save(tmp_path / "net", "clip")
    else:
        tiny.save_open_clip(tmp_path / "net")
    with pytest.raises(BackboneError, match=f"--size: {family}:net takes no other input than its own: leave it out"):
        load_backbone(f"{family}:{tmp_path / 'net'}", size=96)


def test_the_fine_tuned_keep_their_size(tmp_path: Path) -> None:
    backbone = load_backbone("timm/test_vit", "random", size=224)
    file = tmp_path / "run" / finetuned.BACKBONE_FILE
    file.parent.mkdir()
    finetuned.save_backbone(file, backbone)
    tuned = load_backbone(None, str(file))
    assert tuned.weights.sha256 == backbone.weights.sha256
    assert (tuned.preprocess, tuned.name) == (backbone.preprocess, backbone.name)
    with pytest.raises(BackboneError, match="was fine-tuned at 224, found 160"):
        load_backbone(None, str(file), size=160)
