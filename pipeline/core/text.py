r"""Text that every library and file accepts: names whose bytes are not UTF-8, label sets, names of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.names import name_form, shown

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

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
    return [shown(text) for text in map(str, found)]


def match_names(wanted: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Return which of ``known`` each of ``wanted`` is, -1 for none: the same name, or the only one of the same form.

    Each known name is found at most once, and names of the same letters before others.

    Examples
    --------
    >>> match_names(["caf\u00e9", "b", "c"], ["b", "cafe\u0301"]).tolist()
    [1, 0, -1]
    """
    place = {name: i for i, name in enumerate(known)}
    found = np.array([place.get(name, -1) for name in wanted], dtype=np.int64)
    left = set(range(len(known))) - set(found.tolist())
    forms = _by_form({i: known[i] for i in left})
    asked = _by_form({i: wanted[i] for i in np.flatnonzero(found < 0).tolist()})
    for form, those in asked.items():
        if len(those) == 1 == len(forms.get(form, ())):
            found[those[0]] = forms[form][0]
    return found


def _by_form(names: Mapping[int, str]) -> dict[str, list[int]]:
    forms: dict[str, list[int]] = {}
    for i, name in names.items():
        forms.setdefault(name_form(name), []).append(i)
    return forms


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


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: the singular for one, else the plural, by default with an s.

    Examples
    --------
    >>> counted(1, "row"), counted(0, "row"), counted(2, "query", "queries")
    ('1 row', '0 rows', '2 queries')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut a name of more than ``longest`` characters in its middle.

    Examples
    --------
    >>> shortened("a name that would not leave any room")
    'a name that…eave any room'
    """
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half - 1 :]}"
