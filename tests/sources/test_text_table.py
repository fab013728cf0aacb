"""CSV as programs write it: encodings, separators, cells and lines; right, or refused by name."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.sources.columns import column_values
from pipeline.sources.text_table import encoding_of, looks_like_a_table, read_text_table

NAMES = ("key", "path", "label", "split", "group")


def read(text: str | bytes) -> dict[str, list[Any]]:
    frame = read_text_table(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "list.csv", NAMES)
    return {str(name): column_values(frame[name], text=name in NAMES).tolist() for name in frame.columns}


PLAIN = "path,label,n\na.png,é,1\nb.png,ü,2\n"
WANTED = {"path": ["a.png", "b.png"], "label": ["é", "ü"], "n": [1, 2]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_encodings_separators_and_line_ends_are_found(encoding: str, separator: str, ending: str) -> None:
    text = PLAIN.replace(",", separator).replace("\n", ending)
    assert read(text.encode(encoding)) == WANTED


def test_big_endian_with_its_mark() -> None:
    assert read(b"\xfe\xff" + PLAIN.encode("utf-16-be")) == WANTED


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp932"])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    text = PLAIN if encoding != "cp932" else "path,label\na.png,日本\n"
    with pytest.raises(SourceError, match=r"expected UTF-8 in list.csv, found byte 0x.. \(Latin-1"):
        read(text.encode(encoding))


def test_bytes_that_are_no_text_are_refused() -> None:
    for head, hint in (
        (b"\0\1\2\3" * 100, ""),
        (b"PK\x03\x04\0\0", "CSV"),
        (b"\xd0\xcf\x11\xe0" + bytes(8), "CSV"),
        (b"ARROW1\0\0", "Parquet"),
    ):
        with pytest.raises(SourceError, match=f"none of them.*{hint}"):
            read(head)
    assert encoding_of(b"") == "utf-8-sig"


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\npath;label;n\na.png;é;1\nb.png;ü;2\n",
        "# made by a program\n# path of what, of 2\n\npath,label,n\na.png,é,1\nb.png,ü,2\n",
        "#path,label,n\na.png,é,1\nb.png,ü,2\n",
        "path, label, n\na.png, é, 1\nb.png, ü, 2\n",
        '"path","label","n"\n"a.png","é","1"\n"b.png","ü","2"\n',
        "path,label,n,\na.png,é,1,\nb.png,ü,2,\n",
        "path,label,n\na.png,é,1\n,,\n\nb.png,ü,2,,,\n",
    ],
    ids=["excel", "comments", "marked header", "spaces", "quotes", "trailing separator", "empty lines"],
)
def test_what_programs_put_around_a_table(text: str) -> None:
    assert read(text) == WANTED


def test_cells_may_hold_anything_in_quotes() -> None:
    cells = [
        "two\nlines",
        'a "quote"',
        "a,comma",
        "  space",
        "#hash",
        "x" * 200_000,
        "a\r\nb",
        "\u05d0\u05d1 right to left",
    ]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([["path", "label"], *(["p", cell] for cell in cells)])
    assert read(out.getvalue())["label"] == cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png\n", "expected 2 cells in every row of list.csv, as in its header, found 1 in row 1"),
        ("path,label\na.png,x,y\n", "found 3 in row 1"),
        ("# c\npath,label\nb,c\na,x,y\n", "found 3 in row 2"),
        ("path,label,label\na,b,c\n", "expected columns of different names in list.csv, found 'label' twice"),
        ('path,label\n"a"b,c\n', "cannot read list.csv as a table"),
        ('path,label\n"a,c\n', "cannot read list.csv as a table"),
        ("", "it is empty"),
    ],
)  # fmt: skip
def test_what_leaves_a_choice_is_refused(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["1", "2"], [1, 2]),
        (["-1", "0"], [-1, 0]),
        (["007", "7"], ["007", "7"]),
        (["+49123", "+1"], ["+49123", "+1"]),
        (["18446744073709551615", "1"], [2**64 - 1, 1]),
        (["18446744073709551616", "1"], ["18446744073709551616", "1"]),
        (["9007199254740993", ""], ["9007199254740993", ""]),
        (["9007199254740993", "NA"], ["9007199254740993", ""]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["1", ""], [1.0, np.nan]),
        (["1.50", "22.10"], [1.5, 22.1]),
        (["-0.00", "0.00"], [-0.0, 0.0]),
        (["1.1", "1.10"], ["1.1", "1.10"]),
        (["1", "1.0"], [1.0, 1.0]),
        (["1e-05", "2.5E3"], [1e-5, 2500.0]),
        (["1E5", "2E5"], ["1E5", "2E5"]),
        (["0.12345678901234567890", "1"], ["0.12345678901234567890", "1"]),
        (["1,5", "2,5"], ["1,5", "2,5"]),
        (["1.234,5", "2"], ["1.234,5", "2"]),
        (["1.5", "NA"], [1.5, np.nan]),
        (["NA", "x"], ["NA", "x"]),
        (["inf", "-inf"], [np.inf, -np.inf]),
        (["1e+999", "1"], ["1e+999", "1"]),
        (["True", "false"], [True, False]),
        (["TRUE", ""], ["TRUE", ""]),
        (["True", "1"], ["True", "1"]),
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["", ""], [np.nan, np.nan]),
    ],
)
def test_a_column_is_typed_only_where_every_cell_is_kept(cells: list[str], found: list[Any]) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter="\t").writerows([["path", "x"], *([f"{i}.png", cell] for i, cell in enumerate(cells))])
    values = read(out.getvalue())["x"]
    assert list(map(type, values)) == list(map(type, found))
    assert str(values) == str(found)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False)), min_size=1))
def test_numbers_written_by_python_are_read_exactly(numbers: list[Any]) -> None:
    text = "path,x\n" + "".join(f"p,{number!r}\n" for number in numbers)
    for value, number in zip(read(text)["x"], numbers, strict=True):
        assert (value if isinstance(value, str) else type(number)(value)) in (number, repr(number))


def test_the_header_tells_a_table_from_a_file_with_the_same_first_bytes() -> None:
    for first in ("BMI", "P1", "P5 ", "GIF89a", "PAR1", "BZh9", "II*", "RIFF"):
        assert looks_like_a_table(f"{first},path,label\n1,a.png,x\n".encode(), NAMES)
        assert looks_like_a_table(f"path;{first}\na.png;1\n".encode("utf-16"), NAMES)
    for other in (b"P1 2 2\n0 1 1 0\n", b"P3 path 1\n", b"BM\0\0path,label", b"GIF89a path,\0", b""):
        assert not looks_like_a_table(other, NAMES)


@pytest.mark.parametrize("long", ["1" * 5000, "1" * 5000 + ".5", "10" * 200])
def test_thousands_of_digits_are_text(long: str) -> None:
    """Python refuses to read whole numbers of so many digits."""
    assert read(f"path,n\na.png,{long}\nb.png,2\n")["n"] == [long, "2"]
