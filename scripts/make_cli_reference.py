"""Write docs/cli.md: every command with its arguments and options, as the commands themselves tell them.

python scripts/make_cli_reference.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from pipeline.cli import cli

REFERENCE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """\
# Command line

<!-- Written by scripts/make_cli_reference.py (make docs): change the commands, not this file. -->

Data go to files or standard output, messages and progress to standard error. Exit codes: 0 all done; 1 an error, in one
line, with the way out; 2 wrong usage; 3 done, but some images failed; 130 or 143 stopped by a signal, with everything
finished kept.
"""


def reference() -> str:
    """Return the page."""
    commands = sorted(cli.commands.items())
    contents = [
        f"- [`pipeline {name}`](#pipeline-{name}): {command.get_short_help_str(limit=200)}"
        for name, command in commands
    ]
    sections = [line for name, command in commands for line in _section(name, command)]
    return "\n".join([HEAD, *contents, *sections, ""])


def _section(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"pipeline {name}")
    usage = " ".join(["pipeline", name, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = ["", f"## pipeline {name}", "", "```text", usage, "```", "", text]
    options = [
        parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    if options:
        lines += ["", "| option | meaning |", "|---|---|", *(_option(option, context) for option in options)]
    return lines


def _option(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    notes = ["required"] if option.required else []
    if option.show_default and option.default is not None:
        notes.append(f"default {option.default}")
    meaning = " ".join(filter(None, [option.help, f"({', '.join(notes)})" if notes else ""]))
    return f"| `{_cell(', '.join(option.opts) + value)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
