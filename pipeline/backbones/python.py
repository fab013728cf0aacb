"""``python:MODULE:CALLABLE``: a user's own network.

``CALLABLE()`` returns the network (images (B, 3, H, W) → embeddings (B, D)) with its weights, and its preprocessing: a
dict with the fields of `pipeline.decoding.preprocess.Preprocess`, or the transforms of a weights entry of torchvision.

MODULE is imported, so its code runs. That code is part of the identity of the weights: the file of MODULE, and those
that it imports from its own folder.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.transforms._presets import ImageClassification

from pipeline.backbones.network import Body
from pipeline.backbones.torchvision import preprocess_of_preset
from pipeline.backbones.weights import is_file, load_strictly, read_weights
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, first_line, near_names

if TYPE_CHECKING:
    from types import ModuleType

PREFIX = "python:"
FORM = "write it like python:my_network:build"


def names() -> list[str]:
    """Return no names: those of users are not listed here."""
    return []


def build(name: str, weights: str | None) -> Body:
    """Build a user's network.

    Parameters
    ----------
    name : str
        ``python:MODULE:CALLABLE``.
    weights : str or None
        None for those that the callable loads, or a file that replaces them.

    Raises
    ------
    BackboneError
        The module cannot be imported, the callable fails or returns something else, or the file does not fit.
    """
    if weights is not None and not is_file(weights):
        raise BackboneError(f"{name} brings its own weights, found --weights {weights}: pass a file, or leave it out")
    module_name, colon, attribute = name.removeprefix(PREFIX).partition(":")
    if not (module_name and colon and attribute):
        raise BackboneError(f"expected python:MODULE:CALLABLE, found {name!r}: {FORM}")
    module = _imported(module_name)
    if not hasattr(module, attribute):
        public = [known for known in dir(module) if not known.startswith("_")]
        raise BackboneError(f"{module_name} has no {attribute!r}: {near_names(attribute, public)}")
    network, preprocess = _made(name, getattr(module, attribute))
    kind, origin = "python", str(getattr(module, "__file__", module_name))
    if weights is not None:
        load_strictly(network, read_weights(weights), origin=weights)
        kind, origin = "file", Path(weights).name
    return Body(
        name=name,
        module=network,
        preprocess=preprocess,
        weights_name=kind,
        weights_origin=origin,
        # As timm's networks name them.
        maps="NHWC" if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC") else "NCHW",
        prefix_tokens=int(getattr(network, "num_prefix_tokens", 0)),
        source=name,
        description=_code_of(module),
    )


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's code raises anything
        raise BackboneError(
            f"cannot import {name} for --backbone python:… ({first_line(error)}): install it, or put its folder on "
            "PYTHONPATH"
        ) from None


def _made(name: str, make: Any) -> tuple[nn.Module, Preprocess]:
    try:
        made = make()
    except Exception as error:  # a user's code raises anything
        raise BackboneError(
            f"{name} failed ({first_line(error)}): correct it; it is called without arguments"
        ) from None
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise BackboneError(
            f"expected {name} to return a network and its preprocessing, found {type(made).__name__}: "
            "return module, preprocess"
        )
    network, described = made
    if isinstance(described, Preprocess):
        return network, described
    if isinstance(described, ImageClassification):
        return network, preprocess_of_preset(described)
    if isinstance(described, dict):
        return network, Preprocess.of_description(described, name)
    raise BackboneError(
        f"expected the preprocessing of {name} as a dict or torchvision's transforms, found "
        f"{type(described).__name__}: return one of these"
    )


def _code_of(module: ModuleType) -> str:
    """Return the SHA-256 of the code of a module, and of what it imports from its own folder."""
    top = sys.modules[module.__name__.partition(".")[0]]
    if top.__file__ is None or module.__file__ is None:
        raise BackboneError(f"python:{module.__name__} has no file that would identify it: put it into one")
    folder = Path(top.__file__).resolve().parent
    files: set[Path] = set()
    pending = [module]
    while pending:
        each = pending.pop()
        file = Path(str(each.__file__)).resolve()
        if file not in files:
            files.add(file)
            pending += [other for other in _imports(each, file) if _lies_in(other, folder)]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _imports(module: ModuleType, file: Path) -> list[ModuleType]:
    """Return the loaded modules that the code of a module names in its imports."""
    if file.suffix != ".py":
        return []
    package = module.__name__ if file.name == "__init__.py" else module.__name__.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    # A package runs before what lies in it.
    parts = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
    return [sys.modules[name] for name in parts if name in sys.modules]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    return (
        path.is_relative_to(folder)
        and "site-packages" not in path.relative_to(folder).parts
        and folder.name != "site-packages"
    )
