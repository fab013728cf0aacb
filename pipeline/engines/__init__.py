"""Engines: what runs a backbone on this machine. One file per engine."""

from __future__ import annotations

from pipeline.backbones.base import Backbone
from pipeline.engines.base import PRECISIONS, Embeddings, Engine

__all__ = ["PRECISIONS", "Embeddings", "Engine", "open_engine"]


def open_engine(backbone: Backbone, *, device: str = "auto", precision: str = "float32", batch_size: int = 32) -> Engine:
    """Prepare a backbone to run.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision : str
        One of `PRECISIONS`.
    batch_size : int
        Images per batch.

    Raises
    ------
    EngineError
        The device or the precision is not to be had here.
    """
    from pipeline.engines.torch import TorchEngine

    return TorchEngine(backbone, device=device, precision=precision, batch_size=batch_size)
