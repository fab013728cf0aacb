"""Shared by all commands: the group with its exit codes, messages, signals and progress."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.signals import Stopped
from pipeline.core.names import one_line, shown
from pipeline.core.progress import ProgressLine
from pipeline.errors import PipelineError
from pipeline.stages.option_types import EMPTY_TOO

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_SECONDS = 0.7
"""The longest wait without a message."""

_announcement: threading.Timer | None = None

CACHE = click.Path(readable=False)
"""A cache, whose reader says what is wrong about it."""

EXIT_ERROR = 1
EXIT_SOME_FAILED = 3
EXIT_TO_DO = 4


class _Command(click.Command):
    """Refuses empty values, which shells make of variables that are not set: they would stand for a default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Before the values are converted and used: an output is looked at then.
        given = self.make_parser(ctx).parse_args(args=list(args))[0]
        for parameter in self.params:
            value = given.get(parameter.name)
            if parameter.type is not EMPTY_TOO and (value == "" or (isinstance(value, (list, tuple)) and "" in value)):
                raise click.BadParameter("expected a value, got an empty one: give one", ctx, parameter)
        return super().parse_args(ctx, args)


class _Commands(click.Group):
    """Turns errors into one line and an exit code."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_current_folder()
            return super().invoke(ctx)
        except PipelineError as error:
            say(f"error: {one_line(str(error))}")
            ctx.exit(EXIT_ERROR)
        except Stopped as stopped:
            ctx.exit(stopped.exit_code)
        except KeyboardInterrupt:  # where the command line runs inside another program, which handles signals
            ctx.exit(128 + signal.SIGINT)
        finally:
            _take_back()


def _check_current_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109  # Path.cwd is this call
    except OSError as error:
        # Libraries fail in other ways there: one of torch's ends the process.
        raise PipelineError(
            f"expected a current folder, found none ({error.strerror}): change to a folder that exists"
        ) from None


def say(text: str) -> None:
    """Print a message for people."""
    _take_back()
    click.echo(text, err=True)


def print_json(data: Any) -> None:
    """Print data as JSON that every parser takes: no NaN, and names that are not UTF-8 as escapes."""
    import json  # keeps --help quick

    click.echo(json.dumps(_valid(data), indent=2, allow_nan=False))


def _valid(data: Any) -> Any:
    if isinstance(data, dict):
        return {shown(str(name)): _valid(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_valid(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return shown(data) if isinstance(data, str) else data


def announce(text: str) -> None:
    """Say what a command is doing, unless it has said something else by then: an error stays a single line."""
    global _announcement
    _take_back()
    _announcement = threading.Timer(_PATIENCE_SECONDS, click.echo, (text,), {"err": True})
    _announcement.daemon = True
    _announcement.start()


def _take_back() -> None:
    global _announcement
    if _announcement is not None:
        _announcement.cancel()
        _announcement = None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="embedding-pipeline", prog_name="pipeline")
def cli() -> None:
    """Run a frozen pretrained network once over an image archive, cache the embeddings, fit heads in seconds."""


@contextlib.contextmanager
def progress_line(what: str, unit: str = "images") -> Iterator[ProgressLine]:
    """Yield a progress bar that is closed on leaving."""
    line = ProgressLine(what, unit, say=say)
    try:
        yield line
    finally:
        line.close()
