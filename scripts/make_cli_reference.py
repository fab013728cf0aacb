"""Write docs/cli.md: every command with its arguments and options, as the commands describe them.

python scripts/make_cli_reference.py
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import click

from pipeline.cli import cli

REFERENCE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100
HEAD = """\
# Command line

<!-- Written by scripts/make_cli_reference.py (make docs): change the commands, not this file. -->

Data are written to files or standard output, messages and progress to standard error.

| exit code | meaning |
|---|---|
| 0 | all done |
| 1 | an error, in one line that says how to fix it |
| 2 | wrong usage |
| 3 | done, but some images failed or were left out |
| 4 | `pipeline status`: some images are still to do |
| 129, 130, 143 | stopped by a signal; everything finished is kept |
| 141 | the reader of standard output closed it; files are complete |
"""


def reference() -> str:
    """Return the page."""
    commands = sorted(cli.commands.items())
    contents = [
        line
        for name, command in commands
        for line in _item(f"[`pipeline {name}`](#pipeline-{name}): {command.get_short_help_str(limit=200)}")
    ]
    sections = [line for name, command in commands for line in _section(name, command)]
    return "\n".join([HEAD, *contents, *sections, ""])


def _section(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"pipeline {name}")
    usage = " ".join(["pipeline", name, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    paragraphs = [line for part in text.split("\n\n") for line in [*textwrap.wrap(part, WIDTH), ""]]
    lines = ["", f"## pipeline {name}", "", "```text", usage, "```", "", *paragraphs]
    options = [
        parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    if options:
        lines += ["Options:", ""]
    lines += [line for option in options for line in _item(_option(option, context))]
    return lines if options else lines[:-1]


def _option(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    notes = ["required"] if option.required else []
    if option.show_default and option.default is not None:
        notes.append(f"default: {option.default}")
    meaning = " ".join(filter(None, [option.help, f"[{', '.join(notes)}]" if notes else ""]))
    return f"`{', '.join(option.opts)}{value}`: {' '.join(meaning.split())}"


def _item(text: str) -> list[str]:
    """Return an item of a list; code, which must not be broken, stays on one line."""
    return textwrap.wrap(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
