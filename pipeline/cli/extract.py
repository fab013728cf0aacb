"""The commands of stage 1: extract, backbones."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.base import EXIT_SOME_FAILED, announce, cli, progress_line, say
from pipeline.cli.signals import stop_on_signal
from pipeline.core.callbacks import Callbacks
from pipeline.core.text import counted
from pipeline.stages.options import EXTRACT, add_options


@cli.command()
@click.argument("images")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="CACHE.h5",
    help="The cache to write. An existing cache is completed or updated.",
)
@add_options(EXTRACT)
def extract(images: str, output: str, **options: Any) -> None:
    """Embed every image of IMAGES into a cache.

    IMAGES is a folder (sub-folders are classes), a CSV or Parquet table with a column 'path' (and optionally
    'label', 'split', 'group' and others), a tar or zip archive, a Parquet or HDF5 file of images, a glob or a brace
    pattern of these ('shards-{000..099}.tar'), or an fsspec URL of any (s3://, gs://, http(s)://, hf://).

    The command can be stopped at any time. The same command resumes.
    """
    from pipeline.stages.calls import extract as extract_images

    announce(f"extract: reading {images}, then loading the network")
    with stop_on_signal() as stop:
        with progress_line("extract") as line:
            summary = extract_images(images, output, callbacks=Callbacks(stop, say, line), **options)
        say("\n".join(summary.headlines()))
    if summary.failed:
        say(f"{counted(summary.failed, 'image')} failed: 'pipeline info --failed {summary.path}' lists them")
    if summary.failed or summary.left_out.lost:
        click.get_current_context().exit(EXIT_SOME_FAILED)


@cli.command()
@click.option(
    "--family",
    type=click.Choice(["efficientnet_lite0", "torchvision", "timm", "open_clip"]),
    help="List only this family.  [default: all]",
)
def backbones(family: str | None) -> None:
    """List the names that --backbone takes."""
    from pipeline.backbones import list_backbones

    for name in list_backbones(family):
        click.echo(name)
