"""Members of an archive that hold the label of an image beside them: ``.cls``, ``.json`` and ``.txt`` (WebDataset).

WebDataset's own reader divides a member's name at the first dot after its folder; what shares the part before is one
sample. Names with dots (``img.v1.png``, ``img.v1.cls``) then are one sample of many fields, so the longest part that an
image shares with a sidecar, up to a dot, decides which of them are its own.
"""

from __future__ import annotations

import codecs
import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.errors import SourceError
from pipeline.sources.base import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_SIDECAR_BYTES = 16 << 20
BAD_LABELS = UNREADABLE, LONG, LARGE = (
    "label that cannot be read",
    f"label above {MAX_TEXT} characters",
    f"label file above {MAX_SIDECAR_BYTES >> 20} MB",
)
OF_NONE = "label of no image"
BESIDE = "text beside an image, not its label"
FIELDS = ("label", "split", "group")
TEXT = "text"
"""The name of what a ``.txt`` member holds: a class name or a caption."""
MOST_WORDS, MOST_LETTERS = 3, 64
"""Above these a text is a caption."""
_CLS, _JSON, _TXT = ENDINGS = (b".cls", b".json", b".txt")


def is_sidecar(name: bytes) -> bool:
    """Return whether a member's name is that of a sidecar."""
    base = name.rpartition(b"/")[2].lower()
    return base.endswith(ENDINGS) and not base.startswith(b".")


def is_class_name(text: str) -> bool:
    r"""Return whether a text is as short as class names are, and captions are not.

    Examples
    --------
    >>> is_class_name("sea otter"), is_class_name("an otter in the sea"), is_class_name("two\nlines")
    (True, False, False)
    """
    return len(text) <= MOST_LETTERS and len(text.split()) <= MOST_WORDS and len(text.splitlines()) == 1


@dataclass(slots=True)
class Found:
    """What the sidecars of an archive say about its images.

    Attributes
    ----------
    values : dict of str to dict of int to str
        ``label``, ``split``, ``group`` or `TEXT` → place of the image → value.
    used : list of int
        Places of the sidecars that gave a label.
    left_out : dict of int to str
        Places of the others that are more than files without a label, with the reason.
    """

    values: dict[str, dict[int, str]] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Sidecar:
    place: int
    values: dict[str, str]
    reason: str


class Sidecars:
    """Collects the sidecars of an archive."""

    def __init__(self) -> None:
        self._by_stem: dict[bytes, dict[bytes, _Sidecar]] = {}
        self._replaced: list[int] = []

    def add(self, place: int, name: bytes, data: bytes | None) -> None:
        """Add a sidecar; ``data`` is None where it is too large.

        Raises
        ------
        SourceError
            A label set has a name that holds the separator.
        """
        stem, _, ending = name.rpartition(b".")
        ending = b"." + ending.lower()
        values, reason = ({}, LARGE) if data is None else _read(ending, data, name)
        self._keep(stem, ending, _Sidecar(place, values, reason))

    def _keep(self, stem: bytes, ending: bytes, sidecar: _Sidecar) -> None:
        kinds = self._by_stem.setdefault(stem, {})
        if ending in kinds:
            self._replaced.append(kinds[ending].place)
        kinds[ending] = sidecar

    def add_link(self, place: int, name: bytes, target: bytes) -> bool:
        """Add a sidecar that is another one once more, of the same ending; return whether there is such a one."""
        stem, _, ending = target.rpartition(b".")
        own_stem, _, own_ending = name.rpartition(b".")
        earlier = self._by_stem.get(stem, {}).get(b"." + ending.lower())
        if earlier is None or own_ending.lower() != ending.lower():
            return False
        self._keep(own_stem, b"." + ending.lower(), replace(earlier, place=place))
        return True

    def of_images(self, names: Mapping[int, bytes]) -> Found:
        """Return what they say about images, given by place and name."""
        found = Found()
        if not self._by_stem:
            return found
        beside: set[bytes] = set()
        for image, name in names.items():
            for stem in _stems(name):
                if stem in self._by_stem:
                    beside.add(stem)
                    for ending in ENDINGS:  # .cls counts before .json
                        sidecar = self._by_stem[stem].get(ending)
                        for what, value in sidecar.values.items() if sidecar else ():
                            found.values.setdefault(what, {}).setdefault(image, value)
        for stem, kinds in self._by_stem.items():
            for sidecar in kinds.values():
                _sort(found, sidecar, beside=stem in beside)
        found.used += self._replaced
        return found


