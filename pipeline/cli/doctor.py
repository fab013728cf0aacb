"""The command about the machine: doctor."""

from __future__ import annotations

import click

from pipeline.cli.base import EXIT_ERROR, announce, cli, print_json


@cli.command()
@click.option("--cache-folder", default=".", help="Where caches are to be written.  [default: the current folder]")
@click.option("--store", "stores", multiple=True, metavar="URL", help="A store that is to be reached; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print a report for others. It names no path, host or user.")
def doctor(cache_folder: str, stores: tuple[str, ...], as_json: bool) -> None:
    """Check whether this machine is fit for the work.

    Looks at the processor, memory, GPU, engines (are their numbers right, and how fast are they), disks, optional parts
    and the stores that are named. Each line is ok, slow or wrong, with what to do; "absent" is an optional part that is
    not installed. It takes some 15 seconds, and opens no connection but to those stores.

    Exit code 0: nothing is wrong. 1: something is.
    """
    from pipeline.stages.doctor import diagnose

    announce("doctor: looking at this machine")
    found = diagnose(cache_folder, stores, found=lambda finding: None if as_json else click.echo(str(finding)))
    if as_json:
        print_json(found.to_json())
    if not found.healthy:
        click.get_current_context().exit(EXIT_ERROR)
