from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.backbones import load_backbone
from pipeline.backbones.network import build_network, hash_weights
from pipeline.backbones.processor import preprocess_of
from pipeline.backbones.transformers import build, text_tower
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.engines.selfcheck import least_cosine
from pipeline.errors import BackboneError, FingerprintError
from tests.backbones import tiny

transformers: Any = pytest.importorskip("transformers")

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = ("vit", "vit-classifier", "dinov2", "resnet", "clip", "clip-vision", "siglip")


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what is known of made-up weights out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of network, saved."""
    root = tmp_path_factory.mktemp("transformers")
    for kind in KINDS:
        tiny.save(root / kind, kind)
    return {kind: root / kind for kind in KINDS}


def documented(folder: Path, kind: str, images: list[Image.Image]) -> torch.Tensor:
    """Return the image features as the library documents it: its processor, its network, its call."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model: Any = transformers.CLIPVisionModelWithProjection if kind == "clip-vision" else transformers.AutoModel
    model = model.from_pretrained(folder).eval()
    inputs = processor(images=images, return_tensors="pt")
    with torch.inference_mode():
        if kind in ("clip", "siglip"):
            return torch.as_tensor(model.get_image_features(**inputs).pooler_output)
        out = model(**inputs)
    if kind == "clip-vision":
        return torch.as_tensor(out.image_embeds)
    return torch.as_tensor(out.last_hidden_state[:, 0] if kind == "vit-classifier" else out.pooler_output.flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_feature_is_that_of_the_documented_call(kind: str, folders: dict[str, Path]) -> None:
    images = [image.convert("RGB") for image in tiny.odd_images()]
    body = build(f"transformers:{folders[kind]}", None)
    batch = np.stack([body.preprocess.apply(image) for image in images])
    with torch.inference_mode():
        ours = build_network(body)(torch.from_numpy(batch))[0].numpy()
    theirs = documented(folders[kind], kind, images).numpy()
    assert ours.shape == theirs.shape
    assert least_cosine(ours, theirs) >= 0.99999
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_preprocessing_is_that_of_the_processor_to_the_bit(kind: str, folders: dict[str, Path]) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
    preprocess = preprocess_of(processor, kind)
    for image in tiny.odd_images():
        pixels = processor(images=image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np")
        theirs = pixels["pixel_values"][0].transpose(1, 2, 0)
        assert np.array_equal(preprocess.apply(image.convert("RGB")), theirs.astype(np.uint8)), image.size


def test_the_order_of_the_outputs_decides_what_is_penultimate(folders: dict[str, Path]) -> None:
    def layers(kind: str) -> dict[str, torch.Tensor]:
        body = build(f"transformers:{folders[kind]}", None)
        asked = tuple(name for name, _ in body.module.named_children() if name != "model")
        network = build_network(body, asked)
        images = torch.randint(0, 256, (2, *body.preprocess.shape), dtype=torch.uint8)
        with torch.inference_mode():
            return dict(zip([layer.node for layer in network.layers], network(images), strict=True))

    pooled = layers("vit")
    assert pooled.keys() == {"", "pooled", "cls", "mean"}
    assert torch.equal(pooled[""], pooled["pooled"])
    without = layers("vit-classifier")
    assert without.keys() == {"", "cls", "mean"}  # the checkpoint of a classifier holds no pooler
    assert torch.equal(without[""], without["cls"])
    convolutions = layers("resnet")
    assert convolutions.keys() == {"", "pooled", "mean"}
    torch.testing.assert_close(convolutions["pooled"], convolutions["mean"])
    dual = layers("clip")
    assert {name: value.shape[1] for name, value in dual.items()} == {
        "": tiny.PROJECTED, "pooled": tiny.WIDTH, "cls": tiny.WIDTH, "mean": tiny.WIDTH,
    }  # fmt: skip


def test_the_mean_leaves_out_class_token_and_registers(folders: dict[str, Path]) -> None:
    body = build(f"transformers:{folders['dinov2']}", None)
    assert body.prefix_tokens == 5
    x = torch.rand(1, 3, tiny.SIDE, tiny.SIDE)
    with torch.inference_mode():
        states = transformers.AutoModel.from_pretrained(folders["dinov2"]).eval()(pixel_values=x).last_hidden_state
        outputs: Any = body.module
        torch.testing.assert_close(outputs.outputs(x)["mean"], states[:, 5:].mean(1))


def test_the_hash_covers_the_image_half_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    whole, again = (build(f"transformers:{folders['clip']}", None).module for _ in range(2))
    assert hash_weights(whole) == hash_weights(again)
    assert not [name for name, _ in whole.named_parameters() if "text" in name or "logit" in name]
    copy = shutil.copytree(folders["clip"], tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    text = next(name for name in state if name.startswith("text_model"))
    save_file({**state, text: state[text] + 1}, copy / "model.safetensors", metadata={"format": "pt"})
    assert hash_weights(build(f"transformers:{copy}", None).module) == hash_weights(whole)


def test_weights_that_are_missing_are_no_random_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["vit"], tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    gone = "layernorm.weight"
    save_file(
        {name: value for name, value in state.items() if name != gone}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BackboneError, match=r"lacks 1 tensors \(layernorm.weight\)") as caught:
        build(f"transformers:{copy}", None)
    assert "\n" not in str(caught.value)


def test_half_precision_is_computed_in_full(tmp_path: Path) -> None:
    model, processor = tiny.build("vit")
    model.to(torch.float16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {p.dtype for p in build(f"transformers:{tmp_path}", None).module.parameters()} == {torch.float32}


def test_random_weights_are_the_same_every_time(folders: dict[str, Path]) -> None:
    one, two = (build(f"transformers:{folders['resnet']}", "random") for _ in range(2))
    assert one.weights_name == "random"
    assert hash_weights(one.module) == hash_weights(two.module)


def processors() -> list[Any]:
    """Return processors whose settings mean something of their own."""
    square = {"height": 32, "width": 32}
    return [
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 40}, crop_pct=0.9),
        transformers.LevitImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        transformers.EfficientNetImageProcessorPil(size=square),
        transformers.EfficientNetImageProcessorPil(size=square, rescale_offset=True, rescale_factor=1 / 127.5),
        transformers.MobileNetV2ImageProcessorPil(size={"shortest_edge": 37}, crop_size=square),
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 33, "width": 31}),
        transformers.ViTImageProcessorPil(size={"height": 40, "width": 32}, resample=1, do_normalize=False),
        transformers.ViTImageProcessorPil(size=square, do_rescale=False, image_mean=127.5, image_std=127.5),
    ]


