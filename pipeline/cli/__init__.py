"""The command line: the only place that prints, and that turns errors into exit codes.

Data go to files or standard output; messages and progress to standard error. Heavy modules are imported inside the
commands, so that ``--help`` stays quick. A command is a function in one of the modules here.
"""

from pipeline.cli import analysis, caches, extract, finetune, heads
from pipeline.cli.base import cli, stop_on_signal

__all__ = ["analysis", "caches", "cli", "extract", "finetune", "heads", "main", "stop_on_signal"]


def main() -> None:
    """Run the command line."""
    cli(prog_name="pipeline")
