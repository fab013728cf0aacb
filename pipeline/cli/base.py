"""Shared by all commands: the group with its exit codes, messages, signals and progress."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from pipeline.core.names import one_line
from pipeline.core.progress import ProgressLine
from pipeline.core.signals import stop_on
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EXIT_ERROR = 1
EXIT_SOME_FAILED = 3


class _Stopped(BaseException):
    """A signal asked for the end, and everything finished so far is safe."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class _Commands(click.Group):
    """Turns errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except PipelineError as error:
            say(f"error: {one_line(str(error))}")
            ctx.exit(EXIT_ERROR)
        except _Stopped as stopped:
            ctx.exit(stopped.exit_code)
        except KeyboardInterrupt:  # a command that had nothing to commit
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # The reader of the output (head, a pager) closed the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it removes its temporary files."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise _Stopped(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str) -> None:
    """Print a message for people."""
    click.echo(text, err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="embedding-pipeline", prog_name="pipeline")
def cli() -> None:
    """Run a frozen pretrained network once over an image archive, cache the embeddings, fit heads in seconds."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second signal ends the process at once.

    Raises
    ------
    _Stopped
        On leaving, when a signal was received.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    with stop_on(signals, say, at_once=lambda signum, frame: os._exit(128 + signum)) as stop:
        yield stop
    if stop.signum is not None:
        raise _Stopped(stop.signum)


@contextlib.contextmanager
def progress_line(what: str, unit: str = "images") -> Iterator[ProgressLine]:
    """Yield a progress bar that is closed on leaving."""
    line = ProgressLine(what, unit, say=say)
    try:
        yield line
    finally:
        line.close()