@pytest.mark.parametrize("number", range(9))
def test_settings_of_any_kind_are_described(number: int) -> None:
    processor = processors()[number]
    preprocess = preprocess_of(processor, "x")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocess.mean, preprocess.std))
    for image in tiny.odd_images(6):
        image = image.convert("RGB")
        theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
        ours = (preprocess.apply(image).transpose(2, 0, 1) / np.float32(255) - mean) / std
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MobileViTImageProcessorPil", {}),
        ("DonutImageProcessorPil", {"size": {"height": 40, "width": 40}}),
        ("PerceiverImageProcessorPil", {}),
        ("Siglip2ImageProcessorPil", {}),
    ],
)
def test_what_cannot_be_described_is_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match=name.removesuffix("Pil")) as caught:
        preprocess_of(getattr(transformers, name)(**settings), "transformers:x")
    assert "\n" not in str(caught.value)


def test_processors_of_torchvision_are_followed_within_a_rounding() -> None:
    square = {"height": 32, "width": 32}
    processor = transformers.DINOv3ViTImageProcessor(size=square)
    preprocess = preprocess_of(processor, "x")
    std = np.array(preprocess.std)[:, None, None]
    mean = np.array(preprocess.mean)[:, None, None]
    for image in tiny.odd_images(6):
        image = image.convert("RGB")
        theirs = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0]) * std + mean
        levels = np.abs(preprocess.apply(image).transpose(2, 0, 1) / 255 - theirs) * 255
        assert levels.max() < 2.5
        assert levels.mean() < 0.5


def test_networks_that_hide_patches_at_random_are_refused(tmp_path: Path) -> None:
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**tiny.VISION)).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="another output each time"):
        build(f"transformers:{tmp_path}", None)


