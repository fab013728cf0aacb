"""Conversion of a backbone into OpenVINO's own files, with rows of the reference to check them against; needs torch."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.engines.openvino_mixed import keep_float32, prepare
from pipeline.engines.openvino_onnx import read_onnx
from pipeline.engines.openvino_quiet import ov
from pipeline.engines.selfcheck import reference

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

TRACE_BATCH = 2  # a batch of one would be baked into the graph of some networks
_PROBES = 4
_GRAIN = (1, 4, 16, 64)
"""Sizes, in pixels, of what a probe shows: photographs have structure of every size."""


def save_converted(backbone: Backbone, file: Path, *, mixed: bool) -> None:
    """Convert a backbone and write OpenVINO's own files.

    Parameters
    ----------
    backbone : Backbone
    file : Path
        The ``.xml`` file; the weights lie beside it.
    mixed : bool
        Prepared for `pipeline.engines.openvino_mixed`.
    """
    model = _convert(backbone)
    kept = prepare(model) if mixed else set()
    ov.save_model(model, file, compress_to_fp16=False)
    if kept:
        keep_float32(file, kept)


def save_reference(backbone: Backbone, file: Path) -> None:
    """Write images (n, H, W, 3) uint8, and the embeddings of them by eager float32 PyTorch, a layer in each array."""
    images = _probes(backbone.preprocess.shape)
    np.savez(file, images, *reference(backbone, images).values())


def _convert(backbone: Backbone) -> ov.Model:
    if backbone.network.onnx is not None:
        return read_onnx(backbone.network.onnx, backbone)
    example = torch.zeros(TRACE_BATCH, *backbone.preprocess.shape, dtype=torch.uint8)
    network = copy.deepcopy(backbone.network)
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape that Python code looks at
        traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=example)


def _probes(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return images (n, H, W, 3) of random patches of several sizes, some smooth and some rough."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    images = np.zeros((_PROBES, *shape))
    for grain in _GRAIN:
        patches = rng.normal(size=(_PROBES, -(-height // grain), -(-width // grain), channels))
        part = patches.repeat(grain, axis=1).repeat(grain, axis=2)[:, :height, :width]
        images += part * rng.uniform(0.2, 1.0, (_PROBES, 1, 1, 1))
    return (128 + 50 * images).clip(0, 255).astype(np.uint8)
