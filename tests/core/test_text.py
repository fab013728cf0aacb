"""Names in files, lists and tables, and back."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.names import SHOWN, name_form, one_line, other_forms
from pipeline.core.text import match_names, valid_text


@given(st.binary(min_size=1))
def test_any_name_is_shown_as_utf_8_on_one_line_and_found_again(raw: bytes) -> None:
    name = os.fsdecode(raw.replace(b"\0", b"?"))
    shown = one_line(valid_text([name])[0])
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert "\t" not in shown
    assert name_form(shown) == name_form(name)
    assert match_names([shown], [name, "another"]).tolist() == [0]


def test_files_in_utf_8_show_bytes_that_are_none() -> None:
    assert "caf\udce9.png \ud83d".encode("utf-8", SHOWN) == rb"caf\xe9.png \ud83d"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", SHOWN)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("e\u0301", "\u00e9"), ("\u00e9", "e\u0301"), ("\u30d5\u309a", "\u30d7"),
        (r"a\xe9b", "a\udce9b"), (r"a\n\tb", "a\n\tb"),
        (r"\u2028", "\u2028"), (r"\x1b", "\x1b"),
    ],
)  # fmt: skip
def test_the_forms_that_a_file_of_this_name_may_have(name: str, found: str) -> None:
    assert found in other_forms(name)


def test_names_that_could_be_two_are_matched_with_none() -> None:
    both = ["\u00e9", "e\u0301"]
    assert match_names(both, both).tolist() == [0, 1]
    assert match_names(["\u00e9"], ["e\u0301", "\u0065\u0301\u200b"]).tolist() == [0]
    assert match_names(["a\nb"], [r"a\nb", "c"]).tolist() == [0]
    assert match_names([r"\xe9", "\\xe9\n"], ["\udce9", "\udce9\n"]).tolist() == [0, 1]
    assert match_names(["\u212b"], ["\u00c5", "A\u030a"]).tolist() == [-1]  # both are forms of the angstrom sign
