"""timm's own folders: what `timm.models.save_for_hf` writes is what is embedded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf

from pipeline.backbones import load_backbone
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = "test_vit"


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def saved(folder: Path, seed: int = 1, **options: Any) -> Any:
    """Save a network of five classes, and return it."""
    torch.manual_seed(seed)
    whole: Any = timm.create_model(ARCHITECTURE, num_classes=5, **options).eval()
    save_for_hf(whole, str(folder), model_args=options, safe_serialization=True)
    return whole


def test_a_folder_gives_timms_own_features(tmp_path: Path) -> None:
    whole = saved(tmp_path / "net", init_values=0.3, class_token=True)
    backbone = load_backbone(f"local-dir:{tmp_path / 'net'}")
    assert backbone.name == "local-dir:net"
    assert backbone.weights.name == "path"
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (int(height), int(width), 3), np.uint8)).convert(mode).convert("RGB")
        for (width, height), mode in zip(
            rng.integers(30, 400, (50, 2)), 10 * ["RGB", "L", "CMYK", "1", "P"], strict=True
        )
    ]
    data: Any = timm.data
    config = data.resolve_model_data_config(whole)
    transform: Any = data.create_transform(**config)
    tensors = torch.stack([transform(image) for image in images])
    with torch.inference_mode():
        theirs = whole.forward_head(whole.forward_features(tensors), pre_logits=True)
        ours = backbone.network(torch.tensor(np.stack([backbone.preprocess.apply(image) for image in images])))[0]
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.999999


def test_a_changed_folder_is_another_backbone(tmp_path: Path) -> None:
    name = f"local-dir:{tmp_path / 'net'}"
    saved(tmp_path / "net")
    first = load_backbone(name)
    assert load_backbone(name).weights == first.weights
    saved(tmp_path / "net", seed=2)
    assert load_backbone(name).weights.sha256 != first.weights.sha256


def test_the_arguments_of_the_network_are_part_of_its_identity(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b", global_pool="avg", fc_norm=False)
    a, b = (load_backbone(f"local-dir:{tmp_path / name}") for name in ("a", "b"))
    tensors = [{name: tuple(t.shape) for name, t in each.network.body.state_dict().items()} for each in (a, b)]
    assert tensors[0] == tensors[1]
    assert a.weights.sha256 != b.weights.sha256


def test_a_spec_finds_the_folder_again_also_where_it_moved(tmp_path: Path) -> None:
    saved(tmp_path / "here" / "net")
    spec = load_backbone(f"local-dir:{tmp_path / 'here' / 'net'}", None, ("blocks.1:cls",)).to_spec()
    assert backbone_of_spec(spec).to_spec() == spec
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(BackboneError, match="pass --weights FOLDER"):
        backbone_of_spec(spec)
    moved = backbone_of_spec(spec, str(tmp_path / "there" / "net"))
    assert moved.weights.sha256 == spec["weights"]["sha256"]


def test_tensors_that_are_missing_are_named_and_never_random(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    file = tmp_path / "net" / "model.safetensors"
    state = load_file(file)
    del state["blocks.0.norm1.weight"]
    save_file(state, file)
    with pytest.raises(BackboneError, match=r"blocks\.0\.norm1\.weight") as caught:
        load_backbone(f"local-dir:{tmp_path / 'net'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "found none"), ("{", "found none"), ({"model_type": "vit"}, "use transformers:"),
     ({"architecture": "no_such_net", "pretrained_cfg": {}}, "Unknown model")],
)  # fmt: skip
def test_what_is_no_folder_of_timm_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    file.unlink()
    if config is not None:
        file.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(f"local-dir:{tmp_path / 'net'}")
    assert "\n" not in str(caught.value)


def test_a_file_of_other_weights_and_random_ones(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    name = f"local-dir:{tmp_path / 'net'}"
    other = saved(tmp_path / "other", seed=2)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone(name, str(tmp_path / "w.safetensors"))
    assert backbone.weights.name == "file"
    assert backbone.weights.sha256 == load_backbone(f"local-dir:{tmp_path / 'other'}").weights.sha256
    assert load_backbone(name, "random").weights.name == "random"
    with pytest.raises(BackboneError, match="brings its own weights"):
        load_backbone(name, "main")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache with one repository, and the setting that forbids to ask the hub."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    repository = root / "models--lab--net"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    saved(snapshot)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_repository_in_the_local_cache_is_used_offline_at_its_commit(local_hub: Path) -> None:
    backbone = load_backbone("hf-hub:lab/net")
    assert backbone.name == "hf-hub:lab/net"
    assert backbone.weights.name == COMMIT
    assert backbone.weights.source == f"hf-hub:lab/net@{COMMIT}"
    spec = backbone.to_spec()
    assert load_backbone("hf-hub:lab/net@v1").to_spec() == spec
    assert backbone_of_spec(spec).to_spec() == spec
    assert backbone.weights.sha256 == load_backbone(f"local-dir:{local_hub}").weights.sha256


@pytest.mark.parametrize("name", ["hf-hub:lab/other", "hf-hub:lab/net@v2"])
@pytest.mark.usefixtures("local_hub")
def test_what_is_not_in_the_local_cache_is_refused_offline_in_one_line(name: str) -> None:
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE") as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
