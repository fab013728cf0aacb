from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backbones import load_backbone
from pipeline.backbones.base import assemble
from pipeline.backbones.network import Body
from pipeline.decoding.preprocess import Preprocess
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.errors import HeadError
from pipeline.heads import LoadedHead, load_head
from pipeline.heads.model import HeadModel
from pipeline.training.images import CachedImages
from pipeline.training.network import FineTuningNetwork, check_logits, depths, freeze_statistics

if TYPE_CHECKING:
    from tests.training.probe import Probe


def started(probe: Probe) -> FineTuningNetwork:
    head = load_head(probe.run)
    network = FineTuningNetwork(backbone_of_spec(head.spec), head.layer, len(head.class_names))
    network.start_from(head)
    return network


def images_of(probe: Probe, rows: list[int]) -> np.ndarray:
    cache = probe.cache
    backbone = backbone_of_spec(cache.spec)
    images = CachedImages(cache, decode_of_spec(cache.spec), backbone.preprocess, batch_size=8, workers=1)
    return np.concatenate([np.array(batch) for batch in images.batches(np.array(rows))])


def test_the_network_begins_as_the_probe(probe: Probe) -> None:
    rows = [3, 40, 11]
    images = images_of(probe, rows)
    network, head = started(probe), load_head(probe.run)
    assert check_logits(network, images, probe.cache.embeddings[rows], head, exact=True) < 1e-4
    with torch.inference_mode():
        found = network.eval()(torch.from_numpy(images)).softmax(1).numpy()
    np.testing.assert_allclose(found, head.predict_proba(probe.cache.embeddings[rows]), atol=1e-4)


def test_other_images_than_the_cached_ones_are_refused(probe: Probe) -> None:
    rows = [3, 40, 11]
    others = probe.cache.embeddings[rows[::-1]]
    with pytest.raises(HeadError, match=r"0\.005 of their size"):
        check_logits(started(probe), images_of(probe, rows), others, load_head(probe.run), exact=True)


def test_a_coarse_cache_may_deviate_further_and_is_named(probe: Probe) -> None:
    rows = [3, 40, 11]
    images, head, network = images_of(probe, rows), load_head(probe.run), started(probe)
    rng = np.random.default_rng(0)
    # The head's own directions are those in which a deviation counts.
    push = rng.normal(size=(3, 3)) @ head.model.arrays["coef"]
    exact = np.array(probe.cache.embeddings[rows], dtype=np.float64)
    logits = head.model.scores(exact.astype(np.float32))
    size = np.linalg.norm(logits - logits.mean(1, keepdims=True))
    moved = push @ head.model.arrays["coef"].T
    push *= 0.15 * size / np.linalg.norm(moved - moved.mean(1, keepdims=True))
    assert check_logits(network, images, exact + push, head, exact=False) == pytest.approx(0.15, abs=0.05)
    with pytest.raises(HeadError, match=r"0\.25 of their size.*too coarse.*--precision float32"):
        check_logits(network, images, exact + 3 * push, head, exact=False)
    with pytest.raises(HeadError, match=r"0\.005 of their size.*extract again on this machine"):
        check_logits(network, images, exact + push, head, exact=True)


def test_of_two_classes_the_size_counts_too() -> None:
    """With two classes the logits' direction is all but given: a head twice as steep has to be told apart."""
    backbone = load_backbone("timm/test_efficientnet", "random")
    network = FineTuningNetwork(backbone, "penultimate", 2)
    images = np.random.default_rng(0).integers(0, 256, (4, *backbone.preprocess.shape)).astype(np.uint8)
    with torch.inference_mode():
        embeddings = network.eval().backbone(torch.from_numpy(images))[0].numpy()
    coef, intercept = (p.detach().double().numpy() for p in (network.head.weight, network.head.bias))

    def head(steepness: float) -> LoadedHead:
        arrays = {"coef": steepness * coef, "intercept": steepness * intercept}
        return LoadedHead(HeadModel("linear", arrays, "softmax", 2), ("a", "b"), "penultimate", {}, "f", "logistic")

    assert check_logits(network, images, embeddings, head(1.0), exact=True) < 1e-4
    with pytest.raises(HeadError, match=r"found 0\.5"):
        check_logits(network, images, embeddings, head(2.0), exact=True)


def test_statistics_stay_frozen_through_every_train(probe: Probe) -> None:
    network = started(probe)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    scale = norms[0].weight.detach().clone()
    freeze_statistics(network)
    images = torch.from_numpy(images_of(probe, [0, 1, 2, 3]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for module in (network, network.backbone, network.backbone.body, norms[0]):
        module.train()
    assert network.backbone.body.training
    network(images).logsumexp(1).sum().backward()
    optimizer.step()
    assert before
    for norm, mean in zip(norms, before, strict=True):
        assert not norm.training
        assert torch.equal(norm.running_mean, mean) if norm.running_mean is not None else False
    assert not torch.equal(norms[0].weight, scale)  # scales and shifts learn


def test_without_freezing_the_statistics_would_move(probe: Probe) -> None:
    network = started(probe)
    norm = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    network.train()(torch.from_numpy(images_of(probe, [0, 1, 2, 3])))
    assert not torch.equal(norm.running_mean, before)


NAMES = ("timm/test_efficientnet", "timm/test_resnet", "torchvision/resnet18", "torchvision/mobilenet_v2")


@pytest.mark.parametrize("name", NAMES)
def test_depth_rises_from_the_image_to_the_head(name: str) -> None:
    backbone = load_backbone(name, "random")
    network = FineTuningNetwork(backbone, "penultimate", 3)
    for coarse in (False, True):
        depth = network.group_matcher(coarse)
        numbers = [depth(parameter) for parameter, _ in network.named_parameters()]
        assert numbers[0] == 0
        assert depth("head.weight") == max(numbers) == len(set(numbers)) - 1
        assert len(set(numbers)) > 3
    blocks, stages = (depths(backbone.network.body, coarse=coarse) for coarse in (False, True))
    assert len(set(stages.values())) <= len(set(blocks.values()))
    if name == "torchvision/resnet18":
        assert blocks["layer1.0.conv1.weight"] == blocks["layer1.0.bn2.bias"] < blocks["layer1.1.conv1.weight"]
        assert stages["layer1.0.conv1.weight"] == stages["layer1.1.conv1.weight"]


def test_a_network_without_weights_to_train_is_refused() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain = Preprocess((8,), (8, 8), "bilinear", (0.5,) * 3, (0.5,) * 3)
    backbone = assemble(Body("onnx:net.onnx", module, plain, "path", "net.onnx"))
    with pytest.raises(HeadError, match=r"onnx:net\.onnx has no weights that can be trained"):
        FineTuningNetwork(backbone, "penultimate", 3)
