"""Rows of CSV files that any reader divides as they were written."""

from __future__ import annotations

import csv
from typing import Any, TextIO

LINE_END = "\r\n"
"""The line end to give to the writer of the rows."""


class CsvRows:
    """A text file whose rows end in a line feed, and whose cells with a carriage return are quoted.

    Python quotes only cells that hold a character of the line end. Its writer is therefore given both characters, and
    the carriage return is removed from the end of each row here.

    Parameters
    ----------
    file : text file
        Opened with ``newline=""``.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        """Write a row."""
        return self._file.write(row.removesuffix(LINE_END) + "\n")


def csv_writer(file: TextIO) -> Any:
    r"""Return a writer of rows.

    Examples
    --------
    >>> import io
    >>> file = io.StringIO(newline="")
    >>> csv_writer(file).writerow(["a\rb", "c"])
    8
    >>> file.getvalue()
    '"a\rb",c\n'
    """
    return csv.writer(CsvRows(file), lineterminator=LINE_END)
