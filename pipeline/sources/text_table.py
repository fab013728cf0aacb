"""CSV and similar text tables, as spreadsheets, statistics programs and databases write them.

Encoding and separator are detected by byte-order marks, zero bytes and the header, never guessed from a language: a
table that leaves a choice is refused. Cells are read as text; a column is of another type only where every cell of it
can be written back as it was.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError, few_names
from pipeline.sources.base import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import BinaryIO

    import pandas as pd

HEAD_BYTES = 1 << 16
SEPARATORS = ",;\t|"
ROWS_AT_ONCE = 1 << 14
MAX_CELL = 1 << 27
"""Characters of the longest cell; Python's own limit of 131 072 is below what base64 needs."""
MISSING_WORDS = frozenset(["NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "none", "<NA>", "."])
"""Missing values among numbers; elsewhere they are texts, since "NA" may be a name (Namibia, sodium)."""
BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_TEXT_BITMAP = re.compile(rb"P[1-7]\s")
_WHOLE = re.compile("0|-?[1-9][0-9]*")
# No leading zero or plus (a postal code, a telephone number); no exponent without sign or point (the well "1E5").
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?|-?\.[0-9]+|-?inf", re.ASCII)
MOST_DIGITS = 17
"""Decimal digits that float64 keeps."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text table is written.

    Attributes
    ----------
    encoding, separator : str
    skip : int
        Lines before the header: comments, and Excel's ``sep=``.
    marked : bool
        The header itself begins with ``#``.
    spaced : bool
        Spaces follow the separators, as the header shows; elsewhere they are part of the cells.
    header : tuple of str
        The names of the columns, as far as the first bytes hold them.
    """

    encoding: str
    separator: str
    skip: int
    marked: bool
    spaced: bool
    header: tuple[str, ...]


def encoding_of(head: bytes) -> str | None:
    """Return the encoding that byte-order mark or zero bytes show, UTF-8 where neither does, None for no text."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if marked or b"\0" not in head:
        return marked or "utf-8-sig"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if min(even, odd) * 20 < max(even, odd) and max(even, odd) * 3 > len(head) // 2:
        guess = "utf-16-be" if even > odd else "utf-16-le"
        return None if _CONTROL.search(head.decode(guess, "replace")) else guess
    return None


def dialect_of(head: bytes, names: Collection[str]) -> Dialect | None:
    """Return how the table is written that begins with ``head``, or None where it is no text.

    Parameters
    ----------
    head : bytes
    names : collection of str
        Names of columns; the separator is the one that divides the header into most of them.
    """
    encoding = encoding_of(head)
    if encoding is None:
        return None
    text = head.decode(encoding, "replace")
    rest, skip, separators, marked = text, 0, SEPARATORS, False
    while rest:
        line, _, after = rest.partition("\n")
        if stated := re.fullmatch("sep=(.)\r?", line.strip('"')):
            separators = stated[1]
        elif line.startswith("#"):
            marked = bool(set(names) & set(_best_header(line.lstrip("# "), separators, names)[1]))
            if marked:
                rest = line.lstrip("# ")
                break
        elif line.strip():
            break
        rest, skip = after, skip + 1
    separator, header = _best_header(rest, separators, names)
    spaced = re.match(f'[^"\r\n]*{re.escape(separator)} ', rest) is not None
    return Dialect(encoding, separator, skip, marked, spaced, tuple(header))


def _best_header(text: str, separators: str, names: Collection[str]) -> tuple[str, list[str]]:
    """Return the separator that finds most of the names in the header, or else makes most columns."""
    found = [(separator, _first_row(text, separator)) for separator in separators]
    return max(found, key=lambda pair: (len(set(pair[1]) & set(names)), len(pair[1])))


def _first_row(text: str, separator: str) -> list[str]:
    with _long_cells():
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            return [cell.strip() for cell in next(rows, [])]
        except csv.Error:
            return []


def looks_like_a_table(head: bytes, names: Collection[str]) -> bool:
    """Return whether bytes are text with a header of several columns; the names count for more than a magic number."""
    dialect = dialect_of(head, names)
    if dialect is None or len(dialect.header) < 2 or _CONTROL.search(head.decode(dialect.encoding, "replace")):
        return False
    return bool(set(names) & set(dialect.header)) or not _TEXT_BITMAP.match(head)


def read_text_table(file: BinaryIO, shown: str, text: Collection[str]) -> pd.DataFrame:
    """Read a text table.

    Parameters
    ----------
    file : binary file
        At its start.
    shown : str
        Its name in messages.
    text : collection of str
        Columns that stay text where they look like numbers; names by which the separator is found.

    Returns
    -------
    DataFrame
        Columns of bool, int64, float64, whole numbers of any size (object) or text (object); None for missing.

    Raises
    ------
    SourceError
        It is no text or of another encoding, two columns have one name, or lines are not of the header's length.
    """
    import pandas as pd  # takes half a second: only where a table is read

    head = file.read(HEAD_BYTES)
    file.seek(0)
    dialect = dialect_of(head, text)
    if dialect is None:
        raise SourceError(
            f"expected a folder, a table, an archive or a data file of images, found {shown}, which is none of them: "
            f"name what holds or lists the images{_workbook(head)}"
        )
    try:
        names, columns = _parse(file, dialect, shown)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"expected {dialect.encoding.removesuffix('-sig').upper()} in {shown}, found byte "
            f"{error.object[error.start]:#04x} (Latin-1, Windows-1252 or another encoding?): save it as UTF-8"
        ) from None
    except UnicodeError as error:
        raise SourceError(f"cannot read {shown} as {dialect.encoding}: {error}: save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"cannot read {shown} as a table: {error}: save it again as CSV in UTF-8") from None
    made = {name: pd.Series(*_typed(cells, text=name in text)) for name, cells in zip(names, columns, strict=True)}
    return pd.DataFrame(made)


def _parse(file: BinaryIO, dialect: Dialect, shown: str) -> tuple[list[str], list[list[str]]]:
    """Return names and cells of the columns."""
    with _long_cells(), io.TextIOWrapper(file, encoding=dialect.encoding, newline="") as lines:
        for _ in range(dialect.skip):
            lines.readline()
        source: Iterable[str] = lines
        if dialect.marked:
            source = itertools.chain([lines.readline().lstrip("# ")], lines)
        reader = csv.reader(source, delimiter=dialect.separator, skipinitialspace=dialect.spaced, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if not names:
            raise SourceError(f"cannot read {shown} as a table: it is empty: add a header and a row per image")
        columns = _columns(reader, len(names), dialect, shown)
    kept = [i for i, name in enumerate(names) if name or any(columns[i])]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    chosen = [names[i] for i in kept]
    if twice := next((name for name in chosen if chosen.count(name) > 1), None):
        raise SourceError(
            f"expected columns of different names in {shown}, found {twice!r} twice: rename one of them "
            f"(there are {few_names(chosen)})"
        )
    return chosen, [columns[i] for i in kept]


def _columns(reader: Iterator[list[str]], width: int, dialect: Dialect, shown: str) -> list[list[str]]:
    """Return the cells by column, read in pieces: a list for each row of millions would cost more than the cells."""
    columns: list[list[str]] = [[] for _ in range(width)]
    first = 1
    while rows := list(itertools.islice(reader, ROWS_AT_ONCE)):
        count = len(rows)
        if set(map(len, rows)) != {width} or not all(map(any, rows)):
            rows = list(_whole_rows(rows, first, width, dialect, shown))
        for column, cells in zip(columns, zip(*rows, strict=True), strict=False):
            column.extend(cells)
        first += count
    return columns


def _whole_rows(rows: Sequence[list[str]], first: int, width: int, dialect: Dialect, shown: str) -> Iterator[list[str]]:
    """Yield the rows that are not empty, without empty cells beyond the header's."""
    for number, row in enumerate(rows, first):
        if not any(row):  # spreadsheets end in lines of separators
            continue
        cells = row[:width] if len(row) > width and not any(row[width:]) else row
        if len(cells) != width:
            raise SourceError(
                f"expected {width} cells in every row of {shown}, as in its header, found {len(row)} in row {number} "
                f"(separator {dialect.separator!r}): complete or quote its cells"
            )
        yield cells


class _long_cells:  # used as a function
    """Lets `csv` read long cells; its limit is one of the process."""

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(MAX_CELL)

    def __exit__(self, *error: object) -> None:
        csv.field_size_limit(self._before)


def _typed(cells: Sequence[str], *, text: bool) -> tuple[list[Any], None, Any]:
    """Return the cells in the type that keeps what they say, with the arguments of a pandas series."""
    distinct = set(cells) - {""}
    if text or not distinct:
        return [cell or None for cell in cells], None, object if distinct else float
    values = _values({cell: cell.strip() for cell in distinct})
    if values is None:
        return [cell or None for cell in cells], None, object
    present = [value for value in values.values() if value is not None]
    found = [values[cell] if cell else None for cell in cells]
    if isinstance(present[0], bool):
        if None in found:  # a truth value beside a gap is text, as it was written
            return [cell or None for cell in cells], None, object
        return found, None, bool
    if None in found:
        return found, None, float if any(isinstance(value, float) for value in present) else object
    return found, None, None  # pandas takes the first of int64, uint64, float64 and object that holds all


def _values(words: dict[str, str]) -> dict[str, Any] | None:
    """Return the value of each cell: truth values, whole numbers, or decimals; None where they are texts."""
    if all(word in BOOLEANS for word in words.values()):
        return {cell: BOOLEANS[word] for cell, word in words.items()}
    numbers = {cell: word for cell, word in words.items() if word not in MISSING_WORDS}
    missing: dict[str, Any] = dict.fromkeys(words.keys() - numbers.keys())
    if not numbers:
        return None
    if max(map(len, numbers.values())) > MAX_TEXT:
        return None  # digits for their own sake, such as a bitmap; Python refuses to read thousands of them
    if all(_WHOLE.fullmatch(word) for word in numbers.values()):
        return {**{cell: int(word) for cell, word in numbers.items()}, **missing}
    if all(_is_decimal(word) for word in numbers.values()):
        floats = {cell: float(word) for cell, word in numbers.items()}
        if len(set(floats.values())) == len(floats) or _differ_as_texts(numbers.values()):
            return {**floats, **missing}
    return None


def _differ_as_texts(words: Iterable[str]) -> bool:
    """Return whether no number has two texts, as in versions such as 1.1 and 1.10; 1 and 1.0 are one text here."""
    texts = {re.sub(r"\.0*$", "", word) for word in words}
    return len({repr(float(text)) for text in texts}) == len(texts)


def _is_decimal(word: str) -> bool:
    """Return whether a text is a number that float64 keeps."""
    if not _DECIMAL.fullmatch(word):
        return False
    if "." in word and len(word.lstrip("-0.")) <= MOST_DIGITS:  # nearly all, and cheaper than what follows
        return math.isfinite(float(word))
    if _WHOLE.fullmatch(word):
        return int(word) == int(float(word))
    digits = re.sub("[eE].*|[-.]", "", word).strip("0")
    return len(digits) <= MOST_DIGITS and (math.isfinite(float(word)) or word.endswith("inf"))


def _workbook(head: bytes) -> str:
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "; of a workbook, save the sheet as CSV in UTF-8"
    if head.startswith(b"ARROW1"):
        return "; save a Feather file as Parquet"
    return ""
