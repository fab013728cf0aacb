"""What a backbone's name stands for besides itself, found without importing a library of networks.

A spec that an earlier run kept is only right while the name means the same bytes. Each function takes what follows the
family in a name, and returns JSON-like data that change whenever the network may have changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.backbones.hub import Repository
from pipeline.errors import BackboneError, first_line


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
    return Repository.parse(rest).commit_of(file)


def of_path(rest: str) -> list[list[str]]:
    """Return the path of a folder with the name and SHA-256 of each file in it.

    Raises
    ------
    BackboneError
        A file cannot be read.
    """
    path = Path(rest).resolve()
    files = sorted(path.iterdir()) if path.is_dir() else []
    return [[str(path), ""], *([file.name, file_sha256(file)] for file in files if file.is_file())]


def of_onnx(rest: str) -> list[list[str]]:
    """Return the path of an ONNX file with names and SHA-256 of it, of its JSON file and of its tensors' files.

    Raises
    ------
    BackboneError
        A file cannot be read, or it is no ONNX file.
    """
    import onnx  # an extra

    path = Path(rest).resolve()
    found = [[str(path), ""], [path.name, file_sha256(path)]]
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # of protobuf
        raise BackboneError(f"expected an ONNX file at {path}, found something else ({first_line(error)})") from None
    places = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    found += [[place, file_sha256(path.parent / place)] for place in sorted(places)]
    beside = path.with_suffix(".json")
    return [*found, [beside.name, file_sha256(beside)]] if beside.is_file() else found


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
