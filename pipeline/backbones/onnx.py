"""``onnx:FILE``: an ONNX encoder with one image input, described by a JSON file of the same name beside it.

``net.json`` for ``net.onnx``: ``preprocess`` (the fields of `pipeline.decoding.preprocess.Preprocess`), and where the
file leaves it open, ``output`` (which output is the image feature), ``pooling`` (of an output that is no vector),
``prefix_tokens`` (tokens before those of the patches), and ``layout`` (``NCHW`` or ``NHWC``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from pipeline.backbones.identity import of_onnx
from pipeline.backbones.layers import AT_PATH, POOLINGS
from pipeline.backbones.network import Body, OnnxGraph, pool
from pipeline.core.spec import canonical_json
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "onnx:"
FIELDS = {"preprocess", "output", "pooling", "prefix_tokens", "layout"}
FEATURES = ("image_embeds", "image_features", "pooler_output")
"""What exporters call the image feature, the first that is there."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
EXAMPLE = (
    '{"preprocess": {"resize": [256], "crop": [224, 224], "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], '
    '"std": [0.5, 0.5, 0.5]}}'
)


def names() -> list[str]:
    """Return no names: files are not listed here."""
    return []


def build(name: str, weights: str | None) -> Body:
    """Read an ONNX file and its description.

    Parameters
    ----------
    name : str
        ``onnx:FILE``.
    weights : None
        The file holds them.

    Raises
    ------
    BackboneError
        The file or its description cannot be read, it has another input than one image, or it is not said which output
        is the image feature.
    """
    if weights is not None:
        raise BackboneError(f"{name} holds its weights, found --weights {weights}: leave it out")
    file = Path(name.removeprefix(PREFIX)).resolve()
    bytes_of = of_onnx(str(file))
    settings = _settings(file)
    session = Session(str(file))
    preprocess = Preprocess.of_description(settings["preprocess"], str(file.with_suffix(".json")))
    layout = _layout(name, session, settings, preprocess)
    feature, pooling = _feature(name, session, settings)
    prefix_tokens = int(settings.get("prefix_tokens", 0))
    module = OnnxEncoder(session, layout, feature, pooling, prefix_tokens)
    graph = OnnxGraph(str(file), layout, module.outputs, feature, pooling) if session.batch is None else None
    return Body(
        name=PREFIX + file.name,
        module=module,
        preprocess=preprocess,
        weights_name=AT_PATH,
        weights_origin=str(file),
        prefix_tokens=prefix_tokens,
        maps=layout,
        source=PREFIX + str(file),
        description=canonical_json([[each[1] for each in bytes_of[1:]], layout, feature, pooling, prefix_tokens]),
        onnx=graph,
    )


class Session:
    """An ONNX file in onnxruntime; copies share it.

    Attributes
    ----------
    input : (str, list, str)
        Name, shape and type.
    outputs : dict of str to int
        Names, with the number of dimensions.
    batch : int or None
        The only size of a batch; None for any.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        try:
            self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have a class for each status
            reason = first_line(RuntimeError(str(error).replace(file, Path(file).name)))
            raise BackboneError(f"onnxruntime cannot read {file} ({reason}): export it again") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{each.name} {each.shape} {each.type}" for each in inputs)
            raise BackboneError(
                f"expected one input of float images (B, 3, H, W) in {file}, found {found}: export it so"
            )
        self.input = inputs[0].name, list(inputs[0].shape), inputs[0].type
        self.outputs = {each.name: len(each.shape) for each in self._session.get_outputs()}
        self.batch = self.input[1][0] if isinstance(self.input[1][0], int) else None

    def __deepcopy__(self, memo: Any) -> Session:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Session, (self._file,)

    def run(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Return all outputs, by name; a file of one batch size gets its batches, the last one padded."""
        images = images.astype(_TYPES[self.input[2]])
        size = self.batch or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append([rows[: len(part)] for rows in self._session.run(None, {self.input[0]: padded})])
        return {name: np.concatenate(rows) for name, rows in zip(self.outputs, zip(*parts, strict=True), strict=True)}


