"""Backbones that fine-tuning wrote: ``backbone.safetensors`` with the spec it was trained under."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    import os

    from pipeline.backbones.base import Backbone
    from pipeline.backbones.network import Body

BACKBONE_FILE = "backbone.safetensors"
NAME = "fine-tuned"
FORMAT = "embedding-pipeline backbone"


def backbone_file(weights: str | None) -> Path | None:
    """Return the file of a fine-tuned backbone that ``--weights`` names, itself or by its run folder, or None."""
    if weights is None:
        return None
    path = Path(weights)
    if path.is_dir():
        path = path / BACKBONE_FILE
        if not path.is_file():
            raise BackboneError(f"expected the run folder of a fine-tuning at {weights}, found no {path.name} in it")
    return path if path.name == BACKBONE_FILE and path.is_file() else None


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Write a backbone's tensors, and the data needed to build it again."""
    from safetensors.torch import save  # imports torch

    spec = backbone.to_spec()
    state = {name: tensor.contiguous() for name, tensor in backbone.network.body.state_dict().items()}
    facts = {"format": FORMAT, "backbone": spec["backbone"], "preprocess": spec["preprocess"]}
    if backbone.weights.source:
        facts["source"] = backbone.weights.source
    # Not save_file, which makes the file unreadable for other users.
    path.write_bytes(save(state, metadata={"backbone": json.dumps(facts, sort_keys=True)}))


def read_facts(file: Path) -> dict[str, Any]:
    """Return what `save_backbone` wrote beside the tensors: ``backbone``, ``preprocess``, ``source`` if any.

    Raises
    ------
    BackboneError
        The file is damaged, or not from a fine-tuning.
    """
    try:
        with safe_open(file, framework="np") as opened:
            facts = json.loads(opened.metadata()["backbone"])
        if facts["format"] == FORMAT and isinstance(facts["backbone"], str):
            return dict(facts)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass
    raise BackboneError(f"expected a backbone of pipeline finetune in {file}, found something else or damage")


def with_preprocess(body: Body, facts: dict[str, Any], file: Path) -> Body:
    """Return a body built from the file as fine-tuned weights, with the preprocessing of their training."""
    return replace(
        body,
        name=facts["backbone"],
        preprocess=Preprocess.from_spec(facts["preprocess"]),
        weights_name=NAME,
        weights_origin=file.resolve().parent.name,
    )


def with_tensors(body: Body, file: Path) -> Body:
    """Load the file's tensors into a body of the same shapes."""
    from pipeline.backbones.weights import load_strictly, read_weights  # imports torch

    load_strictly(body.module, read_weights(str(file)), origin=str(file))
    return body


def weights_of_run(run_dir: str | os.PathLike[str]) -> str | None:
    """Return the backbone file of a run folder, if the run is a fine-tuning."""
    file = Path(run_dir) / BACKBONE_FILE
    return str(file) if file.is_file() else None
