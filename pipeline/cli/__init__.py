"""The command line: the only place that prints, and that turns errors into exit codes.

Data go to files or standard output; messages and progress to standard error. Heavy modules are imported inside the
commands, so that ``--help`` stays quick. A command is a function in one of the modules here.
"""

# Nothing is imported here but what is loaded anyway: a signal before `main` handles it is shown as a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pipeline.cli.commands import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    import _signal  # type: ignore[import-not-found]  # built in; `signal` is a file to load, as is all below
    import os

    for signum in (_signal.SIGINT, _signal.SIGTERM):
        _signal.signal(signum, lambda number, frame: os._exit(128 + number))
    from pipeline.cli.process import run

    run()


def __getattr__(name: str) -> "Any":
    if name == "cli":
        from pipeline.cli.commands import cli

        return cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