class OnnxEncoder(nn.Module):
    """An ONNX file as a module: each output passes through a module of its name.

    Attributes
    ----------
    outputs : dict of str to str
        Name of the module, and that of the output.
    """

    def __init__(self, session: Session, layout: str, feature: str, pooling: str, prefix_tokens: int) -> None:
        super().__init__()
        self._session = session
        self._layout = layout
        self._feature = feature, pooling, prefix_tokens
        self.outputs: dict[str, str] = {}
        for output in session.outputs:
            node = output.replace(".", "_") or "output"
            while hasattr(self, node):
                node += "_"
            self.add_module(node, nn.Identity())
            self.outputs[node] = output

    def forward(self, x: Tensor) -> Tensor:
        """Return the image feature (B, D) of images (B, 3, H, W)."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise BackboneError("its file has one batch size")
        if x.is_cuda or x.dtype != torch.float32:
            raise BackboneError("an ONNX file runs on the processor in its own precision: pass --device cpu")
        images = x if self._layout == "NCHW" else x.permute(0, 2, 3, 1)
        found = self._session.run(images.numpy())
        values = {
            output: self.get_submodule(node)(torch.from_numpy(found[output])) for node, output in self.outputs.items()
        }
        feature, pooling, prefix_tokens = self._feature
        pooled: Tensor = pool(values[feature], pooling, maps=self._layout, prefix_tokens=prefix_tokens)
        return pooled.to(torch.float32)


def _settings(file: Path) -> Mapping[str, Any]:
    beside = file.with_suffix(".json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        raise BackboneError(
            f"expected the preprocessing of {file} in {beside.name} beside it: write {EXAMPLE}"
        ) from None
    except ValueError as error:
        raise BackboneError(f"{beside} is no JSON ({first_line(error)}): correct it") from None
    if not isinstance(found, dict) or "preprocess" not in found or found.keys() - FIELDS:
        names = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise BackboneError(
            f"{beside}: expected 'preprocess', and if needed {', '.join(sorted(FIELDS - {'preprocess'}))}, found "
            f"{names}: correct it"
        )
    return found


def _layout(name: str, session: Session, settings: Mapping[str, Any], preprocess: Preprocess) -> Any:
    _, shape, _ = session.input
    fitting = [layout for layout in ("NCHW", "NHWC") if shape[layout.index("C")] == 3] or ["NCHW", "NHWC"]
    layout = settings.get("layout", fitting[0] if len(fitting) == 1 else "NCHW")
    if layout not in fitting:
        raise BackboneError(f"{name} takes images of shape {shape}, found layout {layout}: correct its JSON file")
    sizes = [shape[layout.index(axis)] for axis in "HW"]
    if any(isinstance(size, int) and size != crop for size, crop in zip(sizes, preprocess.crop, strict=True)):
        raise BackboneError(
            f"{name} takes images of {sizes[0]} × {sizes[1]}, found crop {list(preprocess.crop)}: correct its JSON file"
        )
    return layout


def _feature(name: str, session: Session, settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the output that is the image feature, and its pooling."""
    outputs = session.outputs
    vectors = [output for output, dimensions in outputs.items() if dimensions == 2]
    usual = [output for output in FEATURES if output in outputs]
    output = settings.get("output") or (usual or (vectors if len(vectors) == 1 else list(outputs)))[0]
    if output not in outputs or (not settings.get("output") and not usual and len(vectors) != 1 and len(outputs) > 1):
        raise BackboneError(
            f'{name} has the outputs {", ".join(outputs)}: say which is the feature by "output" in JSON'
        )
    pooling = settings.get("pooling", "flatten" if outputs[output] <= 2 else "")
    if pooling not in POOLINGS:
        raise BackboneError(
            f'{name}: output {output} has {outputs[output]} dimensions: say by "pooling" in its JSON file how it '
            f"becomes a vector, by {', '.join(POOLINGS)}"
        )
    return output, pooling
