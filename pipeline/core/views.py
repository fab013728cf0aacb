"""Several views of an image: what they are, and the names of their layers; as plain data.

The first view is the image as the network takes it. Each other view is one more layer for each layer of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SEPARATOR = "@"


@dataclass(frozen=True, slots=True)
class View:
    """What one view of an image shows.

    Attributes
    ----------
    name : str
        Empty for the first.
    mirrored : bool
        Left and right are exchanged.
    corner : (int, int)
        Where the crop lies in the resized image, across and down: -1 at the beginning, 0 in the middle, 1 at the end.
    scale : float
        How much larger than the weights' own the resize is.
    """

    name: str
    mirrored: bool = False
    corner: tuple[int, int] = (0, 0)
    scale: float = 1.0


FIRST = View("")
VIEWS = {
    "flip": (View("flip", mirrored=True),),
    "5crop": (
        View("top-left", corner=(-1, -1)),
        View("top-right", corner=(1, -1)),
        View("bottom-left", corner=(-1, 1)),
        View("bottom-right", corner=(1, 1)),
    ),
    "multiscale": (View("scale-1.25", scale=1.25), View("scale-1.6", scale=1.6)),
}
"""What ``--views`` takes, and the views besides the first."""
_NAMES = frozenset(view.name for views in VIEWS.values() for view in views)


def views_of(which: str) -> tuple[View, ...]:
    """Return all views, the first one too; that alone where ``which`` is empty.

    Examples
    --------
    >>> [view.name for view in views_of("flip")], len(views_of("")), len(views_of("5crop"))
    (['', 'flip'], 1, 5)
    """
    return (FIRST, *VIEWS[which]) if which else (FIRST,)


def views_of_spec(spec: Mapping[str, Any]) -> str:
    """Return which further views a cache holds, a key of `VIEWS`; empty where it has none."""
    return str(spec.get("preprocess", {}).get("views", ""))


def layer_of_view(layer: str, view: View) -> str:
    """Return the name of the layer that holds a view.

    Examples
    --------
    >>> layer_of_view("penultimate", VIEWS["flip"][0]), layer_of_view("penultimate", FIRST)
    ('penultimate@flip', 'penultimate')
    """
    return f"{layer}{SEPARATOR}{view.name}" if view.name else layer


def parts_of(layer: str) -> tuple[str, str]:
    """Return a layer's name without its view, and the name of the view.

    Examples
    --------
    >>> parts_of("blocks.5:avg@top-left"), parts_of("penultimate")
    (('blocks.5:avg', 'top-left'), ('penultimate', ''))
    """
    name, _, view = layer.rpartition(SEPARATOR)
    return (name, view) if name and view in _NAMES else (layer, "")


def of_first_view(layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that show the first view.

    Examples
    --------
    >>> of_first_view(["penultimate", "penultimate@flip"])
    ('penultimate',)
    """
    return tuple(name for name in layers if not parts_of(name)[1])
