from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.backbones import load_backbone
from pipeline.backbones.network import build_network, hash_weights
from pipeline.backbones.open_clip import build, text_tower
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.engines.selfcheck import least_cosine
from pipeline.errors import BackboneError, FingerprintError
from tests.backbones import tiny

open_clip: Any = pytest.importorskip("open_clip")

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what is known of made-up weights out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, saved."""
    folder = tmp_path_factory.mktemp("open_clip")
    tiny.save_open_clip(folder)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network that the library knows by name."""
    file = tmp_path_factory.mktemp("configurations") / "tiny-test.json"
    file.write_text(json.dumps(tiny.OPEN_CLIP))
    open_clip.add_model_config(file)
    return "tiny-test"


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_the_feature_is_that_of_the_documented_call(mode: str, tmp_path: Path) -> None:
    tiny.save_open_clip(
        tmp_path, resize_mode=mode, interpolation="bilinear" if mode == "squash" else "bicubic", fill_color=9
    )
    images = [image.convert("RGB") for image in tiny.odd_images()]
    body = build(f"open_clip:{tmp_path}", None)
    batch = np.stack([body.preprocess.apply(image) for image in images])
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    with torch.inference_mode():
        ours = build_network(body)(torch.from_numpy(batch))[0].numpy()
        inputs = torch.stack([transform(image) for image in images])
        theirs = model.eval().encode_image(inputs).numpy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (body.preprocess.mean, body.preprocess.std))
    pixels = ((inputs * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(batch, pixels.numpy())
    assert least_cosine(ours, theirs) >= 0.99999
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_known_name_takes_weights_of_a_file_or_random_ones(network: str, folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    body = build(f"open_clip:{network}/{file}", None)
    assert (body.name, body.weights_name, body.weights_origin) == (f"open_clip:{network}", "file", file.name)
    assert hash_weights(body.module) == hash_weights(build(f"open_clip:{network}", str(file)).module)
    assert hash_weights(body.module) == hash_weights(build(f"open_clip:{folder}", None).module)
    one, two = (build(f"open_clip:{network}", "random").module for _ in range(2))
    assert hash_weights(one) == hash_weights(two) != hash_weights(body.module)


def test_layers_have_the_names_of_the_librarys_modules(folder: Path) -> None:
    layers = build_network(build(f"open_clip:{folder}", None), ("transformer.resblocks.1", "transformer:cls")).layers
    assert [layer.width for layer in layers] == [tiny.PROJECTED, tiny.WIDTH, tiny.WIDTH]


def test_logits_of_texts_are_the_librarys_own(folder: Path) -> None:
    texts = ["two dogs on grass", "a cat", "clouds"]
    tower = text_tower(f"open_clip:{folder}", None)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    assert tower.image_sha256 == load_backbone(f"open_clip:{folder}").weights.sha256
    x = torch.rand(4, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs, _ = model.get_logits(x, open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
        vision = model.encode_image(x).numpy()
    unit_vision, unit_words = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (vision, tower.embed(texts)))
    np.testing.assert_allclose(tower.scale * unit_vision @ unit_words.T + tower.bias, theirs.numpy(), atol=1e-5)


def test_texts_that_do_not_fit_are_not_cut_off(folder: Path) -> None:
    tower = text_tower(f"open_clip:{folder}", None)
    exactly = "one two three four five six seven eight nine ten"  # 10 words, begin and end: 12 tokens
    assert tower.embed([exactly]).shape == (1, tiny.PROJECTED)
    with pytest.raises(BackboneError, match="up to 12 tokens, got 'one two"):
        tower.embed(["short", exactly + " eleven"])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("open_clip:ViT-B-33", None, "did you mean ViT-B-32"),
        ("open_clip:ViT-B-32", None, "expected weights of open_clip:ViT-B-32, a known name or a file, got none"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79", None, "did you mean laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/openai", None, "take open_clip:ViT-B-32-quickgelu/openai"),
        ("open_clip:ViT-B-32/openai", "laion2b_e16", "expected one set of weights"),
        ("open_clip:hf-hub:a/b/c", None, "expected ORG/NAME"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        build(name, weights)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_gives_no_random_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(BackboneError, match="expected weights of"):
        build(f"open_clip:{tmp_path}", None)


def test_weights_of_another_network_are_refused(network: str, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(BackboneError, match="name the network that they belong to") as caught:
        build(f"open_clip:{network}/{tmp_path / 'w.pt'}", None)
    assert "\n" not in str(caught.value)


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BackboneError, match=r"pip install 'embedding-pipeline\[open-clip\]'"):
        load_backbone("open_clip:ViT-B-32", "random")


def test_a_folder_is_described_by_its_configuration_too(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    spec = load_backbone(f"open_clip:{folder}").to_spec()
    assert (spec["backbone"], spec["weights"]["name"]) == (f"open_clip:{folder.name}", "path")
    assert spec["weights"]["source"] == f"open_clip:{folder}"
    assert backbone_of_spec(spec, str(copy)).weights.sha256 == spec["weights"]["sha256"]
    settings = json.loads((copy / "open_clip_config.json").read_text())
    settings["model_cfg"]["quick_gelu"] = True  # the same tensors, and other numbers
    (copy / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(FingerprintError, match="sha256"):
        backbone_of_spec(spec, str(copy))
    with pytest.raises(BackboneError, match="holds its own weights"):
        build(f"open_clip:{folder}", "laion2b_s34b_b79k")
