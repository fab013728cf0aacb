r"""Text that every library and file accepts: names whose bytes are not UTF-8, label sets, names of columns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from numpy.typing import NDArray

SET_SEPARATOR = "|"
"""Separates the labels of a set; alone it is the empty set."""

OTHER_SET_SEPARATOR = ";"
"""Separates them in a column that does not contain the first separator."""

_LONGEST_NAME = 24


def valid_text(texts: NDArray[np.str_] | Iterable[Any]) -> list[str]:
    r"""Return text that every library accepts: bytes of a name that are not UTF-8 are shown as ``\xff``.

    Examples
    --------
    >>> valid_text(("café.png", "\udcff.png"))
    ['café.png', '\\xff.png']
    """
    found = texts.tolist() if isinstance(texts, np.ndarray) else texts
    return [
        text if _is_valid(text) else os.fsencode(text).decode("utf-8", "backslashreplace") for text in map(str, found)
    ]


def free_name(name: str, taken: Container[str]) -> str:
    """Return a free name for a column: ``column_`` is prepended until the name is free.

    Examples
    --------
    >>> free_name("age", {"label"}), free_name("label", {"label"})
    ('age', 'column_label')
    """
    while name in taken:
        name = f"column_{name}"
    return name


def shortened(name: str) -> str:
    """Cut a long name in its middle.

    Examples
    --------
    >>> shortened("a name that would not leave any room")
    'a name that…eave any room'
    """
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half - 1 :]}"


def _is_valid(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)
