from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backbones import load_backbone
from pipeline.core.views import layer_of_view, views_of
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.engines.openvino import OpenVinoEngine
from pipeline.engines.selfcheck import check, least_cosine, reference

NAME, LAYER = "timm/test_efficientnet", "blocks.1:avg"


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the network with made-up weights out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))


@pytest.mark.parametrize("views", ["flip", "5crop", "multiscale"])
def test_the_layers_of_a_view_are_those_of_its_pixels(views: str) -> None:
    plain, several = load_backbone(NAME, "random", (LAYER,)), load_backbone(NAME, "random", (LAYER,), views=views)
    height, *_ = plain.preprocess.shape
    images = np.random.default_rng(0).integers(0, 256, (3, *several.preprocess.shape), np.uint8)
    found = reference(several, images)
    assert list(found) == [layer_of_view(layer, view) for view in views_of(views) for layer in ("penultimate", LAYER)]
    start = 0
    for view in views_of(views):
        pixels = images[:, :height, ::-1] if view.mirrored else images[:, start : start + height]
        start += 0 if view.mirrored else height
        for layer, rows in reference(plain, np.ascontiguousarray(pixels)).items():
            assert least_cosine(found[layer_of_view(layer, view)], rows) > 1 - 1e-6


def test_a_head_on_one_view_computes_no_other() -> None:
    several = load_backbone(NAME, "random", (LAYER,), views="5crop")
    images = np.random.default_rng(0).integers(0, 256, (2, *several.preprocess.shape), np.uint8)
    seen: list[int] = []
    alone = several.with_layers(("penultimate@top-right",))
    hook = alone.network.body.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with torch.inference_mode():
        (rows,) = alone.network(torch.from_numpy(images))
    hook.remove()
    assert seen == [2]
    assert least_cosine(rows.numpy(), reference(several, images)["penultimate@top-right"]) > 1 - 1e-6


def test_the_spec_builds_the_same_views_again() -> None:
    several = load_backbone(NAME, "random", (LAYER,), views="flip")
    spec = several.to_spec()
    again = backbone_of_spec(spec)
    assert again.to_spec() == spec
    assert spec["preprocess"]["views"] == "flip"
    assert load_backbone(NAME, "random", (LAYER,)).to_spec() != spec


def test_a_converted_network_gives_them_too() -> None:
    several = load_backbone(NAME, "random", views="5crop")
    images = np.random.default_rng(1).integers(0, 256, (3, *several.preprocess.shape), np.uint8)
    engine = OpenVinoEngine(several, precision="float32", batch_size=2)
    try:
        assert check(engine, images, reference(several, images)) >= 0.99999
    finally:
        engine.close()
