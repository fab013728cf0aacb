"""How to run on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.decoding.pool import Limits

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How to run on this machine; only the precision changes numbers, and code that comes with a network may.

    Attributes
    ----------
    engine, device : str
        See `pipeline.engines.open_engine`.
    precision : str
        ``auto`` takes the fastest that passes the self-check.
    batch_size : int
        Images per forward pass; 0 chooses by the engine.
    workers : int
        Decode processes; 0 takes one per processor.
    limits : Limits
        Time and memory limits of an image.
    fixed_precision : bool
        The precision is that of a cache. Images that miss the contract then cause a warning, not a change.
    trust_remote_code : bool
        Run Python files that come with a network.
    """

    engine: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    batch_size: int = 0
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    fixed_precision: bool = False
    trust_remote_code: bool = False

    def of_cache(self, precision: str) -> RunSettings:
        """Return the settings for more rows of a cache, in its precision."""
        return replace(self, precision=precision, fixed_precision=True)
