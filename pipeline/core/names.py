r"""Names of files as they are written into lists, tables and messages, and found again; imports no NumPy."""

from __future__ import annotations

import codecs
import re
import unicodedata

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


def shown(name: str) -> str:
    r"""Return a name that every library accepts: bytes that are not UTF-8 as ``\xff``.

    Examples
    --------
    >>> shown("café.png"), shown("\udcff.png")
    ('café.png', '\\xff.png')
    """
    return name if name.isascii() else name.encode("utf-8", SHOWN).decode()


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

    One Unicode form (a Mac writes é as e and an accent), and the escapes of `shown` and `one_line`.

    Examples
    --------
    >>> name_form("cafe\u0301.png") == name_form("caf\u00e9.png"), name_form("\udcff\n") == name_form(r"\xff\n")
    (True, True)
    """
    if name.isascii() and name.isprintable():
        return name
    return unicodedata.normalize("NFC", one_line(shown(name)))


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
