"""Which tensor inside a network a layer is the mean of, over the positions of the image; found by measurement.

The operations of a pass are watched. Of those whose result has the layer's channels, the mean over all other axes is
compared with the layer's output. The last one with several positions whose mean is the output is the layer's feature
map. No list of networks is needed, and what only looks like a mean is not taken for one.

Axes: B batch, D channels, h w positions, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.backbones.base import Backbone
    from pipeline.backbones.network import EmbeddingNetwork

TOLERANCE = 2e-5
"""Largest difference between a mean over positions and the output, as a share of the largest output: the rounding of
float32 over some thousand positions is a tenth of it."""
_PROBES = 2


@dataclass(frozen=True)
class _Result:
    """The result of one operation of a pass.

    Attributes
    ----------
    number : int
        Which operation of the pass, from 0.
    order : tuple of int
        Permutation of its axes to (B, positions …, D).
    mean : (B, D) Tensor
        Over its positions.
    """

    number: int
    order: tuple[int, ...]
    mean: Tensor

    @property
    def has_grid(self) -> bool:
        return len(self.order) == 4


class _Watch(TorchFunctionMode):
    """Calls ``see`` with the number and the result of each operation."""

    def __init__(self, see: Callable[[int, Any], None]) -> None:
        super().__init__()
        self._see = see
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._see(self._count, found)
        self._count += 1
        return found


class FeatureMap:
    """The feature map whose mean over positions is a layer of a backbone.

    Parameters
    ----------
    backbone : Backbone
    layer : str
        Its name.
    device : str
        Where the network runs, in float32.

    Attributes
    ----------
    grid : (int, int)
        Rows h and columns w of positions.

    Raises
    ------
    BackboneError
        The layer is no mean over positions.
    """

    def __init__(self, backbone: Backbone, layer: str, device: str = "cpu") -> None:
        self.name = f"layer {layer!r} of {backbone.name}"
        self._network = _alone(backbone.with_layers((layer,)).network, device)
        shape = backbone.preprocess.shape
        probes = torch.randint(0, 256, (_PROBES, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        output, found = self._candidates(probes.to(device))
        near = [each for each in found if _is_near(each.mean, output)]
        if not near:
            raise BackboneError(
                f"{self.name} is not a mean over positions of the image, so a score has no map: fit a head on another "
                "layer, such as NODE:avg"
            )
        self._taken = ([each for each in near if each.has_grid] or near)[-1]
        features = self(probes.to(device))[1]
        self.grid = (features.shape[1], features.shape[2])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        Parameters
        ----------
        images : (B, H, W, 3) uint8

        Returns
        -------
        output : (B, D) float32
            The layer.
        features : (B, h, w, D) float32
            Its mean over positions is ``output``.

        Raises
        ------
        BackboneError
            It is not, for these images: the network depends on what it sees.
        """
        kept: list[Tensor] = []

        def see(number: int, found: Any) -> None:
            if number == self._taken.number:
                kept.append(found)

        with torch.inference_mode(), _Watch(see):
            (output,) = self._network(images)
        features = kept[0].permute(self._taken.order).float() if kept and isinstance(kept[0], Tensor) else None
        if features is None or not _is_near(features.flatten(1, -2).mean(1), output):
            raise BackboneError(f"{self.name} is a mean over positions of some images and not of others: no maps")
        if features.ndim == 3:
            rows, columns = self._grid_of(features.shape[1], tuple(images.shape[1:3]))
            features = features.reshape(len(features), rows, columns, -1)
        return output, features

    def _candidates(self, images: Tensor) -> tuple[Tensor, list[_Result]]:
        """Return the output of a pass, and the results of operations that may be its feature map."""
        width = self._network.layers[0].width
        found: list[_Result] = []

        def see(number: int, result: Any) -> None:
            if isinstance(result, Tensor) and result.is_floating_point() and len(result) == len(images):
                for order in _orders(tuple(result.shape), width):
                    mean = result.permute(order).flatten(1, -2).mean(1, dtype=torch.float32)
                    found.append(_Result(number, order, mean))

        with torch.inference_mode():
            self._network(images)  # a first pass may fill what the network keeps for later ones
            with _Watch(see):
                (output,) = self._network(images)
        return output, found

    def _grid_of(self, tokens: int, size: tuple[int, ...]) -> tuple[int, int]:
        """Return rows and columns of tokens whose shape is that of the input."""
        rows = round(math.sqrt(tokens * size[0] / size[1]))
        if rows < 1 or tokens % rows or abs(tokens // rows * size[0] - rows * size[1]) > max(size):
            raise BackboneError(
                f"{self.name} is a mean of {tokens} tokens, which are no grid over the image, so a score has no map: "
                "fit a head on another layer, such as NODE:avg"
            )
        return rows, tokens // rows


def _alone(network: EmbeddingNetwork, device: str) -> EmbeddingNetwork:
    return network.to(device).float()


def _orders(shape: tuple[int, ...], width: int) -> list[tuple[int, ...]]:
    """Return the permutations of a result to (B, positions …, D), where it has D channels and several positions.

    Examples
    --------
    >>> _orders((2, 8, 7, 7), 8), _orders((2, 50, 8), 8), _orders((2, 8, 1, 1), 8), _orders((2, 8), 8)
    ([(0, 2, 3, 1)], [(0, 1, 2)], [], [])
    """
    orders = {4: ((0, 2, 3, 1), (0, 1, 2, 3)), 3: ((0, 2, 1), (0, 1, 2))}.get(len(shape), ())
    return [o for o in orders if shape[o[-1]] == width and math.prod(shape[axis] for axis in o[1:-1]) > 1]


def _is_near(mean: Tensor, output: Tensor) -> bool:
    """Return whether means (B, D) are outputs (B, D), up to the rounding of float32."""
    scale = output.abs().amax()
    return bool(scale > 0 and (mean - output).abs().amax() <= TOLERANCE * scale)
