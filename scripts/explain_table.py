"""Measure which networks have contribution maps, and how far a map's mean is from its score.

    python -m scripts.explain_table --most 15                     # those of torchvision under 15 M parameters
    python -m scripts.explain_table timm/resnet10t timm/convnext_atto

Networks have random weights. Each is a line: the name, the size of the map, and max |mean(map) − score| over images and
classes as a share of the largest score; or why it is refused.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pipeline.backbones import load_backbone
from pipeline.backbones.positions import FeatureMap
from pipeline.errors import PipelineError
from pipeline.heads import LoadedHead
from pipeline.heads.contributions import Contributions
from pipeline.heads.model import HeadModel
from scripts.backbone_table import candidates

CLASSES = 10
IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=float, default=15, help="million parameters")
    parser.add_argument("--until", metavar="HH:MM", help="start no further network after this time")
    arguments = parser.parse_args()
    print("| network | map | mean − score |\n|---|---|---|")
    for name in arguments.names or of_torchvision(arguments.most * 1e6):
        if arguments.until and time.strftime("%H:%M") >= arguments.until:
            break
        print(f"| `{name}` | {measured(name)} |", flush=True)


def of_torchvision(most: float) -> list[str]:
    """Return the names of networks with at most so many parameters."""
    return [name for name, size in candidates("torchvision") if size <= most]


def measured(name: str) -> str:
    """Return the cells of a network."""
    import torch

    try:
        backbone = load_backbone(name, "random")
        feature_map = FeatureMap(backbone, "penultimate")
    except PipelineError as error:
        return f"refused | {str(error).removeprefix('layer ')}"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *backbone.preprocess.shape), np.uint8)
    output, features = (found.numpy() for found in feature_map(torch.from_numpy(images)))
    spread = 1.0 / np.sqrt((output**2).sum(axis=1).mean())
    arrays = {"coef": rng.normal(size=(CLASSES, output.shape[1])) * spread, "intercept": rng.normal(size=CLASSES)}
    names = tuple(map(str, range(CLASSES)))
    head = LoadedHead(HeadModel("linear", arrays, "softmax", CLASSES), names, "penultimate", {}, "", "logistic")
    found = Contributions(head)
    maps = found.maps(features, output, np.tile(np.arange(CLASSES), (IMAGES, 1)))
    scores = found.scores(output)
    off = np.abs(maps.mean(axis=(2, 3)) - scores).max() / np.abs(scores).max()
    return f"{features.shape[1]} × {features.shape[2]} | {off:.1e}"


if __name__ == "__main__":
    main()
