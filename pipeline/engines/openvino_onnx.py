"""An ONNX file, read by OpenVINO itself, with the network's own normalisation and pooling around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import opset8 as ops

from pipeline.engines.openvino_quiet import ov

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone
    from pipeline.backbones.network import EmbeddingNetwork, OnnxGraph


def read_onnx(graph: OnnxGraph, backbone: Backbone) -> ov.Model:
    """Return a model from images (B, H, W, 3) uint8 to the layers of a backbone, (B, D) each."""
    if backbone.preprocess.views:
        raise ValueError("ONNX files are converted with one view of an image alone")
    model = ov.Core().read_model(graph.file)
    height, width = backbone.preprocess.crop
    own_input = model.inputs[0]
    shape = {"N": -1, "C": 3, "H": height, "W": width}
    model.reshape(ov.PartialShape([shape[axis] for axis in graph.layout]))
    images = ops.parameter([-1, height, width, 3], np.uint8, name="images")
    x = ops.divide(ops.convert(images, "f32"), _constant(255.0))
    x = ops.divide(ops.subtract(x, _constant(backbone.preprocess.mean)), _constant(backbone.preprocess.std))
    if graph.layout == "NCHW":
        x = ops.transpose(x, _constant([0, 3, 1, 2], np.int64))
    x = ops.convert(x, own_input.get_element_type())
    for target in own_input.get_target_inputs():
        target.replace_source_output(x.output(0))
    network = backbone.network
    results = []
    for layer in backbone.layers:
        name, pooling = (graph.outputs[layer.node], layer.pooling) if layer.node else (graph.feature, graph.pooling)
        value = model.output(name).get_node().input_value(0)  # a result's own input
        results.append(ops.result(ops.convert(_pooled(value, pooling, network), "f32")))
    return ov.Model(results, [images], "network")


def _pooled(value: Any, pooling: str, network: EmbeddingNetwork) -> Any:
    """Return `pipeline.backbones.network.pool` of an output, as operations."""
    dimensions = len(value.get_partial_shape())
    if pooling == "flatten" or dimensions == 2:
        return ops.reshape(value, _constant([0, -1], np.int64), special_zero=True)
    if pooling == "cls":
        return ops.gather(value, _constant(0, np.int64), _constant(1, np.int64))
    if pooling not in ("avg", "max"):
        raise ValueError(f"pooling {pooling!r} of an ONNX output")
    reduce = ops.reduce_mean if pooling == "avg" else ops.reduce_max
    if dimensions == 4:
        return reduce(value, _constant([2, 3] if network.maps == "NCHW" else [1, 2], np.int64))
    if value.get_partial_shape()[1].is_dynamic or value.get_partial_shape()[1].get_length() > network.prefix_tokens:
        first, last, step, axis = (_constant([n], np.int64) for n in (network.prefix_tokens, 2**31 - 1, 1, 1))
        value = ops.slice(value, first, last, step, axis)
    return reduce(value, _constant([1], np.int64))


def _constant(values: Any, dtype: Any = np.float32) -> Any:
    return ops.constant(np.asarray(values, dtype))
