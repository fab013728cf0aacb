"""A network of transformers as an image encoder: its image feature, and its outputs as layers.

Axes: B batch, C channels, H W pixels or positions, T tokens, D embedding width.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import BackboneError, first_line

if TYPE_CHECKING:
    from collections.abc import Set

FEATURES, POOLED, CLS, MEAN = ORDER = ("features", "pooled", "cls", "mean")
"""The outputs of a network; the first that it has is its image feature."""
_CLASS_TOKENS = {"cls_token", "class_embedding", "class_token"}
_MOST_PREFIX_TOKENS = 64
_POOLER = re.compile(r"((?:\w+\.)*pooler)\.")
_LOGITS = ("logit_scale", "logit_bias")


class Tower(nn.Module):
    """Images in, the image feature out; the other outputs pass through modules of their names.

    Parameters
    ----------
    model : nn.Module
        A network of transformers.
    prefix_tokens : int
        Tokens before those of the patches.
    has_class_token : bool

    Notes
    -----
    ``pooled``, ``cls`` and ``mean`` are modules only where the network has such an output, so that a layer can be named
    like a module.
    """

    def __init__(self, model: nn.Module, prefix_tokens: int = 0, *, has_class_token: bool = False) -> None:
        super().__init__()
        self.model = model
        self.prefix_tokens = prefix_tokens
        self._has_class_token = has_class_token
        self._pooled: Tensor | None = None
        self.feature = FEATURES

    def keep_pooled(self) -> None:
        """Have the pooled output of a dual encoder's vision tower, which its image feature is projected from."""
        vision = getattr(self.model, "vision_model", None)
        if isinstance(vision, nn.Module):
            # A partial, not a closure: a deep copy of the network then keeps it in the copy's own attribute.
            vision.register_forward_hook(functools.partial(_keep_pooled, self))

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the network gives for images (B, 3, H, W): vectors (B, D) by the names of `ORDER`."""
        self._pooled = None
        dual = hasattr(self.model, "get_image_features")
        call: Any = self.model.get_image_features if dual else self.model
        out = call(pixel_values=x)
        features = out if isinstance(out, Tensor) else getattr(out, "pooler_output" if dual else "image_embeds", None)
        pooled = self._pooled if dual or features is not None else getattr(out, "pooler_output", None)
        found = {FEATURES: features, POOLED: pooled, **self._of_tokens(getattr(out, "last_hidden_state", None))}
        self._pooled = None
        return {name: value.flatten(1) for name, value in found.items() if isinstance(value, Tensor)}

    def _of_tokens(self, states: Tensor | None) -> dict[str, Tensor | None]:
        if states is None:
            return {}
        if states.ndim == 4:
            return {MEAN: states.mean((2, 3))}
        return {
            CLS: states[:, 0] if self._has_class_token else None,
            MEAN: states[:, self.prefix_tokens :].mean(1),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the image feature (B, D) of images (B, 3, H, W)."""
        found = self.outputs(x)
        for name, module in self.named_children():
            if name in found:
                found[name] = module(found[name])
        return found[self.feature]


def _keep_pooled(tower: Tower, module: nn.Module, args: Any, output: Any) -> None:
    # Kept at once: a dual encoder puts the projected feature in its place afterwards.
    tower._pooled = getattr(output, "pooler_output", None)


def tower_of(model: nn.Module, missing: Set[str], shape: tuple[int, int, int], what: str) -> Tower:
    """Make a tower of a loaded network.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    missing : set of str
        Its tensors that the checkpoint does not hold.
    shape : (int, int, int)
        (H, W, 3) of a prepared image.
    what : str
        The backbone, for errors.

    Raises
    ------
    BackboneError
        It is no image encoder, needs a tensor that is missing, or gives other outputs each time.
    """
    model = without_missing_poolers(model.eval(), missing)
    try:
        with torch.inference_mode():
            tower = _probed(model, shape)
            tower.keep_pooled()
            x = torch.rand(2, 3, *shape[:2], generator=torch.Generator().manual_seed(0))
            first, again = tower.outputs(x), tower.outputs(x)
    except Exception as error:  # networks of other tasks raise anything
        raise BackboneError(
            f"{what}: expected an image encoder, got {type(model).__name__} ({first_line(error)}): choose another "
            "backbone"
        ) from None
    needed = sorted(missing & {name.removeprefix("model.") for name in tower.state_dict()})
    if needed:
        raise BackboneError(
            f"{what}: the checkpoint lacks {len(needed)} tensors ({needed[0]}{', …' if len(needed) > 1 else ''}), "
            "which would be random numbers: choose a complete checkpoint"
        )
    feature = next((name for name in ORDER if name in first), "")
    if not feature or len(first[feature]) != 2:
        raise BackboneError(
            f"{what}: expected one vector per image, got none from {type(model).__name__}: choose another backbone"
        )
    if not torch.equal(first[feature], again[feature]):
        raise BackboneError(
            f"{what}: {type(model).__name__} gives another output each time, as a network that hides patches at random "
            "does: choose another backbone"
        )
    for name in (POOLED, CLS, MEAN):
        if name in first:
            tower.add_module(name, nn.Identity())
    tower.feature = feature
    return tower


def without_missing_poolers(model: nn.Module, missing: Set[str]) -> nn.Module:
    """Take out poolers that the checkpoint does not hold: a network without one gives no pooled output."""
    for name in {match[1] for key in missing if (match := _POOLER.match(key))}:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, None)
    return model


def _probed(model: nn.Module, shape: tuple[int, int, int]) -> Tower:
    """Run the network once: leave out the modules that do not run, and count the tokens before those of the patches."""
    ran: set[nn.Module] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        ran.add(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        states = _last_states(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    used = copy.copy(model)  # shares its tensors with the whole network, which a text tower needs
    used.__dict__["_modules"] = {
        name: child if child is not None and any(part in ran for part in child.modules()) else None
        for name, child in model._modules.items()
    }
    used.__dict__["_parameters"] = {name: value for name, value in model._parameters.items() if name not in _LOGITS}
    has_class = any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in used.named_parameters())
    return Tower(used, _prefix_tokens(model, states, shape, has_class), has_class_token=has_class)


def _last_states(model: Any, shape: tuple[int, int, int]) -> Tensor | None:
    """Run one image; return the last hidden states where there are any."""
    call = getattr(model, "get_image_features", model)
    states = getattr(call(pixel_values=torch.zeros(1, 3, *shape[:2])), "last_hidden_state", None)
    return states if isinstance(states, Tensor) else None


def _prefix_tokens(model: Any, states: Tensor | None, shape: tuple[int, int, int], has_class: bool) -> int:
    """Count the class token and registers: all tokens that are more than the patches."""
    if states is None or states.ndim != 3:
        return 0
    config = getattr(model.config, "vision_config", None) or model.config
    patch = getattr(config, "patch_size", None)
    height, width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    if not height or not width:
        return int(has_class)
    more = int(states.shape[1]) - (shape[0] // int(height)) * (shape[1] // int(width))
    return more if has_class and 0 < more <= _MOST_PREFIX_TOKENS else int(has_class)
