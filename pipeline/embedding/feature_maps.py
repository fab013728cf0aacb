"""The feature map behind a layer, image by image: eager float32 PyTorch on prepared images.

Axes: n images of a batch, h w positions, D channels.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.devices import pick_devices
from pipeline.core.items import Status
from pipeline.embedding.embed import embed
from pipeline.engines.base import Embeddings, Engine

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.backbones.positions import FeatureMap
    from pipeline.decoding.image import DecodePolicy
    from pipeline.embedding.settings import RunSettings
    from pipeline.sources import Source

_BATCH = 16
_OUTPUT, _FEATURES = "output", "features"


@dataclass(frozen=True)
class MappedBatch:
    """Images of a batch with what a layer sees of them.

    Attributes
    ----------
    rows : (n,) int64
        Items of the source; those that failed are left out.
    images : (n, H, W, 3) uint8
        Prepared, as the network takes them.
    outputs : (n, D) float32
        The layer.
    features : (n, h, w, D) float32
        Whose mean over positions is ``outputs``.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.uint8]
    outputs: NDArray[np.float32]
    features: NDArray[np.float32]


class _MapEngine(Engine):
    """Gives a layer and its feature map, batch by batch."""

    name, precision, in_flight = "torch", "float32", 1

    def __init__(self, feature_map: FeatureMap, device: str) -> None:
        self._feature_map = feature_map
        self.device = device
        self.batch_size = _BATCH

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        import torch  # as in feature_maps

        output, features = self._feature_map(torch.from_numpy(images).to(self.device))
        done: Future[Embeddings] = Future()
        done.set_result({_OUTPUT: output.cpu().numpy(), _FEATURES: features.cpu().numpy()})
        return done

    def close(self) -> None:
        """Do nothing: the network belongs to the backbone."""


def feature_map_of(backbone: Backbone, layer: str, device: str = "auto") -> tuple[FeatureMap, str]:
    """Return the feature map of a layer, and the device that computes it.

    Raises
    ------
    BackboneError
        The layer is no mean over positions; see `pipeline.backbones.positions.FeatureMap`.
    """
    from pipeline.backbones.positions import FeatureMap  # imports torch

    first = str(pick_devices(device)[0])
    return FeatureMap(backbone, layer, first), first


def feature_maps(
    source: Source,
    rows: NDArray[np.int64],
    backbone: Backbone,
    found: tuple[FeatureMap, str],
    decode: DecodePolicy,
    settings: RunSettings,
    *,
    stop: threading.Event | None = None,
) -> Iterator[MappedBatch]:
    """Yield the images of some rows with the feature map of a layer, in order; images that fail are left out.

    Parameters
    ----------
    source, rows, backbone, decode, settings, stop
        As in `pipeline.embedding.embed.embed`.
    found : (FeatureMap, str)
        Of `feature_map_of`.
    """
    settings = replace(settings, device=found[1])
    for batch, outputs in embed(source, rows, backbone, _MapEngine(*found), decode, settings, stop=stop):
        done = np.asarray([outcome.status == Status.DONE for outcome in batch.outcomes], dtype=np.bool_)
        at = np.flatnonzero(done)
        yield MappedBatch(
            np.asarray(batch.rows)[at], np.array(batch.images[at]), outputs[_OUTPUT][at], outputs[_FEATURES][at]
        )
