"""The process of the command line: its signals, its streams, and the exit code that it ends with."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from pipeline.cli.signals import end_on_signals
from pipeline.cli.streams import open_standard_streams
from pipeline.core.ending import end_process
from pipeline.core.memory import NO_MEMORY, lacks_memory

if TYPE_CHECKING:
    from pipeline.cli.streams import KeptFile

_MEMORY_ERROR_CODE = 1


def run() -> NoReturn:
    """Run the command that the arguments name, and exit."""
    end_on_signals()
    output = open_standard_streams()
    _watch_other_threads()
    try:
        from pipeline.cli.commands import cli  # once the streams and signals are set

        cli.main(prog_name="pipeline")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if not lacks_memory(error):
            raise
        end_process(_say_no_memory())  # at once: libraries crash when they clear up without memory
    sys.exit(_with_output(code, output))


def _with_output(code: int, output: KeptFile) -> int:
    """Return the exit code, which is not 0 where data were lost on the way to standard output."""
    sys.stdout.flush()
    if output.lost is None:
        return code
    if output.lost.errno == errno.EPIPE:  # the reader, such as head, had enough: as if ended by the signal
        return code or 128 + signal.SIGPIPE
    print(f"error: cannot write to standard output ({output.lost.strerror}): name a file with -o", file=sys.stderr)
    return code or 1


def _say_no_memory() -> int:
    print(f"error: {NO_MEMORY}", file=sys.stderr)
    return _MEMORY_ERROR_CODE


def _watch_other_threads() -> None:
    """End the process where a thread of a library lacks memory, and keep silent about what is lost in finalizers."""
    of_threads, unraisable = threading.excepthook, sys.unraisablehook

    def in_thread(found: threading.ExceptHookArgs) -> None:
        if lacks_memory(found.exc_value):
            end_process(_say_no_memory())
        of_threads(found)

    def in_finalizer(found: sys.UnraisableHookArgs) -> None:
        if not lacks_memory(found.exc_value):
            unraisable(found)

    threading.excepthook, sys.unraisablehook = in_thread, in_finalizer
