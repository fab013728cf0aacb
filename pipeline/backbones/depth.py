"""Where a network has layers worth comparing: the ends of its blocks at several depths."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch.nn import Module

DEPTHS = (0.5, 0.75, 1.0)
"""Shares of a network's blocks after which its features are taken: earlier ones are too general for most heads."""

_LEAST_BLOCKS = 3
_WHOLE = 0.8
"""A child that holds this share of the parameters is the network itself, inside a wrapper."""


def inner_layers(body: Module) -> tuple[str, ...]:
    """Return the names of nodes at `DEPTHS` of a network, from the image on; none where it has no row of blocks.

    Parameters
    ----------
    body : nn.Module
        The network without its classifier.

    Examples
    --------
    >>> body = nn.Sequential()
    >>> body.add_module("blocks", nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(8))))
    >>> inner_layers(body)
    ('blocks.3', 'blocks.5', 'blocks.7')
    """
    blocks = _blocks(body, "")
    return tuple(dict.fromkeys(blocks[math.ceil(depth * len(blocks)) - 1] for depth in DEPTHS)) if blocks else ()


def _blocks(module: Module, path: str) -> list[str]:
    """Return the names of the blocks that follow each other: numbered children, or the items of a sequence."""
    children = dict(module.named_children())
    numbered: dict[str, list[str]] = {}
    for name in children:
        if found := re.fullmatch(r"(\D+)(\d+)", name):
            numbered.setdefault(found[1], []).append(name)
    for names in numbered.values():
        if len(names) >= _LEAST_BLOCKS and _size(*(children[name] for name in names)) > _size(module) / 2:
            return [path + name for name in names]
    if isinstance(module, (nn.Sequential, nn.ModuleList)) and path and len(children) >= _LEAST_BLOCKS:
        return [path + name for name in children]
    name, largest = max(children.items(), key=lambda child: _size(child[1]), default=("", None))
    if largest is None or _size(largest) < _size(module) * (0.5 if _is_row(largest) else _WHOLE):
        return []
    return _blocks(largest, f"{path}{name}.")


def _is_row(module: Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and len(list(module.children())) >= _LEAST_BLOCKS


def _size(*modules: Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
