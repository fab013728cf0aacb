"""The command that compares networks before stage 1: scout."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.base import announce, cli, progress_line, say
from pipeline.cli.signals import stop_on_signal
from pipeline.core.callbacks import Callbacks
from pipeline.stages.options import SCOUT, add_options

_COLUMNS = ("candidate", "accuracy", "low", "high", "difference", "images/s", "width", "standing", "recommended")


@cli.command()
@click.argument("images")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="SCOUT/",
    help="The folder to write. The caches of an earlier run are kept.",
)
@add_options(SCOUT)
def scout(images: str, output: str, **options: Any) -> None:
    """Compare networks, and their layers, on a sample of the labelled images of IMAGES.

    The same images go through every network, and a logistic head is fitted on each candidate with the same folds.
    SCOUT/ gets scout.csv, report.html and a cache for each network. Of the candidates that cannot be distinguished from
    the best, the cheapest is recommended.

    The command can be stopped at any time. The same command resumes.
    """
    from pipeline.stages.calls import scout as compare_networks

    announce(f"scout: reading {images}, then loading the networks")
    with stop_on_signal() as stop:
        with progress_line("scout") as line:
            result = compare_networks(images, output, callbacks=Callbacks(stop, say, line), **options)
        say("\n".join(result.headlines()))
    click.echo("\t".join(_COLUMNS))
    for entry in result.lines:
        figures = (entry.accuracy, entry.low, entry.high)
        click.echo(
            f"{entry.candidate}\t" + "\t".join(f"{figure:.4f}" for figure in figures) + f"\t{entry.difference:+.4f}\t"
            f"{entry.images_per_second:.0f}\t{entry.width}\t{entry.standing}\t{'yes' if entry.recommended else ''}"
        )
