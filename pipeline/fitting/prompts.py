"""Prompts: texts that describe the classes, from a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import HeadError, few_names, first_line

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

COLUMNS = ("class", "prompt")
EXAMPLE = "class,prompt and lines such as dog,a photo of a dog"


def read_prompts(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read a table of prompts: UTF-8, the columns ``class`` and ``prompt``, a line for each class and template.

    Parameters
    ----------
    path : path
        Separated by tabs if it ends in ``.tsv``, by commas otherwise.

    Returns
    -------
    list of (str, str)
        Class and prompt, in the order of the file.

    Raises
    ------
    HeadError
        The file cannot be read, has other columns, or a line without class or prompt.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(csv.reader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True))
    except OSError as error:
        raise HeadError(f"--prompts: cannot read {file} ({error.strerror or error}): name another file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise HeadError(f"--prompts: {file} is no UTF-8 table ({first_line(error)}): save it as CSV in UTF-8") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    if tuple(header) != COLUMNS:
        raise HeadError(
            f"--prompts: expected the first line of {file} to be class,prompt, got {header}: write {EXAMPLE}"
        )
    prompts = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        texts = [cell.strip() for cell in cells]
        if len(texts) != len(COLUMNS) or not all(texts):
            raise HeadError(
                f"--prompts: expected a class and a prompt in record {number} of {file}, got {cells}: write a line for "
                "each prompt, with quotes around one that holds the separator"
            )
        prompts.append((texts[0], texts[1]))
    return prompts


def prompts_of(
    prompts: Sequence[tuple[str, str]], classes: Sequence[str], note: Callable[[str], None]
) -> tuple[list[str], list[int]]:
    """Return the prompts of these classes, and the number of each one's class.

    Raises
    ------
    HeadError
        A class has no prompt.
    """
    number = {name: label for label, name in enumerate(classes)}
    missing = sorted(number.keys() - {name for name, _ in prompts})
    if missing:
        raise HeadError(f"--prompts: expected a prompt for every class, found none for {few_names(missing)}: add them")
    others = sorted({name for name, _ in prompts} - number.keys())
    if others:
        note(f"prompts left out: {few_names(others)} are no classes of these rows")
    used = [(text, number[name]) for name, text in prompts if name in number]
    return [text for text, _ in used], [label for _, label in used]