def _sort(found: Found, sidecar: _Sidecar, *, beside: bool) -> None:
    if TEXT in sidecar.values or (beside and sidecar.reason):
        if beside:
            found.left_out[sidecar.place] = sidecar.reason or BESIDE
    elif sidecar.values and beside:
        found.used.append(sidecar.place)
    elif sidecar.values:
        found.left_out[sidecar.place] = OF_NONE


def _stems(name: bytes) -> Iterator[bytes]:
    """Yield a name, then its parts up to each dot after the folder, from the last to the first."""
    first = name.rfind(b"/") + 1
    end = len(name)
    while end > first:
        yield name[:end]
        end = name.rfind(b".", first, end)


def _read(ending: bytes, data: bytes, name: bytes) -> tuple[dict[str, str], str]:
    """Return the values of a sidecar, and why it has none although it should."""
    if ending == _JSON:
        return _json(data, name)
    if ending == _TXT and len(data) > 4 * MAX_TEXT:
        return {TEXT: "x" * (MOST_LETTERS + 1)}, BESIDE
    text = _decoded(data).strip()
    if ending == _TXT:
        return ({TEXT: text}, BESIDE) if text and "\0" not in text else ({}, "")
    return _checked({"label": text})


def _checked(values: dict[str, str]) -> tuple[dict[str, str], str]:
    if any(not text or "\0" in text or not _is_text(text) for text in values.values()):
        return {}, UNREADABLE
    return ({}, LONG) if any(len(text) > MAX_TEXT for text in values.values()) else (values, "")


def _is_text(text: str) -> bool:
    """Return whether it is free of halves of surrogate pairs, which JSON can hold and no file in UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _decoded(data: bytes) -> str:
    """Return text by its byte-order mark, as UTF-8, or else as Windows-1252, of which Latin-1 is a part."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "".join(_letter(byte) for byte in data)


def _letter(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:  # five bytes that Windows-1252 leaves free
        return chr(byte)


def _json(data: bytes, name: bytes) -> tuple[dict[str, str], str]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}, UNREADABLE
    if not isinstance(found, dict):
        return {}, ""
    given = {what: found[what] for what in FIELDS if found.get(what) is not None and found[what] == found[what]}  # NaN
    lists = [value for value in given.values() if isinstance(value, list)]
    single = [value for value in given.values() if not isinstance(value, list)]
    if not all(map(_is_name, single)) or not all(_is_name(one) and one != "" for value in lists for one in value):
        return {}, UNREADABLE
    for value in lists:
        _check_separators(value, name)
    return _checked({what: _joined(value) for what, value in given.items()})


def _is_name(value: Any) -> bool:
    """Return whether a value of JSON names a class: a text, a truth value, or a number that is one."""
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _joined(value: Any) -> str:
    return (SET_SEPARATOR.join(map(str, value)) or SET_SEPARATOR) if isinstance(value, list) else str(value)


def _check_separators(labels: list[Any], name: bytes) -> None:
    for separator in (SET_SEPARATOR, OTHER_SET_SEPARATOR):
        if cut := next((label for label in labels if isinstance(label, str) and separator in label), None):
            raise SourceError(
                f"{name.decode('utf-8', 'backslashreplace')} lists the name {cut!r}, in which {separator!r} separates "
                "labels: rename it"
            )
