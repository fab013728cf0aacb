from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.errors import HeadError
from pipeline.fitting.prompts import prompts_of, read_prompts

if TYPE_CHECKING:
    from pathlib import Path


def test_a_line_is_a_class_and_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes('\ufeffclass,prompt\ndog,a photo of a dog\n"dog","a dog, asleep"\n\ncat, ein Kätzchen \n'.encode())
    assert read_prompts(file) == [("dog", "a photo of a dog"), ("dog", "a dog, asleep"), ("cat", "ein Kätzchen")]
    tabs = tmp_path / "p.tsv"
    tabs.write_text("class\tprompt\ndog\ta dog, asleep\n")
    assert read_prompts(tabs) == [("dog", "a dog, asleep")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the first line .* class,prompt"),
        (b"dog,a photo\n", "expected the first line .* class,prompt"),
        (b"class,prompt\ndog\n", "record 2"),
        (b"class,prompt\ndog,a photo, of a dog\n", "record 2"),
        (b"class,prompt\n,a photo\n", "record 2"),
        (b"class,prompt\ndog,\xff\n", "no UTF-8 table"),
    ],
)
def test_other_tables_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(HeadError, match=message) as caught:
        read_prompts(tmp_path / "p.csv")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="cannot read"):
        read_prompts(tmp_path / "none.csv")


def test_every_class_needs_a_prompt_and_others_are_left_out() -> None:
    prompts = [("b", "one"), ("a", "two"), ("b", "three"), ("z", "four")]
    notes: list[str] = []
    assert prompts_of(prompts, ["a", "b"], notes.append) == (["one", "two", "three"], [1, 0, 1])
    assert notes == ["prompts left out: 'z' are no classes of these rows"]
    with pytest.raises(HeadError, match="found none for 'c'"):
        prompts_of(prompts, ["a", "b", "c"], notes.append)
