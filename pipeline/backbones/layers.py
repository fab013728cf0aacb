"""What identifies the outputs and the weights of a backbone, as plain data; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

AT_PATH = "path"
"""Name of weights that lie at the path in the backbone's name."""
POOLINGS = ("avg", "max", "gem", "cls", "flatten")
AUTO = "auto"
"""What stands for the ends of a network's blocks at several depths, among the layers that are asked for."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The identity of weights.

    Attributes
    ----------
    name : str
        The resolved name (never an alias such as ``DEFAULT``), ``"file"``, ``"random"`` or `AT_PATH`.
    origin : str
        Their origin, for display: a package, a hub, a file's name.
    sha256 : str
        Hash of the tensors that are used (see `hash_weights`), independent of the file format.
    source : str
        The name by which the same network is built again, where the backbone's own name is not enough: with a hub's
        commit, or with the whole path of a folder or file; empty elsewhere.
    """

    name: str
    origin: str
    sha256: str
    source: str = ""

    def to_spec(self) -> dict[str, str]:
        """Return the fields as JSON-like data; an empty source is left out, as older caches do not name it."""
        spec = {"name": self.name, "origin": self.origin, "sha256": self.sha256}
        return {**spec, "source": self.source} if self.source else spec


@dataclass(frozen=True, slots=True)
class Layer:
    """A named output.

    Attributes
    ----------
    name : str
        ``"penultimate"``, or ``"NODE:POOLING"``; of a further view of the images, with ``"@VIEW"`` after it.
    node : str
        Module path inside the network; empty for the penultimate output.
    pooling : str
        One of `POOLINGS`; ``"network"`` for the penultimate output, which the network pools itself.
    width : int
        D.
    """

    name: str
    node: str
    pooling: str
    width: int
