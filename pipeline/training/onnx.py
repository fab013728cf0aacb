"""A fine-tuned network with its head as one ONNX file: uint8 images in, class probabilities out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError, first_line

if TYPE_CHECKING:
    import os

    from pipeline.backbones import Backbone
    from pipeline.heads import LoadedHead

LEAST_AGREEMENT = 1e-4
"""How far a probability may lie from PyTorch's."""
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
        Of pipeline finetune, or of a linear head whose backbone can be had.
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
        onnx, onnxscript or onnxruntime is missing, the head is not linear, or the file does not give the same.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch.onnx exports with
    except ImportError as error:
        raise PipelineError(
            f"exporting to ONNX needs the package {error.name}: pip install 'embedding-pipeline[finetune]'"
        ) from None
    from pipeline.backbones.finetuned import weights_of_run
    from pipeline.embedding.from_spec import backbone_of_spec
    from pipeline.heads import load_head

    head = load_head(run_dir)
    if head.model.kind != "linear" or head.task != "classification":
        raise PipelineError(
            f"expected a linear classifier in {run_dir}, found {head.head} ({head.task}): choose another run"
        )
    backbone = backbone_of_spec(head.spec, weights_of_run(run_dir))
    network = _Classifier(backbone, head).eval()
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (_CHECKED, *backbone.preprocess.shape), dtype=np.uint8)
    )
    path = Path(output)
    part = path.with_name(path.name + ".part")
    try:
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
            expected = network(images).numpy()
        assert program is not None
        program.save(str(part), external_data=False)
        model = onnx.load(part)
        facts = {"class_names": list(head.class_names), "preprocess": backbone.preprocess.to_spec()}
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
        onnx.save(model, part)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": images.numpy()})
        single = session.run(None, {"images": images.numpy()[:1]})[0]
        worst = max(float(np.abs(found - expected).max()), float(np.abs(single - expected[:1]).max()))
        if not worst <= LEAST_AGREEMENT:
            raise PipelineError(
                f"expected the ONNX file to give PyTorch's probabilities, found a difference of {worst:.2g}: "
                "use pipeline predict with the run folder instead"
            )
        part.replace(path)
    except OSError as error:
        raise PipelineError(f"cannot write {path} ({first_line(error)}): choose another output") from None
    finally:
        part.unlink(missing_ok=True)
    return worst
