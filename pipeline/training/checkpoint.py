"""The complete state of a training run in one file, from which it resumes bit for bit."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.files import replacing
from pipeline.errors import PipelineError, first_line

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "embedding-pipeline checkpoint"
VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state, of tensors and plain values, beside ``path``, then rename: a kill leaves the previous one.

    Raises
    ------
    PipelineError
        It cannot be written; the previous one is unchanged.
    """
    try:
        with replacing(path, alone=True) as part, part.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (PipelineError, RuntimeError) as error:  # torch wraps the error of the disk
        raise PipelineError(
            f"cannot write the checkpoint {path} ({first_line(error)}): free space and run the same command, which "
            "resumes from the previous one"
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state that `save_checkpoint` wrote, or None where there is none; nothing in it can run code.

    Raises
    ------
    PipelineError
        The file is damaged, or not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("format") == FORMAT and state.get("version") == VERSION:
            return dict(state)
        found = "a file of another kind or version"
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, KeyError) as error:
        found = first_line(error)
    raise PipelineError(f"expected a checkpoint at {path}, found {found}: remove {path.parent} to start again")


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's generators, the only ones that training draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators as `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
