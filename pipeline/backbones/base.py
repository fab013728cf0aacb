"""A backbone: a frozen network with its outputs, weights and preprocessing; imports no torch before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.backbones.layers import Layer, Weights
from pipeline.core.spec import canonical_json
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.backbones.network import Body, EmbeddingNetwork


class LazyNetwork:
    """A network that is built when it is first needed: an engine that has it converted never needs it.

    Parameters
    ----------
    build : callable
        Returns the network.
    """

    def __init__(self, build: Callable[[], EmbeddingNetwork]) -> None:
        self._build = build
        self._network: EmbeddingNetwork | None = None

    def get(self) -> EmbeddingNetwork:
        """Return the network, always the same object: fine-tuning changes its weights."""
        if self._network is None:
            self._network = self._build()
        return self._network

    def __reduce__(self) -> tuple[Any, ...]:
        # Another machine may lack the files that the network is built from.
        return _built, (self.get(),)


def _built(network: EmbeddingNetwork) -> LazyNetwork:
    return LazyNetwork(lambda: network)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen network, its outputs, and the preprocessing that belongs to its weights.

    Attributes
    ----------
    name : str
    lazy : LazyNetwork
        Gives ``network``, an `pipeline.backbones.network.EmbeddingNetwork` in evaluation mode, without gradients.
    layers : tuple of Layer
        ``penultimate`` first.
    preprocess : Preprocess
    weights : Weights
    """

    name: str
    lazy: LazyNetwork
    layers: tuple[Layer, ...]
    preprocess: Preprocess
    weights: Weights

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any], build: Callable[[], Backbone]) -> Backbone:
        """Return the backbone that a former run described; its network is built, and compared, when it is needed."""

        def network() -> EmbeddingNetwork:
            built = build()
            if canonical_json(built.to_spec()) != canonical_json(spec):
                raise BackboneError(f"the weights of {spec['backbone']} changed since they were last used: run again")
            return built.network

        layers = tuple(Layer(**layer) for layer in spec["layers"])
        preprocess, weights = Preprocess.from_spec(spec["preprocess"]), Weights(**spec["weights"])
        return cls(spec["backbone"], LazyNetwork(network), layers, preprocess, weights)

    @property
    def network(self) -> EmbeddingNetwork:
        """The network; the first use of one that a former run described imports torch and builds it."""
        return self.lazy.get()

    def to_spec(self) -> dict[str, Any]:
        """Return the JSON-like data that identify the embeddings of this backbone."""
        return {
            "backbone": self.name,
            "weights": self.weights.to_spec(),
            "layers": [
                {"name": layer.name, "node": layer.node, "pooling": layer.pooling, "width": layer.width}
                for layer in self.layers
            ],
            "preprocess": self.preprocess.to_spec(),
        }


def assemble(body: Body, layer_names: tuple[str, ...] = ()) -> Backbone:
    """Return a family's body as a backbone; see `pipeline.backbones.network.build_network`."""
    from pipeline.backbones.network import build_network, hash_weights  # imports torch

    network = build_network(body, layer_names)
    sha256 = hash_weights(body.module, body.description)
    weights = Weights(body.weights_name, body.weights_origin, sha256, body.source)
    return Backbone(body.name, _built(network), network.layers, body.preprocess, weights)


def body_at_size(body: Body, size: int) -> Body:
    """Return a family's body with an input of ``size`` × ``size``.

    Raises
    ------
    BackboneError
        Its network does not take another size, or not this one.
    """
    import torch  # as in assemble

    if body.at_size is None:
        raise BackboneError(f"--size: {body.name} takes no other input than its own: leave it out")
    try:
        changed = body.at_size(size)
        with torch.inference_mode():
            changed.module.eval()(torch.zeros(2, 3, size, size))
    except BackboneError:
        raise
    except Exception as error:  # the networks' own code raises any error
        raise BackboneError(
            f"--size: {body.name} cannot take images of {size} × {size} ({first_line(error)}): choose another size"
        ) from None
    return changed
