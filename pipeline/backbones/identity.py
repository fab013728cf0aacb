"""What a backbone's name stands for besides itself, found without importing a library of networks.

A spec that an earlier run kept is only right while the name means the same bytes. Each function takes what follows the
family in a name, and returns JSON-like data that change whenever the network may have changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.errors import BackboneError


def of_name(rest: str) -> str:
    """Return nothing: the installed libraries alone decide what the name stands for."""
    return ""


def of_commit(rest: str, file: str = "config.json") -> str:
    """Return the commit that ``ORG/NAME[@REVISION]`` stands for; asks the hub, which knows whether it moved.

    Raises
    ------
    BackboneError
        See `pipeline.backbones.hub.hub_errors`.
    """
    from pipeline.backbones.hub import Repository  # not for families without a hub

    return Repository.parse(rest).commit_of(file)


def of_path(rest: str) -> list[list[str]]:
    """Return the path of a folder or file with the name and SHA-256 of each file; of a file also those beside it.

    Beside it: files whose names begin with its name without the suffix, such as ``net.json`` for ``net.onnx``.

    Raises
    ------
    BackboneError
        A file cannot be read.
    """
    path = Path(rest).resolve()
    files = path.iterdir() if path.is_dir() else path.parent.glob(f"{_escaped(path.stem)}*")
    return [[str(path), ""], *([file.name, file_sha256(file)] for file in sorted(files) if file.is_file())]


def of_place(rest: str) -> str | list[list[str]]:
    """Return `of_path` for a folder, and `of_commit` for anything else."""
    return of_path(rest) if Path(rest).is_dir() else of_commit(rest)


def of_open_clip(rest: str) -> str | list[list[str]]:
    """Return `of_commit` for a repository, `of_path` for a folder or a file of weights, nothing for a known name."""
    if rest.startswith("hf-hub:"):
        return of_commit(rest.removeprefix("hf-hub:"), "open_clip_config.json")
    weights = rest.partition("/")[2]
    if Path(rest).is_dir():
        return of_path(rest)
    return of_path(weights) if weights and Path(weights).is_file() else ""


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    BackboneError
        It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"cannot read {file}: {error.strerror or error}: pass a file that can be read") from None


def _escaped(stem: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)
