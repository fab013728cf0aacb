"""The numbers contract: an engine against eager float32 PyTorch, or against the converted network in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone
    from pipeline.engines.base import Engine

REFERENCE_BATCH = 8


def reference(backbone: Backbone, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the slow reference: embeddings of images by eager float32 PyTorch on the CPU.

    Parameters
    ----------
    backbone : Backbone
    images : (n, H, W, 3) uint8

    Returns
    -------
    dict of str to (n, D) float32
    """
    import torch  # keeps it out of runs whose network is converted

    with torch.inference_mode():
        parts = [
            backbone.network(torch.from_numpy(images[start : start + REFERENCE_BATCH]))
            for start in range(0, len(images), REFERENCE_BATCH)
        ]
    return {layer.name: np.concatenate([part[i].numpy() for part in parts]) for i, layer in enumerate(backbone.layers)}


def least_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the smallest cosine between rows of two (n, D) arrays; two zero rows agree, a zero and another do not."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(equal, 1.0, (a * b).sum(axis=1) / lengths)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def embeddings(engine: Engine, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return an engine's embeddings (n, D) of images (n, H, W, 3), by layer."""
    found = [engine.run(images[i : i + engine.batch_size]) for i in range(0, len(images), engine.batch_size)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def check(engine: Engine, images: NDArray[np.uint8], expected: dict[str, NDArray[Any]]) -> float:
    """Return the smallest cosine, over images and layers, between an engine's rows and the reference's."""
    found = embeddings(engine, images)
    return min(least_cosine(found[name], rows) for name, rows in expected.items())


def check_probes(engine: Engine, images: NDArray[np.uint8], expected: dict[str, NDArray[Any]]) -> float:
    """Return the smallest cosine to rows kept since the network was converted; see `pipeline.engines.base.Probes`."""
    found = embeddings(engine, images)
    return min(least_cosine(found[name], rows) for name, rows in expected.items())
