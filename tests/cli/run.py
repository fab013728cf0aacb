"""The command line in this process: its exit code, its data and its messages, as a shell would see them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from pipeline.cli import cli


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(*arguments: object) -> Ran:
    """Run ``pipeline`` with arguments; an exception that the command line does not handle is the caller's."""
    data, messages = io.BytesIO(), io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(data, "utf-8", write_through=True)) as out,
        contextlib.redirect_stderr(io.TextIOWrapper(messages, "utf-8", write_through=True)) as err,
    ):
        try:
            cli.main([str(argument) for argument in arguments], prog_name="pipeline")
        except SystemExit as end:
            code = end.code
        out.flush()
        err.flush()
        return Ran(int(code or 0), data.getvalue().decode(), messages.getvalue().decode())
