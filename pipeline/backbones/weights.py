"""Weights from files: read without running code, fitted strictly."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import BackboneError, first_line

RANDOM = "random"
RANDOM_SEED = 0


def is_file(weights: str | None) -> bool:
    """Return whether ``--weights`` names a file rather than a set of weights."""
    return weights is not None and (Path(weights).is_file() or Path(weights).suffix in (".safetensors", ".pth", ".pt"))


def read_weights(file: str) -> dict[str, Tensor]:
    """Read a state dict.

    Parameters
    ----------
    file : str
        ``.safetensors``, or a PyTorch file, which is loaded with ``weights_only=True``; content decides.

    Raises
    ------
    BackboneError
        Missing, damaged, or not a flat mapping of names to tensors.
    """
    path = Path(file)
    try:
        with path.open("rb") as opened:
            head = opened.read(16)
        # safetensors starts with the length of its JSON header, then the header's brace.
        state = load_file(path) if head[8:9] == b"{" else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BackboneError(f"cannot read the weights {file}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise BackboneError(
            f"expected plain tensors in {file}, found a pickle that wants to run code: save it as safetensors"
        ) from None
    except Exception as error:  # the readers of damaged files raise struct.error, KeyError, RuntimeError and more
        raise BackboneError(
            f"expected weights in {file}, found a damaged or other file ({first_line(error)})"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # the usual wrapping of training scripts
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            f"expected a state dict of tensors in {file}, found {type(state).__name__}: save state_dict()"
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def load_strictly(module: nn.Module, state: dict[str, Tensor], *, origin: str, ignore: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly: every tensor fits, and none is missing or unused.

    Parameters
    ----------
    module : nn.Module
        Without its classifier.
    state : dict of str to Tensor
        Names as in ``module``.
    origin : str
        For the error message.
    ignore : tuple of str
        Prefixes of the classifier's tensors, which are optional.

    Raises
    ------
    BackboneError
        Names or shapes differ; the first of each is named.
    """
    state = {name: value for name, value in state.items() if not name.startswith(ignore)} if ignore else state
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    foreign = sorted(state.keys() - own.keys())
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or foreign or shapes:
        found = [
            f"{len(names)} {what} ({names[0]}{', …' if len(names) > 1 else ''})"
            for names, what in ((missing, "missing"), (foreign, "unknown"), (shapes, "of another shape"))
            if names
        ]
        raise BackboneError(
            f"the weights in {origin} do not fit this network, tensors: {'; '.join(found)}: name its backbone"
        )
    module.load_state_dict(state, strict=True)


def cannot_download(what: str, error: Exception) -> BackboneError:
    """Return the error for weights that a hub did not provide; it names both remedies."""
    return BackboneError(
        f"cannot download the weights of {what} ({first_line(error)}): pass --weights FILE with a copy of them, "
        "or use the bundled --backbone efficientnet_lite0"
    )
