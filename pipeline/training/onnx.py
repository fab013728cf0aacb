"""A fine-tuned network with its head as one ONNX file: uint8 images in, class probabilities out."""

from __future__ import annotations

import importlib
import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones.finetuned import weights_of_run
from pipeline.core.files import replacing
from pipeline.core.optional import optional_part
from pipeline.core.outputs import check_file
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.errors import PipelineError
from pipeline.heads import load_head

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.heads import LoadedHead

LEAST_AGREEMENT = 1e-4
"""Largest accepted deviation of a probability from PyTorch's."""
_CHECKED = 3


class _Classifier(nn.Module):
    """Network, head and softmax."""

    def __init__(self, backbone: Backbone, head: LoadedHead) -> None:
        super().__init__()
        self._output = [layer.name for layer in backbone.layers].index(head.layer)
        self.network = backbone.network
        coef, intercept = (head.model.arrays[name] / head.model.temperature for name in ("coef", "intercept"))
        self.register_buffer("coef", torch.from_numpy(np.asarray(coef, dtype=np.float32)))
        self.register_buffer("intercept", torch.from_numpy(np.asarray(intercept, dtype=np.float32)))

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.network(images)[self._output]
        return nn.functional.linear(embeddings, self.get_buffer("coef"), self.get_buffer("intercept")).softmax(1)


def export_onnx(run_dir: str | os.PathLike[str], output: str | os.PathLike[str]) -> float:
    """Write the network and head of a fine-tuned run as one ONNX file, and check it with onnxruntime.

    Parameters
    ----------
    run_dir : str or Path
        A run of pipeline finetune, or of a linear head whose backbone is available.
    output : str or Path
        The file. Its input ``images`` is (B, H, W, 3) uint8, resized and cropped as its metadata ``preprocess``
        says; its output ``probabilities`` is (B, K) float32; the metadata ``class_names`` is a JSON list.

    Returns
    -------
    float
        The largest difference of a probability to PyTorch's, on random images.

    Raises
    ------
    PipelineError
        onnx, onnxscript or onnxruntime is missing, the head is not linear, or the file gives other probabilities.
    """
    _check_installed()
    output = check_file(output)
    network, facts = _load_classifier(run_dir)
    shape = tuple(facts["preprocess"]["crop"])
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (_CHECKED, *shape, 3), dtype=np.uint8))
    with replacing(output) as part:
        expected = _export(network, images, part)
        _add_metadata(part, facts)
        return _check_against_torch(part, images, expected)


def _check_installed() -> None:
    # torch.onnx exports with the last.
    for package in ("onnx", "onnxruntime", "onnxscript"):
        with optional_part(f"exporting to ONNX needs {package}", "pip install 'embedding-pipeline[finetune]'"):
            importlib.import_module(package)


def _load_classifier(run_dir: str | os.PathLike[str]) -> tuple[_Classifier, dict[str, Any]]:
    """Return the network with its head, and the metadata for the file."""
    head = load_head(run_dir)
    head.check_embeddings_alone("ONNX")
    if head.model.kind != "linear" or head.task != "classification":
        raise PipelineError(
            f"expected a linear classifier in {run_dir}, found {head.head} ({head.task}): choose another run"
        )
    backbone = backbone_of_spec(head.spec, weights_of_run(run_dir))
    facts = {"class_names": list(head.class_names), "preprocess": backbone.preprocess.to_spec()}
    return _Classifier(backbone, head).eval(), facts


def _export(network: _Classifier, images: Tensor, path: Path) -> NDArray[np.float32]:
    """Write the network as ONNX; return its probabilities of the images."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        program = torch.onnx.export(
            network,
            (images,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
        expected: NDArray[np.float32] = network(images).numpy()
    assert program is not None
    program.save(str(path), external_data=False)
    return expected


def _add_metadata(path: Path, facts: dict[str, Any]) -> None:
    import onnx  # an extra

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    onnx.save(model, path)


def _check_against_torch(path: Path, images: Tensor, expected: NDArray[np.float32]) -> float:
    """Return the largest difference of a probability to PyTorch's, in a batch and alone.

    Raises
    ------
    PipelineError
        It is above `LEAST_AGREEMENT`.
    """
    import onnxruntime  # an extra

    # As bytes: it takes no names that are not UTF-8.
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    single = session.run(None, {"images": images.numpy()[:1]})[0]
    worst = max(float(np.abs(found - expected).max()), float(np.abs(single - expected[:1]).max()))
    if not worst <= LEAST_AGREEMENT:
        raise PipelineError(
            f"expected the ONNX file to give PyTorch's probabilities, found a difference of {worst:.2g}: "
            "use pipeline predict with the run folder instead"
        )
    return worst
