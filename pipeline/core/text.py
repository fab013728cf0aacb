r"""Text that every library and file accepts: names whose bytes are not UTF-8, label sets, names of columns."""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

SET_SEPARATOR = "|"
"""Separates the labels of a set; alone it is the empty set."""

OTHER_SET_SEPARATOR = ";"
"""Separates them in a column that does not contain the first separator."""

_LONGEST_NAME = 24


SHOWN = "pipeline.shown"
"""Error handler of encodings that writes a byte that is not UTF-8 as ``\\xff``; for files that are to be UTF-8."""

_NOT_ONE_LINE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([ntr]))")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _show(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = map(ord, error.object[error.start : error.end])
    texts = [f"\\x{letter - 0xDC00:02x}" if 0xDC80 <= letter <= 0xDCFF else f"\\u{letter:04x}" for letter in letters]
    return "".join(texts), error.end


codecs.register_error(SHOWN, _show)


def valid_text(texts: NDArray[np.str_] | Iterable[Any]) -> list[str]:
    r"""Return text that every library accepts: bytes of a name that are not UTF-8 are shown as ``\xff``.

    Examples
    --------
    >>> valid_text(("café.png", "\udcff.png"))
    ['café.png', '\\xff.png']
    """
    found = texts.tolist() if isinstance(texts, np.ndarray) else texts
    return [text if text.isascii() else text.encode("utf-8", SHOWN).decode() for text in map(str, found)]


def one_line(text: str) -> str:
    r"""Return text for a list with one name a line: line breaks, tabs and other control characters as escapes.

    Examples
    --------
    >>> one_line("two\nlines.png")
    'two\\nlines.png'
    """
    return _NOT_ONE_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def name_form(name: str) -> str:
    r"""Return the form in which names are compared that differ only in how a program writes them.

    One Unicode form (a Mac writes é as e and an accent), and the escapes of `valid_text` and `one_line`.

    Examples
    --------
    >>> name_form("cafe\u0301.png") == name_form("caf\u00e9.png"), name_form("\udcff\n") == name_form(r"\xff\n")
    (True, True)
    """
    if name.isascii() and name.isprintable():
        return name
    return unicodedata.normalize("NFC", one_line(valid_text([name])[0]))


def other_forms(name: str) -> list[str]:
    r"""Return the names that a file may have which a table calls ``name``: other Unicode forms, escapes undone.

    Examples
    --------
    >>> other_forms("caf\u00e9.png"), other_forms(r"a\nb"), other_forms("plain.png")
    (['cafe\u0301.png'], ['a\nb'], [])
    """
    names = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    if "\\" in name:
        names.append(_ESCAPE.sub(_unescape, name))
    return [other for other in dict.fromkeys(names) if other != name]


def _unescape(found: re.Match[str]) -> str:
    byte, code, letter = found.groups()
    if byte:
        return bytes.fromhex(byte).decode("utf-8", "surrogateescape")
    return chr(int(code, 16)) if code else next(plain for plain, escape in _SHORT.items() if escape[1] == letter)


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


def shortened(name: str) -> str:
    """Cut a long name in its middle.

    Examples
    --------
    >>> shortened("a name that would not leave any room")
    'a name that…eave any room'
    """
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half - 1 :]}"
