"""The network of a cache or head, run on new images exactly as on the cache's own.

Axes: n images, D embedding width.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.callbacks import Say, ignore
from pipeline.core.items import Status
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.embed import embed
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.embedding.settings import AUTO, RunSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.pool import Batch
    from pipeline.engines import Embeddings, Engine
    from pipeline.sources import Source

NOT_FINITE = "the network gave a value that is not finite"


@dataclass
class Embedder:
    """A backbone with everything that defines its numbers, and its engine once one is open.

    Attributes
    ----------
    backbone : Backbone
    decode : DecodePolicy
    layers : tuple of str
        Whose embeddings are wanted, side by side.
    dtype : str
        Of the cache: its rounding is part of the numbers.
    settings : RunSettings
    lock : RLock
        For threads that share the embedder.
    engine : Engine or None
    """

    backbone: Backbone
    decode: DecodePolicy
    layers: tuple[str, ...]
    dtype: str
    settings: RunSettings
    lock: Any = field(default_factory=threading.RLock)
    engine: Engine | None = None

    @classmethod
    def of_spec(
        cls,
        spec: Mapping[str, Any],
        layers: tuple[str, ...],
        settings: RunSettings,
        *,
        weights: str | None = None,
        alone: bool = False,
    ) -> Embedder:
        """Build what a spec describes; ``auto`` takes its precision.

        Parameters
        ----------
        spec : mapping
        layers : tuple of str
        settings : RunSettings
        weights : str, optional
            See `pipeline.embedding.from_spec.backbone_of_spec`.
        alone : bool
            Leave the other layers of the spec out of the network.

        Raises
        ------
        BackboneError, FingerprintError
            See `pipeline.embedding.from_spec.backbone_of_spec` and `decode_of_spec`.
        """
        if settings.precision == AUTO:
            settings = settings.of_cache(spec["precision"])
        decode = decode_of_spec(spec)  # first: it refuses at once what loading the weights would not
        backbone = backbone_of_spec(spec, weights, trust_remote_code=settings.trust_remote_code)
        return cls(backbone.with_layers(layers) if alone else backbone, decode, layers, spec["dtype"], settings)

    def open_engine(self, choose: Callable[[], Engine]) -> Engine:
        """Return the engine, chosen and checked the first time."""
        if self.engine is None:
            self.engine = choose()
        return self.engine

    def open_for(
        self,
        source: Source,
        *,
        rows: NDArray[np.int64] | None = None,
        settings: RunSettings | None = None,
        stop: threading.Event | None = None,
        say: Say = ignore,
    ) -> Engine:
        """Return the engine, checked on images of this source; see `pipeline.embedding.choose.choose_engine`."""
        settings = settings or self.settings
        return self.open_engine(
            lambda: choose_engine(source, self.backbone, self.decode, settings, rows=rows, stop=stop, say=say)[0]
        )

    def embed(
        self,
        source: Source,
        rows: NDArray[np.int64],
        *,
        settings: RunSettings | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[tuple[Batch, NDArray[np.float32], list[str]]]:
        """Yield batches of rows, in order; call `open_for` first.

        Yields
        ------
        batch : Batch
        embeddings : (n, D) float32
            Rounded as in the cache; those of failed images are undefined.
        reasons : list of str
            Why an image has no embedding; empty where it has one.
        """
        assert self.engine is not None
        settings = settings or self.settings
        for batch, outputs in embed(source, rows, self.backbone, self.engine, self.decode, settings, stop=stop):
            embeddings = self.features(outputs)[: len(batch.rows)]
            failed = [outcome.reason if outcome.status != Status.DONE else "" for outcome in batch.outcomes]
            yield batch, embeddings, reasons_of(embeddings, failed)

    def features(self, outputs: Embeddings) -> NDArray[np.float32]:
        """Return the layers wanted of a batch, side by side and rounded as in the cache."""
        found = [self.rounded(outputs[layer]) for layer in self.layers]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def rounded(self, embeddings: NDArray[Any]) -> NDArray[np.float32]:
        """Round to the cache's type: a float16 cache is part of the numbers."""
        with np.errstate(over="ignore"):  # values beyond the type's range become infinite, and the row fails
            return embeddings.astype(self.dtype, copy=False).astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the engine, if one is open."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def reasons_of(embeddings: NDArray[np.float32], failed: list[str]) -> list[str]:
    """Return why each image has no embedding: its failure, or that its embedding is not finite."""
    finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    return [reason or ("" if sound else NOT_FINITE) for reason, sound in zip(failed, finite, strict=True)]
