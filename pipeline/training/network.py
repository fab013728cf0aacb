"""A backbone with its fitted head as one network that can be trained.

Axes: B batch, H W pixels, D embedding width, K classes.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import HeadError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.backbones import Backbone
    from pipeline.heads import LoadedHead

LARGEST_DEVIATION = {True: 0.005, False: 0.25}
"""Of the network's logits from the head's on cached rows, relative to the latter's size; where the cache was computed
and kept in float32, and where not. A vector of cosine c lies √(2 (1 − c)) from another of its length: 0.0045 for the
numbers contract's 0.99999, and 0.045 for the 0.999 of reduced precision. A head reads the differences between rows,
which are a few times smaller than the rows, and rows that the self-check did not see may lie further off. Other images
deviate by more than 1."""


class FineTuningNetwork(nn.Module):
    """uint8 images in, logits out.

    Parameters
    ----------
    backbone : Backbone
        The frozen network; its parameters become trainable here.
    layer : str
        The layer that the head reads.
    outputs : int
        K.

    Attributes
    ----------
    backbone : EmbeddingNetwork
        Normalisation, network and pooling.
    head : nn.Linear
        D → K.
    """

    def __init__(self, backbone: Backbone, layer: str, outputs: int) -> None:
        super().__init__()
        names = [known.name for known in backbone.layers]
        if layer not in names:
            raise HeadError(f"the cache's backbone has no layer {layer!r}: {near_names(layer, names)}")
        self._output = names.index(layer)
        self.backbone = backbone.network
        if not any(True for _ in self.backbone.body.parameters()):
            raise HeadError(f"{backbone.name} has no weights that can be trained: fine-tune the network it came from")
        self.head = nn.Linear(backbone.layers[self._output].width, outputs)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, H, W, 3), uint8 or float in 0…255."""
        return self.head(self.backbone(images)[self._output])  # type: ignore[no-any-return]

    def start_from(self, head: LoadedHead) -> None:
        """Take over a fitted linear head, its temperature folded in: the same probabilities.

        Raises
        ------
        HeadError
            It is no linear classifier.
        """
        if head.model.kind != "linear" or head.task != "classification":
            raise HeadError(
                f"expected a linear classifier to start from, found a head {head.head!r} ({head.model.kind}, "
                f"{head.task}): fit one with pipeline fit-head --head logistic"
            )
        temperature = head.model.temperature
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(np.asarray(head.model.arrays["coef"] / temperature)))
            self.head.bias.copy_(torch.from_numpy(np.asarray(head.model.arrays["intercept"] / temperature)))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function from a parameter's name to its depth, 0 at the image; the convention of timm.

        Parameters
        ----------
        coarse : bool
            Stages instead of blocks.
        """
        depth = depths(self.backbone.body, coarse=coarse)
        top = max(depth.values(), default=-1) + 1
        return lambda name: depth.get(name.removeprefix("backbone.body."), top)


def depths(body: nn.Module, *, coarse: bool) -> dict[str, int]:
    """Return how deep every parameter lies, by name: 0 at the image.

    timm's networks define it themselves (``group_matcher``). For others the blocks are the numbered parts in the order
    of the module, which is that of the data in torchvision's networks.
    """
    if hasattr(body, "group_matcher"):
        from timm.models import group_parameters

        matcher: Any = body.group_matcher
        return dict(group_parameters(body, matcher(coarse=coarse), reverse=True))
    names = [name for name, _ in body.named_parameters()]
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    order: dict[str, int] = {}

    def block(name: str) -> str:
        first, _, rest = name.partition(".")
        second = rest.partition(".")[0]
        # A network that is one long sequence (VGG, MobileNet: ``features``) has its stages inside it.
        inside = second.isdigit() and (not coarse or len(tops) <= 2)
        return f"{first}.{second}" if inside else first

    return {name: order.setdefault(block(name), len(order)) for name in names}


def freeze_statistics(network: nn.Module) -> None:
    """Freeze running means and variances, even if ``train()`` is called later; scales and shifts still learn.

    Batches of a small data set would move them away from the statistics of the large pretraining set.
    """
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
            part.train = MethodType(_stay_in_evaluation, part)  # type: ignore[method-assign]


def _stay_in_evaluation(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def check_logits(
    network: FineTuningNetwork, images: NDArray[np.uint8], embeddings: NDArray[Any], head: LoadedHead, *, exact: bool
) -> float:
    """Compare the network's logits with the head's on the cached rows of the same images.

    Parameters
    ----------
    network : FineTuningNetwork
        In float32, started from ``head``.
    images : (n, H, W, 3) uint8
        Prepared images.
    embeddings : (n, D)
        Their rows in the cache.
    head : LoadedHead
    exact : bool
        Whether the cache was computed and kept in float32.

    Returns
    -------
    float
        ‖found − expected‖ / ‖expected‖ over all images, of the logits' deviations from their mean over classes: a
        common offset changes no probability.

    Raises
    ------
    HeadError
        They differ by more than the numbers contract allows.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        found = network(torch.from_numpy(images)).double().numpy()
    network.train(training)
    expected = head.model.scores(np.asarray(embeddings, dtype=np.float32)) / head.model.temperature
    found, expected = (logits - logits.mean(axis=1, keepdims=True) for logits in (found, expected))
    deviation = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))
    if not deviation <= LARGEST_DEVIATION[exact]:
        # The images' bytes were compared before. What is left are the numbers: other libraries, or a coarse precision.
        way = (
            "the network computes other numbers here than where the cache was made; extract again on this machine"
            if exact
            else "the cache's precision is too coarse for this network; extract again with --precision float32"
        )
        raise HeadError(
            f"expected the network to give the head's logits on the cached rows, {LARGEST_DEVIATION[exact]:g} of their "
            f"size off at most, found {deviation:.3g}: {way}, and fit the head again"
        )
    return deviation