def test_folders_of_something_else_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="expected a folder of save_pretrained") as caught:
        build(f"transformers:{tmp_path}", None)
    assert "\n" not in str(caught.value)
    copy = shutil.copytree(folders["vit"], tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(BackboneError, match="expected a folder of save_pretrained"):
        build(f"transformers:{copy}", None)


OWN_CODE = """
import torch
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

Path(__file__).with_name("ran").touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own-network"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(3, 5)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.linear(pixel_values.mean((2, 3))))
"""


def test_code_of_a_repository_runs_only_where_a_flag_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own-network", "auto_map": own}))
    (folder / "own.py").write_text(OWN_CODE)
    weight = torch.arange(15.0).view(5, 3)
    state = {"linear.weight": weight, "linear.bias": torch.zeros(5)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(BackboneError, match="--trust-remote-code"):
        build(f"transformers:{folder}", None)
    assert not list(tmp_path.rglob("ran"))
    body = build(f"transformers:{folder}", None, trust_remote_code=True)
    x = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(body.module(x), x.mean((2, 3)) @ weight.T)


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackboneError, match=r"pip install 'embedding-pipeline\[transformers\]'"):
        load_backbone("transformers:lab/encoder")


def test_a_folder_is_described_by_its_configuration_too(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["vit"], tmp_path / "elsewhere" / "vit")
    spec = load_backbone(f"transformers:{folders['vit']}").to_spec()
    assert (spec["backbone"], spec["weights"]["name"]) == ("transformers:vit", "path")
    assert spec["weights"]["source"] == f"transformers:{folders['vit']}"
    assert backbone_of_spec(spec, str(copy)).weights.sha256 == spec["weights"]["sha256"]
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "transformers_version": "5.0.0"}))
    assert backbone_of_spec(spec, str(copy)).weights.sha256 == spec["weights"]["sha256"]
    (copy / "config.json").write_text(json.dumps({**settings, "hidden_act": "relu"}))  # the same tensors
    with pytest.raises(FingerprintError, match="sha256"):
        backbone_of_spec(spec, str(copy))


def test_weights_of_a_fine_tuning_replace_the_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    body = build(f"transformers:{folders['vit']}", None)
    state = {name: value + 1 for name, value in body.module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    tuned = build(f"transformers:{folders['vit']}", str(tmp_path / "w.safetensors"))
    assert hash_weights(tuned.module) != hash_weights(body.module)
    assert (tuned.weights_name, tuned.weights_origin) == ("file", "w.safetensors")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_of_texts_are_the_librarys_own(kind: str, folders: dict[str, Path]) -> None:
    texts = ["two dogs on grass", "a cat", "clouds"]
    images = [image.convert("RGB") for image in tiny.odd_images(4)]
    folder = folders[kind]
    tower = text_tower(f"transformers:{folder}", None)
    body = build(f"transformers:{folder}", None)
    assert tower.image_sha256 == hash_weights(body.module, body.description)
    pixels = torch.from_numpy(np.stack([body.preprocess.apply(image) for image in images]))
    with torch.inference_mode():
        vision = build_network(body)(pixels)[0].numpy()
    words = tower.embed(texts)
    unit_vision, unit_words = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (vision, words))
    ours = tower.scale * unit_vision @ unit_words.T + tower.bias

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    padding = {"padding": "max_length", "max_length": 24} if kind == "siglip" else {"padding": True}
    inputs = {
        **tiny.tokenizer()(texts, return_tensors="pt", **padding),
        **processor(images=images, return_tensors="pt"),
    }
    with torch.inference_mode():
        theirs = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).logits_per_image.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_texts_that_do_not_fit_are_not_cut_off(folders: dict[str, Path]) -> None:
    tower = text_tower(f"transformers:{folders['clip']}", None)
    with pytest.raises(BackboneError, match="up to 24 tokens"):
        tower.embed(["short", "a very long text that has far more letters than the tower reads"])


def test_a_network_without_texts_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(BackboneError, match="no text tower"):
        text_tower(f"transformers:{folders['vit']}", None)
