"""A mixed precision for networks that lose accuracy in bfloat16, such as those with depthwise convolutions.

Measured on EfficientNet-Lite0 (docs/performance.md), bfloat16 loses accuracy in three places:

- The first layers. They process nearly raw pixels, and later layers amplify their errors. They stay float32.
- The rounding of depthwise filters. Nine weights that nearly cancel answer a smooth surface with their small sum.
  Rounding each weight alone changes this sum strongly, so they are rounded to keep it.
- The linear outputs of blocks. OpenVINO rounds a convolution's bias to the type of its output; these narrow maps stay
  float32, and with them the sums of the residual connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from pipeline.engines.openvino_quiet import ov

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FIRST_CONVOLUTIONS = 3
_CONVOLUTIONS = {"Convolution", "GroupConvolution"}
_NO_ACTIVATION = {*_CONVOLUTIONS, "Add", "Pad"}
# The attribute that OpenVINO's own passes put on operations that have to keep their type, as its files spell it.
_KEEP = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
_BFLOAT16_BITS = 7  # of the fraction


def prepare(model: ov.Model) -> set[str]:
    """Round the depthwise filters of a converted network in place, and choose what stays float32.

    Parameters
    ----------
    model : ov.Model
        Batch norms folded.

    Returns
    -------
    set of str
        Names of the operations to keep, for `keep_float32`.
    """
    ops = model.get_ordered_ops()
    convolutions = [op for op in ops if op.get_type_name() in _CONVOLUTIONS]
    early = ops[: ops.index(convolutions[FIRST_CONVOLUTIONS])] if len(convolutions) > FIRST_CONVOLUTIONS else []
    for op in convolutions[FIRST_CONVOLUTIONS:]:
        if op.get_type_name() == "GroupConvolution":
            _round_filters(op)
    linear = [op for op in ops if op.get_type_name() == "Add" and _consumers(op) <= _NO_ACTIVATION]
    return {op.get_friendly_name() for op in early + linear if op.get_type_name() not in ("Constant", "Parameter")}


def keep_float32(file: Path, names: set[str]) -> None:
    """Mark operations of a saved network, so that a bfloat16 compilation leaves them float32."""
    tree = ElementTree.parse(file)
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            info = layer.find("rt_info")
            ElementTree.SubElement(
                ElementTree.SubElement(layer, "rt_info") if info is None else info, "attribute", _KEEP
            )
    tree.write(file)


def round_keeping_sums(filters: NDArray[Any]) -> NDArray[np.float32]:
    """Round (n, k) filters to bfloat16 values so that the sum of each row changes as little as possible.

    Each weight becomes one of the two bfloat16 values around it: the nearest, except for those moved to the other
    value to compensate the errors of the rest.
    """
    exact = np.asarray(filters, dtype=np.float64)
    # Rounded by the mantissa, since NumPy has no bfloat16.
    fraction, exponent = np.frexp(exact)
    step = np.ldexp(1.0, exponent - _BFLOAT16_BITS - 1)
    rounded: NDArray[np.float64] = np.rint(fraction * 2.0 ** (_BFLOAT16_BITS + 1)) * step
    rows = np.arange(len(exact))
    for _ in range(exact.shape[1]):
        error = (rounded - exact).sum(axis=1, keepdims=True)
        moved = rounded - np.sign(rounded - exact) * step
        left = np.abs(error - rounded + moved)
        left[np.sign(rounded - exact) != np.sign(error)] = np.inf
        best = left.argmin(axis=1)
        better = left[rows, best] < np.abs(error[:, 0])
        if not better.any():
            break
        rounded[rows[better], best[better]] = moved[rows[better], best[better]]
    return np.asarray(rounded, dtype=np.float32)


def _round_filters(op: ov.Node) -> None:
    """Round the constant weights (groups, out, in, kH, kW) of a convolution, one filter being (in, kH, kW)."""
    source = op.input_value(1)
    while source.get_node().get_type_name() == "Reshape":
        source = source.get_node().input_value(0)
    constant = source.get_node()
    if constant.get_type_name() != "Constant":
        return
    weights, filters = constant.data, int(np.prod(list(op.input_value(1).get_shape())[:2]))
    rounded = round_keeping_sums(weights.reshape(filters, -1)).reshape(weights.shape)
    new = ov.opset13.constant(rounded)
    for consumer in source.get_target_inputs():
        consumer.replace_source_output(new.output(0))


def _consumers(op: ov.Node) -> set[str]:
    return {entry.get_node().get_type_name() for output in op.outputs() for entry in output.get_target_inputs()}
