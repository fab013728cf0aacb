"""Shared by all commands: the group with its exit codes, messages, signals, progress, and the options of a run."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from pipeline.core.names import one_line
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

EXIT_ERROR = 1
EXIT_SOME_FAILED = 3
LOG_EVERY_S = 30.0
SEED = click.IntRange(0, 2**32 - 1)
"""The range that every random number generator accepts."""


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
    stop = threading.Event()
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        stop.set()
        say("\nstopping: committing what is done (repeat to stop at once)")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        raise _Stopped(received[0])


class ProgressLine:
    """A bar with images/s and time left on a terminal, an occasional line in a log."""

    def __init__(self, what: str, unit: str = "images") -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None
        self._first = (0, 0.0)
        self._logged = 0.0

    def __call__(self, ready: int, failed: int, total: int) -> None:
        """Show the state."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=ready,
                unit=f" {self._unit}",
                desc=self._what,
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                smoothing=0.1,
            )
            self._first, self._logged = (ready, time.monotonic()), time.monotonic()
            return
        if not self._bar.disable:
            self._bar.update(ready - self._bar.n)
            if failed:
                self._bar.set_postfix_str(f"{failed} failed", refresh=False)
        elif time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            rate = (ready - self._first[0]) / max(self._logged - self._first[1], 1e-9)
            left = (total - ready) / max(rate, 1e-9)
            say(
                f"{self._what}: {ready} of {total} {self._unit}, {failed} failed, {rate:.0f} {self._unit}/s, "
                f"{left / 60:.0f} min left"
            )

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.close()


class CountOrAuto(click.IntRange):
    """A number from 1 to a maximum, or ``auto``, which becomes 0."""

    name = "number or auto"

    def __init__(self, most: int) -> None:
        super().__init__(1, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return 0 if value == "auto" else int(super().convert(value, param, ctx))


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to run a network here; the command gets them as one `RunSettings`."""

    @functools.wraps(command)
    def with_settings(
        *args: Any,
        engine: str,
        device: str,
        precision: str,
        batch_size: int,
        workers: int | None,
        time_limit: float,
        **others: Any,
    ) -> None:
        from pipeline.decoding.pool import Limits
        from pipeline.embedding.settings import RunSettings

        limits = Limits(seconds=time_limit)
        command(*args, run=RunSettings(engine, device, precision, batch_size, workers or 0, limits), **others)

    for option in reversed(
        [
            click.option(
                "--precision",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "float32", "mixed", "bfloat16", "float16"]),
                help="The network's precision. auto: for extract, the fastest that agrees with float32; otherwise, "
                "the cache's.",
            ),
            click.option(
                "--engine",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "openvino", "torch"]),
                help="The software that runs the network. auto: OpenVINO on a CPU where it can, PyTorch elsewhere.",
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                help="Where the network runs: cpu, mps, cuda (the first GPU), cuda:1, cuda:all, or cuda:0,cuda:2.",
            ),
            click.option(
                "--batch-size",
                type=CountOrAuto(4096),
                metavar="N|auto",
                default="auto",
                show_default=True,
                help="Images per forward pass. auto: a size that depends on the device.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(1, 256),
                default=None,
                help="Number of decode processes.  [default: one per processor]",
            ),
            click.option(
                "--time-limit",
                default=60.0,
                show_default=True,
                type=click.FloatRange(0.1),
                help="Seconds that decoding one image may take. An image that takes longer fails.",
            ),
        ]
    ):
        with_settings = option(with_settings)
    return with_settings
